# SPDX-License-Identifier: Apache-2.0
"""Cases of quantize_static: activations of DiT-XL with a scale of their diffusion step, as they are and after adaLN.

The floor is a read of x and a write of a byte for each of its elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastdiff import dequantize, quantize_static
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, Verdict
from torch import Tensor
from torch.nn.functional import layer_norm

OP = "quantize_static"
EAGER, COMPILED, TORCH = "eager", "torch.compile", "torch.quantize_per_tensor"

SMALL = (16, 1152)
SHAPES = (SMALL, (1024, 1152), (4096, 1152))
DTYPES = (torch.float32, torch.bfloat16)
TITLES = {
    "plain": "quantise with a step's scale",
    "adaln": "layer norm, modulate, quantise with a step's scale",
}
STEPS = 50


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
        targets=() if shape == SMALL else (Target(EAGER, factor=3.0), Target(COMPILED, factor=1.0)),
    )


def quantised(y: Tensor, scales: Tensor, zeros: Tensor, step: Tensor) -> Sequence[Tensor]:
    """As it is usually written."""
    return (((y.float() / scales[step]).round() + zeros[step]).clamp(-128, 127).to(torch.int8),)


def modulated(
    x: Tensor, scale_by: Tensor, shift: Tensor, scales: Tensor, zeros: Tensor, step: Tensor
) -> Sequence[Tensor]:
    """The same after the norm of a DiT block."""
    y = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale_by) + shift
    return quantised(y, scales, zeros, step)


def within_two_steps(want: Tensor, scale: Tensor, zero: Tensor) -> Check:
    """A check: what comes back is within two steps of the float64 numbers, on average within 0.3."""

    def check(got: Sequence[Tensor]) -> Verdict:
        steps = (dequantize(got[0], scale, zero, dtype=torch.float64) - want).abs() / scale
        worst, mean = float(steps.max()), float(steps.mean())
        right = worst <= 2 and mean <= 0.3
        return Verdict(worst, None if right else f"off by {worst:.2g} steps, {mean:.2g} on average")

    return check


def _contenders(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g).clamp(-4, 4).to(device, dtype)
    scales = torch.linspace(0.1, 0.11, STEPS, device=device)
    zeros = torch.arange(STEPS, dtype=torch.int32, device=device) - STEPS // 2
    step = torch.tensor([17], device=device)
    table = [scales, zeros, step]
    if name == "plain":
        given, eager, want = [x, *table], quantised, x.double()
        norm: dict[str, Any] = {}
    else:
        scale_by, shift = (torch.randn(shape[-1], generator=g).div(8).to(device, dtype) for _ in range(2))
        given, eager = [x, scale_by, shift, *table], modulated
        want = layer_norm(x.double(), x.shape[-1:], eps=1e-6) * (1 + scale_by.double()) + shift.double()
        norm = {"eps": 1e-6, "scale_by": scale_by, "shift": shift}
    check = within_two_steps(want, scales[step], zeros[step])
    return [
        Contender(EAGER, peers.with_tensors(eager, given, []), check),
        Contender(COMPILED, peers.compiled(eager, given, []), check),
        Contender(OURS, lambda: (quantize_static(x, *table, **norm),), check, rival=None),
    ]
