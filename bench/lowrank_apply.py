# SPDX-License-Identifier: Apache-2.0
"""Cases of lowrank_apply: eight gated concepts (SPM), LoRA beside a linear layer's output, the Gaussian teleport.

The floor of adapters is a read of x and of what the layer gave, and a write. Eager code takes nine passes for each
adapter; a careful author stacks them to three products, which still write what is added. The teleport reads a basis of
64 times the image twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fastdiff import lowrank_apply
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import linear

OP = "lowrank_apply"
EAGER, STACKED, COMPILED = "eager", "stacked", "torch.compile"

CONCEPTS, BASIS, BATCH = 8, 256, 4
SMALL, SMALL_IMAGE = (2, 16, 72), (BATCH, 300)
SHAPES = (SMALL, (2, 4096, 320), (2, 1024, 1152))
IMAGES = (SMALL_IMAGE, (BATCH, 3 * 64 * 64), (BATCH, 3 * 256 * 256))
DTYPES = (torch.float32, torch.bfloat16)
Build = Callable[[tuple[int, ...], torch.dtype, torch.device], list[Contender]]


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [
        *(
            _case(name, title, shape, dtype, 3, build)
            for shape in SHAPES
            for dtype in DTYPES
            for name, title, build in (
                ("spm", "8 concepts, gated per sample", _spm),
                ("lora16", "LoRA of rank 16", _lora(16)),
                ("lora64", "LoRA of rank 64", _lora(64)),
            )
        ),
        *(
            _case("teleport", "Gaussian teleport, rank 256", shape, dtype, 2 * BASIS // BATCH + 3, _teleport)
            for shape in IMAGES
            for dtype in DTYPES
        ),
    ]


def _case(
    name: str, title: str, shape: tuple[int, ...], dtype: torch.dtype, tensors: int, build: Build
) -> Case:
    eager = Target(EAGER, factor=6.0 if name == "spm" else 1.0)
    return Case(
        op=OP,
        name=name,
        title=title,
        shape=shape,
        dtype=dtype,
        tensors=tensors,
        build=lambda device: build(shape, dtype, device),
        targets=() if shape in (SMALL, SMALL_IMAGE) else (eager,),
    )


def _normal(*size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def _contenders(
    given: Sequence[Tensor],
    ours: Callable[..., Tensor],
    eager: dict[str, Callable[..., Tensor]],
    roundoffs: float,
) -> list[Contender]:
    want = eager[EAGER](*(t.double() for t in given))
    check = close_to([want], roundoffs=roundoffs)
    forms = {name: (lambda *t, form=form: (form(*t),)) for name, form in eager.items()}
    careful = forms.get(STACKED, forms[EAGER])
    return [
        *(Contender(name, peers.with_tensors(form, given, []), check) for name, form in forms.items()),
        Contender(COMPILED, peers.compiled(careful, given, []), check),
        Contender(OURS, lambda: (ours(*given),), check, rival=None),
    ]


def _spm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    def one_by_one(x: Tensor, down: Tensor, up: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        for k in range(CONCEPTS):
            base = base + gates[:, k, None, None] * linear(linear(x, down[k : k + 1]), up[:, k : k + 1])
        return base

    def stacked(x: Tensor, down: Tensor, up: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        return base + linear(linear(x, down) * gates[:, None], up)

    def ours(x: Tensor, down: Tensor, up: Tensor, gates: Tensor, base: Tensor) -> Tensor:
        return lowrank_apply(x, down, up, gates=gates, base=base)

    b, _, c = shape
    sizes = (shape, (CONCEPTS, c), (c, CONCEPTS), (b, CONCEPTS), shape)
    given = [_normal(*size, seed=n).to(device, dtype) for n, size in enumerate(sizes)]
    given[1] /= c**0.5
    return _contenders(given, ours, {EAGER: one_by_one, STACKED: stacked}, 64.0)


def _lora(rank: int) -> Build:
    def build(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
        def eager(x: Tensor, down: Tensor, up: Tensor, base: Tensor) -> Tensor:
            return base + linear(linear(x, down), up)

        def ours(x: Tensor, down: Tensor, up: Tensor, base: Tensor) -> Tensor:
            return lowrank_apply(x, down, up, base=base)

        sizes = (shape, (rank, shape[-1]), (shape[-1], rank), shape)
        given = [_normal(*size, seed=n).to(device, dtype) for n, size in enumerate(sizes)]
        given[1] /= shape[-1] ** 0.5
        return _contenders(given, ours, {EAGER: eager}, 64.0)

    return build


def _teleport(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    """With what depends on the noise levels given: gains, ratios, and the mean in the basis."""

    def eager(
        x: Tensor, basis: Tensor, gains: Tensor, offset: Tensor, mean: Tensor, rho: Tensor, c: Tensor
    ) -> Tensor:
        return rho * x + c * mean + linear(gains * (x @ basis + offset), basis)

    def ours(
        x: Tensor, basis: Tensor, gains: Tensor, offset: Tensor, mean: Tensor, rho: Tensor, c: Tensor
    ) -> Tensor:
        return lowrank_apply(x, basis.T, basis, gates=gains, offset=offset, a=rho, mu=mean, b=c)

    d = shape[1]
    sizes = (shape, (d, BASIS), (1, BASIS), (1, BASIS), (d,), (), ())
    given = [_normal(*size, seed=n).to(device, dtype) for n, size in enumerate(sizes)]
    given[1] /= d**0.5
    return _contenders(given, ours, {EAGER: eager}, 256.0)
