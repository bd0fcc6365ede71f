# SPDX-License-Identifier: Apache-2.0
"""Cases of quantize_per_token: the activations of DiT-XL before a linear layer, as they are and after adaLN.

The floor is a read of x and a write of a byte for each of its elements. Eager code makes seven tensors of it, ten after
a norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastdiff import dequantize, quantize_per_token
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, Verdict
from torch import Tensor
from torch.nn.functional import layer_norm

OP = "quantize_per_token"
EAGER, COMPILED = "eager", "torch.compile"

# Tokens and channels of DiT-XL: a few, at 256 and 512 pixels with guidance.
SMALL = (16, 1152)
SHAPES = (SMALL, (1024, 1152), (4096, 1152))
DTYPES = (torch.float32, torch.bfloat16)
TITLES = {"plain": "quantise tokens", "adaln": "layer norm, modulate, quantise"}


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
        tensors=1,  # and a byte for each element, which the share of the copy leaves out
        build=lambda device: _contenders(name, shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=4.0), Target(COMPILED, factor=1.0)),
    )


def quantised(y: Tensor) -> Sequence[Tensor]:
    """As it is usually written."""
    y = y.float()
    scale = y.abs().amax(-1, keepdim=True).clamp(min=2.0**-100) / 127
    return (y / scale).round().clamp(-127, 127).to(torch.int8), scale


def modulated(x: Tensor, scale_by: Tensor, shift: Tensor) -> Sequence[Tensor]:
    """The same after the norm of a DiT block."""
    return quantised(layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_by) + shift)


def within_two_steps(want: Tensor) -> Check:
    """A check: what comes back is within two steps of the float64 numbers, on average within 0.3.

    Eager code rounds to bfloat16 three times before it quantises.
    """

    def check(got: Sequence[Tensor]) -> Verdict:
        q, scale = got
        steps = (dequantize(q, scale, dtype=torch.float64) - want).abs() / scale
        worst, mean = float(steps.max()), float(steps.mean())
        right = worst <= 2 and mean <= 0.3
        return Verdict(worst, None if right else f"off by {worst:.2g} steps, {mean:.2g} on average")

    return check


def _contenders(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g).to(device, dtype)
    if name == "plain":
        given, eager, want = [x], quantised, x.double()
        norm: dict[str, Any] = {}
    else:
        scale_by, shift = (torch.randn(shape[-1], generator=g).div(4).to(device, dtype) for _ in range(2))
        given, eager = [x, scale_by, shift], modulated
        want = layer_norm(x.double(), x.shape[-1:], eps=1e-6) * (1 + scale_by.double()) + shift.double()
        norm = {"eps": 1e-6, "scale_by": scale_by, "shift": shift}
    check = within_two_steps(want)
    return [
        Contender(EAGER, peers.with_tensors(eager, given, []), check),
        Contender(COMPILED, peers.compiled(eager, given, []), check),
        Contender(OURS, lambda: quantize_per_token(x, **norm), check, rival=None),
    ]
