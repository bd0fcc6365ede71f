# SPDX-License-Identifier: Apache-2.0
"""Cases of fake_quant: activations and an image, with a scale for the tensor; forward, and with its gradient.

The floor of the forward pass is a read and a write; of the gradient two reads and a write.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import fake_quant
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor

OP = "fake_quant"
EAGER, COMPILED, TORCH = "eager", "torch.compile", "torch.fake_quantize"

SMALL = (1, 4, 32, 32)
SHAPES = (SMALL, (1024, 1152), (4096, 1152), (4, 320, 64, 64))
DTYPES = (torch.float32, torch.bfloat16)
TITLES = {"forward": "fake quantisation", "training": "with its gradient"}
SCALE, ZERO = 0.0171, 0


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(name, s, d) for s in SHAPES for d in DTYPES for name in TITLES]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=name,
        title=TITLES[name],
        shape=shape,
        dtype=dtype,
        tensors={"forward": 2, "training": 5}[name],
        build=lambda device: _contenders(name, shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=3.0), Target(TORCH, factor=1.0)),
    )


def straight_through(x: Tensor, scale: Tensor) -> Sequence[Tensor]:
    """PTQ4DM's quantiser: round and clamp with straight-through gradients."""
    wide = x.float() / scale
    rounded = (wide.round() - wide).detach() + wide
    return ((rounded.clamp(-127, 127) * scale).to(x.dtype),)


def _contenders(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    # No halves of the scale: PTQ4DM divides, and torch multiplies with the reciprocal.
    steps = torch.randint(-140, 140, shape, generator=g) + torch.rand(shape, generator=g).sub(0.5).mul(0.5)
    x, dy = (steps * SCALE).to(device, dtype), torch.randn(shape, generator=g).to(device, dtype)
    scale = torch.tensor(SCALE, device=device)

    def theirs(x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, SCALE, ZERO, -127, 127)

    if name == "forward":
        want = [theirs(x).double()]
        check = close_to(want, roundoffs=4.0)
        return [
            Contender(EAGER, peers.with_tensors(straight_through, [x, scale], []), check),
            Contender(COMPILED, peers.compiled(straight_through, [x, scale], []), check),
            Contender(TORCH, lambda: (theirs(x),), check),
            Contender(OURS, lambda: (fake_quant(x, scale),), check, rival=None),
        ]
    x.requires_grad_()

    def trained(y: Tensor) -> Sequence[Tensor]:
        return (y.detach(), torch.autograd.grad(y, x, dy)[0])

    def with_gradients(function: object) -> object:
        def call() -> Sequence[Tensor]:
            with torch.enable_grad():
                return trained(function(x))

        return call

    with torch.enable_grad():
        want = [t.double() for t in trained(theirs(x))]
    check = close_to(want, roundoffs=4.0)
    compiled = torch.compile(lambda x: straight_through(x, scale)[0], dynamic=False, fullgraph=True)
    return [
        Contender(EAGER, with_gradients(lambda x: straight_through(x, scale)[0]), check),
        Contender(COMPILED, with_gradients(compiled), check),
        Contender(TORCH, with_gradients(theirs), check),
        Contender(OURS, with_gradients(lambda x: fake_quant(x, scale)), check, rival=None),
    ]
