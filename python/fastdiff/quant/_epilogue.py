# SPDX-License-Identifier: Apache-2.0
"""What follows the sums of a linear layer: arguments that all formats of weights have, and their reference."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fastdiff.quant._packing import PackedWeight

ACTIVATIONS: Final = (None, "gelu", "gelu_tanh", "silu")
"""In the order of the numbers that schemas have."""

SCHEMA: Final = "Tensor? bias, Tensor? gate, Tensor? residual, Tensor? down, Tensor? up, Tensor? gates"
SETTINGS: Final = "int activation, bool gated"


class LowRank(NamedTuple):
    """A branch U (γ ⊙ (Vᵀ x)) beside a linear layer: LoRA, an SVD branch, or K gated rank-1 adapters.

    Attributes:
        down: Vᵀ ``[r, K]``, as LoRA's A; float32, float16 or bfloat16.
        up: U ``[N, r]``, as LoRA's B, with its factor alpha / r.
        gates: γ ``[r]`` or ``[B or 1, r]``, one row for each sample of x ``[B, …, K]``; None: 1.
    """

    down: Tensor
    up: Tensor
    gates: Tensor | None = None


def activation_code(op: str, activation: str | None) -> int:
    """Its number in the schema."""
    if activation not in ACTIVATIONS:
        names = ", ".join(str(name) for name in ACTIVATIONS)
        raise ValueError(f"fastdiff.{op}: activation must be one of {names}, got {activation!r}")
    return ACTIVATIONS.index(activation)


_CODES: Final = {torch.float32: 6, torch.float16: 5, torch.bfloat16: 15}  # c10::ScalarType


def dtype_code(op: str, dtype: torch.dtype | None) -> int:
    """The number of a result's dtype in the schema."""
    if dtype is None:
        return -1
    if dtype not in _CODES:
        raise RuntimeError(f"fastdiff::{op}: dtype must be float32, float16 or bfloat16, got {dtype}")
    return _CODES[dtype]


def result_dtype(x: Tensor, code: int) -> torch.dtype:
    """The dtype of a result by its number: by default that of x, float32 where x is integers or bytes."""
    named = next((dtype for dtype, known in _CODES.items() if known == code), None)
    return named or (x.dtype if x.is_floating_point() else torch.float32)


def result_like(x: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    """A new tensor ``[..., outputs]`` for x ``[..., K]``, laid out as the operators do it."""
    if x.shape[-1] == outputs:
        return torch.empty_like(x, dtype=dtype)
    return x.new_empty(*x.shape[:-1], outputs, dtype=dtype)


def fake_linear(x: Tensor, columns: int, gated: bool, code: int) -> Tensor:
    """The result of a linear layer for x ``[..., K]``, where nothing is computed."""
    return result_like(x, columns // 2 if gated else columns, result_dtype(x, code))


def branch_of(
    lowrank: LowRank | tuple[Tensor, ...] | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``down, up, gates`` of what a caller gave."""
    if lowrank is None:
        return None, None, None
    branch = LowRank(*lowrank)
    return branch.down, branch.up, branch.gates


def per_row(t: Tensor | None) -> Tensor | None:
    """One element, or one for each row of x ``[..., 1]``, as the operators take it."""
    return None if t is None else t.reshape(-1)


def per_sample(v: Tensor, x: Tensor) -> Tensor:
    """A vector ``[C]`` or ``[B or 1, C]`` so that it broadcasts over the rows of x ``[B, …, K]``."""
    if v.dim() == 1 or x.dim() == 2:
        return v
    return v[0] if x.dim() == 1 else v.view(v.shape[0], *(1,) * (x.dim() - 2), v.shape[1])


def activated(h: Tensor, activation: str | None, gated: bool) -> Tensor:
    """act(h), or h' act(h'') of the halves of the columns."""
    if gated:
        value, h = h.chunk(2, -1)
        return value * activated(h, activation, False)
    if activation is None:
        return h
    if activation == "silu":
        return torch.nn.functional.silu(h)
    return torch.nn.functional.gelu(h, approximate="tanh" if activation == "gelu_tanh" else "none")


def finished(
    h: Tensor,
    x: Tensor,
    packed: PackedWeight,
    *,
    bias: Tensor | None = None,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    lowrank: LowRank | tuple[Tensor, ...] | None = None,
) -> Tensor:
    """The epilogue in plain PyTorch, in the dtype of h: scaled sums ``[..., N]`` of the layer of x ``[..., K]``."""
    down, up, gates = branch_of(lowrank)
    if bias is not None:
        h = h + bias.to(h)
    if down is not None and up is not None:
        p = x.to(h) @ down.to(h).T
        h = h + (p if gates is None else p * per_sample(gates.to(h), x)) @ up.to(h).T
    h = activated(h, activation, packed.gated)
    if gate is not None:
        h = h * per_sample(gate.to(h), x)
    return h if residual is None else h + residual.to(h)


def magnitude(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    lowrank: Any = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    **_: Any,
) -> float:
    """An upper bound of all that is added up, for error bounds: the layer of the absolute values."""
    x, w = x.double().nan_to_num(0, 0, 0).abs(), packed.dequantize().double().abs()
    bounds = [None if t is None else t.double().abs() for t in (bias, gate, residual)]
    down, up, gates = (None if t is None else t.double().abs() for t in branch_of(lowrank))
    branch = None if down is None or up is None else LowRank(down, up, gates)
    y = finished(x @ w.T, x, packed, bias=bounds[0], gate=bounds[1], residual=bounds[2], lowrank=branch)
    return max(1.0, float(y.max())) if y.numel() else 1.0


def wants_gradients(*tensors: Any) -> bool:
    """Whether a call with these arguments has to be recorded."""
    return torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
