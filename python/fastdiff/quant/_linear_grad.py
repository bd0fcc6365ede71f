# SPDX-License-Identifier: Apache-2.0
"""Gradients of linear layers with a frozen packed weight, whatever stores it: h is computed again, dx = dh W."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.amp import is_autocast_available

from fastdiff.quant._epilogue import LowRank, activated, branch_of, per_sample, wants_gradients
from fastdiff.quant._packing import PackedWeight, in_slots, slot_count, slots_of

SLICE: Final = 1024  # columns of the weight that are decoded at a time

Options = dict[str, Any]


def times_weight(
    dh: Tensor, packed: PackedWeight, shape: torch.Size, dtype: torch.dtype, options: Options
) -> Tensor:
    """dh W, of which 1024 columns are decoded at a time, in this dtype."""
    dh = dh.to(dtype)
    firsts = range(0, packed.inner, SLICE)
    return torch.cat([dh @ packed.columns(k, k + SLICE).dequantize().to(dtype) for k in firsts], -1)


def floating(x: Tensor, options: Options) -> Tensor:
    """x as it is, in float32."""
    return x.float()


def as_it_is(t: Tensor) -> Tensor:
    return t


class Layer(NamedTuple):
    """A layer as this file sees it.

    Attributes:
        name: for errors.
        call: the public function: x, packed, bias; gate, residual, lowrank, activation and dtype; options.
        decoded: x in float32 as the branch reads it, from x and the options.
        transposed: dx from dh, the weight, the shape of x, the dtype to compute in and the options.
        rows: y, or something of its shape, with what rows of the weight make last, as x and the residual come.
    """

    name: str
    call: Callable[..., Tensor]
    decoded: Callable[[Tensor, Options], Tensor] = floating
    transposed: Callable[..., Tensor] = times_weight
    rows: Callable[[Tensor], Tensor] = as_it_is


def differentiable_linear(
    layer: Layer,
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    *,
    gate: Tensor | None,
    residual: Tensor | None,
    lowrank: LowRank | tuple[Tensor, ...] | None,
    activation: str | None,
    dtype: torch.dtype | None,
    out: Tensor | None,
    **options: Any,
) -> Tensor:
    """A layer with gradients to x, where it is floating, and to all tensors behind the product."""
    if out is not None or wants_gradients(*options.values()) or (x.requires_grad and x.element_size() == 1):
        raise NotImplementedError(
            f"fastdiff.{layer.name}: gradients are not recorded with out=, nor for quantised x or its scale; "
            "omit out, detach the others"
        )
    return _linear(layer, packed, activation, dtype, options, x, bias, gate, residual, *branch_of(lowrank))


class _Linear(torch.autograd.Function):
    """Of x nothing is kept unless something but dh W is made of it, and nothing at all of the size of y."""

    @staticmethod
    def forward(
        layer: Layer,
        packed: PackedWeight,
        activation: str | None,
        dtype: torch.dtype | None,
        options: Options,
        x: Tensor,
        bias: Tensor | None,
        gate: Tensor | None,
        residual: Tensor | None,
        *branch: Tensor | None,
    ) -> Tensor:
        return layer.call(
            x, packed, bias, gate=gate, residual=residual, lowrank=_lowrank(branch), activation=activation,
            dtype=dtype, **options,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.layer, ctx.packed, ctx.activation, _, ctx.options, x, *rest = inputs
        bias, gate, residual, *branch = rest
        _, _, to_gate, _, *to_branch = ctx.needs_input_grad[5:]
        ctx.reads_h = to_gate or ctx.activation is not None or ctx.packed.gated
        ctx.shape, ctx.x_dtype = x.shape, x.dtype
        ctx.bias_dtype, ctx.residual_dtype = (None if t is None else t.dtype for t in (bias, residual))
        kept = x if ctx.reads_h or any(to_branch) else None
        # Those of the layer are there anyway; saved, they are known to be unchanged.
        others = (*ctx.packed.tensors().values(), *(t for t in ctx.options.values() if isinstance(t, Tensor)))
        ctx.save_for_backward(kept, bias if ctx.reads_h else None, gate, *branch, *others)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, bias, gate, down, up, gates, *_ = ctx.saved_tensors
        branch = [down, up, gates]
        to_x, to_bias, to_gate, to_residual, *to_branch = ctx.needs_input_grad[5:]
        found: list[Tensor | None] = [None] * 4
        with _without_autocast(grads[0]):
            given = ctx.layer.rows(grads[0])
            dy = given.float()
            dh = dy if gate is None else dy * per_sample(gate.float(), dy)
            if ctx.reads_h:
                h = _pre_activations(ctx.layer, x, ctx.packed, bias, branch, ctx.options)
                if to_gate:
                    found[2] = _of_samples(dy * activated(h, ctx.activation, ctx.packed.gated), gate)
                dh = _through(ctx.activation, ctx.packed.gated, dh, h)
            if to_bias:
                found[1] = dh.reshape(-1, dh.shape[-1]).sum(0).to(ctx.bias_dtype)
            if to_residual:
                found[3] = given.to(ctx.residual_dtype)
            through_branch, *of_branch = _of_branch(ctx, to_x, to_branch, dh, x, branch)
            if to_x:
                # The matrix units of a GPU take 16 bits; on a CPU nothing is rounded on the way.
                wide = ctx.x_dtype if dh.is_cuda else torch.float32
                dx = ctx.layer.transposed(dh, ctx.packed, ctx.shape, wide, ctx.options)
                found[0] = (dx if through_branch is None else dx + through_branch).to(ctx.x_dtype)
        return None, None, None, None, None, *found, *of_branch


_linear: Callable[..., Tensor] = _Linear.apply


def _lowrank(branch: Any) -> LowRank | None:
    return None if branch[0] is None else LowRank(*branch)


def _without_autocast(t: Tensor) -> AbstractContextManager[Any]:
    """A backward pass may run inside the caller's autocast; its sums stay as they are."""
    kind = t.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


def _pre_activations(
    layer: Layer,
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    branch: Any,
    options: Options,
) -> Tensor:
    """h ``[..., N]``, float32, by the layer itself."""
    if not packed.gated:
        h = layer.call(x, packed, bias, lowrank=_lowrank(branch), dtype=torch.float32, **options)
        return layer.rows(h)
    # The layer multiplies the two halves; of a weight whose rows are the slots it does not know that.
    down, up, gates = branch
    bias, up = (None if t is None else in_slots(t, True) for t in (bias, up))
    whole = replace(packed, rows=slot_count(packed.rows, True), gated=False)
    h = layer.call(x, whole, bias, lowrank=_lowrank((down, up, gates)), dtype=torch.float32, **options)
    return layer.rows(h)[..., slots_of(packed.rows, True, h.device)]


def _through(activation: str | None, gated: bool, gradient: Tensor, h: Tensor) -> Tensor:
    """dh from the gradient of act(h), or of h' act(h'')."""
    if gated:
        value, h = h.chunk(2, -1)
        to_value = gradient * activated(h, activation, False)
        return torch.cat((to_value, _through(activation, False, gradient * value, h)), -1)
    if activation is None:
        return gradient
    if activation == "silu":  # aten::silu_backward has no derivative
        sigmoid = h.sigmoid()
        return gradient * sigmoid * (1 + h * (1 - sigmoid))
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(gradient, h, approximate=approximate)  # type: ignore[no-any-return]


def _of_branch(
    ctx: Any, to_x: bool, to_branch: list[bool], dh: Tensor, x: Tensor, branch: list[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """What U (γ ⊙ (Vᵀ x)) adds to dx, and the gradients of down, up and gates."""
    down, up, gates = branch
    to_down, to_up, to_gates = to_branch
    if down is None or up is None or not (to_x or any(to_branch)):
        return None, None, None, None

    def gated(p: Tensor) -> Tensor:
        return p if gates is None else p * per_sample(gates.float(), dh)

    s = dh @ up.float()
    to_input = gated(s) @ down.float() if to_x else None
    if not any(to_branch):
        return to_input, None, None, None
    wide = ctx.layer.decoded(x, ctx.options)
    p = wide @ down.float().T
    return (
        to_input,
        _over_rows(gated(s), wide).to(down.dtype) if to_down else None,
        _over_rows(dh, gated(p)).to(up.dtype) if to_up else None,
        _of_samples(s * p, gates) if to_gates and gates is not None else None,
    )


def _over_rows(left: Tensor, right: Tensor) -> Tensor:
    return left.reshape(-1, left.shape[-1]).T @ right.reshape(-1, right.shape[-1])


def _of_samples(rows: Tensor, like: Tensor) -> Tensor:
    """Sums over the rows of each sample, ``[B, C]``, as a gradient of ``[C]`` or ``[B or 1, C]``."""
    samples = rows.shape[0] if rows.dim() > 1 else 1
    sums = rows.reshape(samples, prod(rows.shape[1:-1]), rows.shape[-1]).sum(1)
    return sums.sum_to_size(like.shape).to(like.dtype)
