# SPDX-License-Identifier: Apache-2.0
"""Linear layers with a packed weight as plain PyTorch in float64, which autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fastdiff import PackedWeight
from torch import Tensor
from torch.nn import functional as F

from tests.kit.compare import assert_close, assert_same_bits

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda h: h,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda h: F.gelu(h, approximate="tanh"),
}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The rounded numbers, differentiated as x."""
    return rounded if x.element_size() == 1 else x.double() + (rounded - x.detach().double())


def per_sample(v: Tensor, y: Tensor) -> Tensor:
    """[C] or [B or 1, C] beside [B, ..., C]."""
    v = v.double().reshape(-1, v.shape[-1])
    return v[0] if y.dim() < 2 else v[(slice(None), *[None] * (y.dim() - 2))]


def finished(
    h: Tensor,
    x: Tensor,
    gated: bool,
    *,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    lowrank: tuple[Tensor, ...] | None = None,
    activation: str | None = None,
) -> Tensor:
    """residual + gate act(h + bias + U (gates V^T x)) of the sums h, for x as the branch reads it."""
    act = ACTIVATIONS[activation]
    if bias is not None:
        h = h + bias.double()
    if lowrank is not None:
        down, up, *gates = lowrank
        p = F.linear(x, down.double())
        for g in gates:
            p = p * per_sample(g, p)
        h = h + F.linear(p, up.double())
    half = h.shape[-1] // 2
    y = h[..., :half] * act(h[..., half:]) if gated else act(h)
    if gate is not None:
        y = y * per_sample(gate, y)
    return y if residual is None else y + residual.double()


def with_leaves(
    x: Tensor, options: dict[str, Any], dtype: torch.dtype | None
) -> tuple[Tensor, dict[str, Any], list[Tensor]]:
    """The same call, of tensors that record gradients wherever there are some; and these."""
    leaves: list[Tensor] = []

    def leaf(t: Tensor) -> Tensor:
        leaves.append(t.detach().to(dtype or t.dtype, copy=True).requires_grad_())
        return leaves[-1]

    first = leaf(x) if x.element_size() > 1 else x
    changed = {name: leaf(options[name]) for name in ("bias", "gate", "residual") if name in options}
    if "lowrank" in options:
        changed["lowrank"] = tuple(map(leaf, options["lowrank"]))
    return first, options | changed, leaves


def gradients(
    function: Callable[..., Tensor],
    x: Tensor,
    options: dict[str, Any],
    dy: Tensor,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """Of a call with respect to all its tensors, perhaps as others of this dtype, for a gradient of the result."""
    x, options, leaves = with_leaves(x, options, dtype)
    y = function(x, **options)
    return list(torch.autograd.grad(y, leaves, dy.to(y.dtype)))


def check_gradients(
    layer: Callable[..., Tensor],
    oracle: Callable[..., Tensor],
    x: Tensor,
    options: dict[str, Any],
) -> None:
    """Within roundings of those of the oracle, which has the same arguments but for dtype; and y is what it was."""
    with torch.no_grad():
        y = layer(x, **options)
    leaf, recorded, _ = with_leaves(x, options, None)
    assert_same_bits([layer(leaf, **recorded).detach()], [y])
    dy = normal(*y.shape, dtype=y.dtype, seed=99)
    got = gradients(layer, x, options, dy)
    known = {name: value for name, value in options.items() if name != "dtype"}
    want = gradients(oracle, x, known, dy, torch.float64)
    for n, (g, w) in enumerate(zip(got, want, strict=True)):
        largest = float(w.nan_to_num(0, 0, 0).abs().max()) if w.numel() else 0.0
        assert_close(g, w.to(g.dtype), scale=max(1.0, largest), terms=64, what=f"gradient {n}")


def decoded(packed: PackedWeight) -> Tensor:
    return packed.dequantize().double()
