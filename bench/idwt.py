# SPDX-License-Identifier: Apache-2.0
"""Cases of idwt: the way back of dwt's cases, thresholds in the same pass, and its backward."""

from __future__ import annotations

import torch
from fastdiff.bench import dwt as forward_cases
from fastdiff.bench import dwt_peers as peers
from fastdiff.bench.dwt import FORWARD, ONE_LEVEL, OUT, Work, backward_peers, coefficients, signal, targets
from fastdiff.bench.dwt_peers import ROUNDOFFS
from fastdiff.bench.kit import OURS, Case, Contender, close_to
from fastdiff.wavelet import idwt, waverec
from fastdiff.wavelet.idwt import reference
from torch import Tensor

OP = "idwt"


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first; shapes are those of the signals."""
    return [_case(work) for work in (*forward_cases.WORKS, *forward_cases.BACKWARDS)]


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


def together(bands: list[Tensor], ndim: int) -> Tensor:
    """Of one level: the approximation before its details."""
    low, details = bands
    return torch.cat((low.unsqueeze(-1 - ndim), details), dim=-1 - ndim)


def _contenders(work: Work, device: torch.device) -> list[Contender]:
    exact = signal(work, device)
    # Of numbers that the dtype has, so that nobody's result is charged with the rounding of the coefficients.
    given = [c.to(work.dtype).contiguous() for c in coefficients(work, exact)]
    doubles = [c.double() for c in given]
    options = {"ndim": work.ndim, "mode": work.mode}
    size = work.shape[-work.ndim :]
    want, details = doubles[0], doubles[1:]
    for n, bands in enumerate(details):
        last = want
        finer = details[n + 1].shape[-work.ndim :] if n + 1 < len(details) else size
        want = reference(bands, work.wavelet, **options, approximation=want, size=finer)
    found = peers.contenders(work.transform, want, doubles, inverse=True)
    check = close_to([want], roundoffs=ROUNDOFFS)
    if work.level > 1:
        finest = together([last.to(work.dtype), given[-1]], work.ndim)
        return [
            *found,
            Contender(ONE_LEVEL, lambda: (idwt(finest, work.wavelet, **options, size=size),), check),
            Contender(OURS, lambda: (waverec(given, work.wavelet, **options),), check, rival=None),
        ]
    y = together(given, work.ndim)
    out = torch.empty(work.shape, dtype=work.dtype, device=device)
    return [
        *found,
        Contender(OURS, lambda: (idwt(y, work.wavelet, **options),), check, rival=None),
        Contender(OUT, lambda: (idwt(y, work.wavelet, **options, out=out),), check, rival=None),
    ]


def _backward(work: Work, device: torch.device) -> list[Contender]:
    exact = signal(work, device)
    y64 = together(coefficients(work, exact), work.ndim)
    g = torch.Generator().manual_seed(1)
    of = torch.randn(work.shape, generator=g).to(device, work.dtype)
    options = {"ndim": work.ndim, "mode": work.mode}
    with torch.enable_grad():
        leaf64 = y64.clone().requires_grad_()
        x64 = reference(leaf64, work.wavelet, **options)
        (want,) = torch.autograd.grad(x64, leaf64, of.double())
        y = y64.to(work.dtype).requires_grad_()
        x = idwt(y, work.wavelet, **options)
        found = []
        for name in backward_peers(work):
            leaves = [t.detach().requires_grad_() for t in peers.split_bands(y.detach(), work.ndim)]
            calls = peers.PEERS[name](work.transform, of, leaves)
            if calls is not None:
                made = calls.signal(calls.inverse())
                found.append((name, peers.gradients([made], leaves, [of])))
    parts = close_to(peers.split_bands(want, work.ndim), roundoffs=ROUNDOFFS)
    plain = y.detach()
    forward = close_to([x64.detach()], roundoffs=ROUNDOFFS)
    return [
        *(Contender(name, call, parts) for name, call in found),
        Contender(FORWARD, lambda: (idwt(plain, work.wavelet, **options),), forward),
        Contender(OURS, peers.gradients([x], [y], [of]), close_to([want], roundoffs=ROUNDOFFS), rival=None),
    ]
