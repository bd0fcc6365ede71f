# SPDX-License-Identifier: Apache-2.0
"""Cases of dwt: one and three levels in two dimensions, one in three, and its backward."""

from __future__ import annotations

from typing import NamedTuple

import torch
from fastdiff.bench import dwt_peers as peers
from fastdiff.bench.dwt_peers import EAGER, PTWT, PYTORCH_WAVELETS, PYWAVELETS, ROUNDOFFS, Transform
from fastdiff.bench.kit import COPY, OURS, Case, Contender, Target, close_to
from fastdiff.wavelet import dwt, wavedec
from fastdiff.wavelet.dwt import reference
from torch import Tensor

OP = "dwt"
ONE_LEVEL, FORWARD, OUT = "one level", "forward", "out="

LATENT = (1, 4, 64, 64)  # Stable Diffusion, 512 x 512: the price of a call
LATENTS = (4, 16, 128, 128)  # four FLUX-sized latents
IMAGE = (1, 3, 1024, 1024)
VOLUME = (5, 32, 64, 64)  # five fields of smoke (Wavelet Diffusion Neural Operator)
FP32, BF16 = torch.float32, torch.bfloat16


class Work(NamedTuple):
    wavelet: str
    mode: str
    shape: tuple[int, ...]
    level: int = 1
    dtype: torch.dtype = FP32
    ndim: int = 2
    backward: bool = False

    @property
    def name(self) -> str:
        parts = [self.wavelet, self.mode, f"{self.level}_level{'s' if self.level > 1 else ''}"]
        return "_".join([*parts, "backward"] if self.backward else parts)

    @property
    def title(self) -> str:
        levels = "one level" if self.level == 1 else f"{self.level} levels"
        return f"{self.wavelet}, {self.mode}, {levels}" + (", backward" if self.backward else "")

    @property
    def transform(self) -> Transform:
        return Transform(self.wavelet, self.mode, self.ndim, self.level, self.dtype)


MODES = {"haar": "zero", "db4": "symmetric", "bior2.2": "zero", "bior4.4": "symmetric"}
WORKS = (
    *(Work(w, MODES[w], LATENT) for w in ("haar", "db4")),
    *(Work(w, m, shape, level) for w, m in MODES.items() for shape in (LATENTS, IMAGE) for level in (1, 3)),
    Work("bior4.4", "periodization", LATENTS),
    *(Work(w, MODES[w], LATENTS, dtype=BF16) for w in ("haar", "bior4.4")),
    Work("bior1.3", "zero", VOLUME, ndim=3),
)
BACKWARDS = tuple(
    Work(w, MODES[w], shape, backward=True) for w in ("haar", "db4") for shape in (LATENTS, IMAGE)
)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(work) for work in (*WORKS, *BACKWARDS)]


def _case(work: Work) -> Case:
    return Case(
        op=OP,
        name=work.name,
        title=work.title,
        shape=work.shape,
        dtype=work.dtype,
        tensors=2,
        build=lambda device: (_backward if work.backward else _contenders)(work, device),
        targets=targets(work),
    )


def targets(work: Work) -> tuple[Target, ...]:
    """Those of idwt too. A call on one small latent is not about bytes, so that it has none."""
    if work.shape == LATENT:
        return ()
    if work.backward:
        return (Target(FORWARD, factor=1 / 1.3),)
    if work.ndim == 3:
        return (Target(PTWT, factor=15.0),)
    if work.level > 1:
        return (Target(ONE_LEVEL, factor=1 / 1.6),)
    if work.wavelet == "haar":
        wanted = {PTWT: 5.0, PYTORCH_WAVELETS: 5.0, PYWAVELETS: 5.0, COPY: 1 / 1.5}
    else:
        wanted = {PTWT: 15.0, PYWAVELETS: 10.0, COPY: 1 / 4}
    absent = {PTWT, PYWAVELETS} if work.dtype != FP32 else {PTWT} if work.mode == "periodization" else set()
    return tuple(Target(peer, factor=factor) for peer, factor in wanted.items() if peer not in absent)


def signal(work: Work, device: torch.device) -> Tensor:
    """In float64, of numbers that the work's dtype has."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(work.shape, generator=g).to(device, work.dtype).double()


def coefficients(work: Work, x: Tensor) -> list[Tensor]:
    """The float64 result, by matrices."""
    details = []
    for _ in range(work.level):
        bands = reference(x, work.wavelet, ndim=work.ndim, mode=work.mode)
        x = bands.select(-1 - work.ndim, 0)
        details.append(bands.narrow(-1 - work.ndim, 1, 2**work.ndim - 1))
    return [x, *reversed(details)]


def _contenders(work: Work, device: torch.device) -> list[Contender]:
    exact = signal(work, device)
    want = coefficients(work, exact)
    x = exact.to(work.dtype)
    found = peers.contenders(work.transform, exact, want, inverse=False)
    options = {"ndim": work.ndim, "mode": work.mode}
    if work.level > 1:
        first = close_to([reference(exact, work.wavelet, **options)], roundoffs=ROUNDOFFS)
        levels = {**options, "level": work.level}
        return [
            *found,
            Contender(ONE_LEVEL, lambda: (dwt(x, work.wavelet, **options),), first),
            Contender(
                OURS,
                lambda: wavedec(x, work.wavelet, **levels),
                close_to(want, roundoffs=ROUNDOFFS),
                rival=None,
            ),
        ]
    check = close_to([reference(exact, work.wavelet, **options)], roundoffs=ROUNDOFFS)
    out = torch.empty_like(dwt(x, work.wavelet, **options))
    return [
        *found,
        Contender(OURS, lambda: (dwt(x, work.wavelet, **options),), check, rival=None),
        Contender(OUT, lambda: (dwt(x, work.wavelet, **options, out=out),), check, rival=None),
    ]


def backward_peers(work: Work) -> list[str]:
    """pytorch_wavelets' backward is the inverse with time-reversed filters: no adjoint where ends are continued."""
    return [PTWT, EAGER, *([PYTORCH_WAVELETS] if work.mode == "zero" else [])]


def _backward(work: Work, device: torch.device) -> list[Contender]:
    """The gradient of x: of ptwt and pytorch_wavelets by PyTorch's own, through convolutions."""
    exact = signal(work, device)
    g = torch.Generator().manual_seed(1)
    options = {"ndim": work.ndim, "mode": work.mode}
    with torch.enable_grad():
        x64 = exact.clone().requires_grad_()
        y64 = reference(x64, work.wavelet, **options)
        of = torch.randn(y64.shape, generator=g).to(device, work.dtype)
        (want,) = torch.autograd.grad(y64, x64, of.double())
        x = exact.to(work.dtype).requires_grad_()
        y = dwt(x, work.wavelet, **options)
        found = []
        for name in backward_peers(work):
            leaf = x.detach().clone().requires_grad_()
            calls = peers.PEERS[name](work.transform, leaf, peers.split_bands(of.detach(), work.ndim))
            if calls is None:
                continue
            parts = calls.sorted_out(calls.forward())
            found.append((name, peers.gradients(parts, [leaf], peers.split_bands(of, work.ndim))))
    check = close_to([want], roundoffs=ROUNDOFFS)
    plain = x.detach()
    forward = close_to([reference(exact, work.wavelet, **options)], roundoffs=ROUNDOFFS)
    return [
        *(Contender(name, call, check) for name, call in found),
        Contender(FORWARD, lambda: (dwt(plain, work.wavelet, **options),), forward),
        Contender(OURS, peers.gradients([y], [x], [of]), check, rival=None),
    ]
