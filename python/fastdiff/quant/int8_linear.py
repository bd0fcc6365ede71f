# SPDX-License-Identifier: Apache-2.0
"""int8_linear: products of int8 with exact sums, from activations that are quantised on the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.quant._epilogue import (
    SCHEMA,
    SETTINGS,
    LowRank,
    activation_code,
    branch_of,
    dtype_code,
    fake_linear,
    finished,
    magnitude,
    per_row,
    result_like,
    wants_gradients,
)
from fastdiff.quant._formats import byte_rows
from fastdiff.quant._packing import PackedWeight, out_of_slots, pack_weight

if TYPE_CHECKING:
    from fastdiff._case import Case

DOUBLES: Final = False
IN_PLACE: Final = False  # over `residual` it is, over x it cannot be
SAME_BITS: Final = False  # the low-rank branch is added up in another order on CUDA
INTEGERS: Final = True

_ARGUMENTS = (
    "Tensor x, Tensor? x_scale, Tensor? x_zero_point, Tensor weight, Tensor scale, Tensor column_sum, "
    f"Tensor? zero_point, {SCHEMA}, int columns, int bits, {SETTINGS}, int dtype"
)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    *_, columns, _, _, gated, code = arguments
    return fake_linear(x, columns, gated, code)


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::int8_linear: out must be on {x.device} like x, got {result.device}")


_native.define(f"int8_linear({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"int8_linear.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def int8_linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    lowrank: LowRank | tuple[Tensor, ...] | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""A linear layer of int8 weights and int8 activations, with what follows it, in one call:

    .. math::
        h = s_x s_w \Big(\sum_k q_x q_w - z_x \sum_k q_w - z_w \sum_k q_x + K z_x z_w\Big)
            + b + U (\gamma \odot (V^\top x)), \qquad
        y = \text{residual} + \text{gate} \odot \text{act}(h)

    with :math:`\text{act}(h) = h' \, \text{act}(h'')` for the two halves of the columns if the weight was packed with
    ``gated=True`` (GEGLU, SwiGLU). The sums of integers are exact.

    Activations in floating point are quantised here, each row by its own range: with 8 bits to −127 … 127, scale
    max|x| / 127; with 7 bits to 0 … 127 with a zero point, scale (max(x, 0) − min(x, 0)) / 127, which CPUs without
    VNNI multiply 1.4 times as fast. With ``x_scale`` they are quantised by that scale instead. A row with NaN, or of
    infinite range, gives NaN.

    Args:
        x: ``[..., K]`` float32, float16 or bfloat16; or int8, with its scale. Any strides.
        packed: the weight, from :func:`pack_weight` with scheme ``"int8"``; K up to 33,024.
        bias: ``[N]``, as are gate, residual and the branch: float32, float16 or bfloat16.
        x_scale: float32, one element or one for each row of x (``[..., 1]``).
        x_zero_point: int32, likewise: x stands for x_scale · (q − x_zero_point); q in −128 … 127.
        bits: 8 or 7, of activations that are quantised here.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or None.
        gate: ``[outputs]``, or ``[B or 1, outputs]`` for x ``[B, …, K]``: adaLN's gate, DiffFit's γ.
        residual: ``[..., outputs]``.
        lowrank: :class:`LowRank`, or ``(down, up)``, or ``(down, up, gates)``: added before the activation function.
        dtype: of the result; default: that of x, float32 for int8.
        out: where to write, ``[..., outputs]``; may be exactly the residual, shares no memory with the others.

    Returns:
        y ``[..., outputs]``, or ``out``. Arithmetic behind the sums is float32, rounded once.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        ValueError: another scheme, or an unknown activation.
        NotImplementedError: gradients are asked for with ``out=``, or with respect to ``x_scale``.

    Gradients, of any order, as those of :func:`weight_linear`: to everything but the packed weight, straight through
    the rounding of x, also where a given scale clamps it.

    The same bits on a CPU for any instruction set and any number of threads.

    Source: affine form of Post-training Quantization on Diffusion Models (PTQ4DM), quant_layer.py; branches: LoRA, SPM
    (One-dimensional Adapter to Rule Them All), SVDQuant.
    """
    if wants_gradients(x, bias, gate, residual, *(lowrank or ()), x_scale, out):
        from fastdiff.quant.int8_linear_grad import differentiable_int8_linear

        return differentiable_int8_linear(
            x, packed, bias, gate=gate, residual=residual, lowrank=lowrank, activation=activation, dtype=dtype,
            out=out, x_scale=x_scale, x_zero_point=x_zero_point, bits=bits,
        )  # fmt: skip
    if packed.scheme != "int8":
        raise ValueError(f"fastdiff.int8_linear: packed must have the scheme int8, got {packed.scheme}")
    if x.shape[-1:] != (packed.inner,):
        raise RuntimeError(
            f"fastdiff::int8_linear: x must have shape [..., {packed.inner}], got {list(x.shape)}"
        )
    arguments = (
        x, per_row(x_scale), per_row(x_zero_point), packed.weight, packed.scale, packed.column_sum,
        packed.zero_point, bias, gate, residual, *branch_of(lowrank), packed.rows, bits,
        activation_code("int8_linear", activation), packed.gated, dtype_code("int8_linear", dtype),
    )  # fmt: skip
    if out is None:
        y: Tensor = torch.ops.fastdiff.int8_linear.default(*arguments)
        return y
    torch.ops.fastdiff.int8_linear.out(*arguments, result=out)
    _native.mark_written([out])
    return out


# ---- reference -------------------------------------------------------------------------------------------------


def quantized(
    x: Tensor, x_scale: Tensor | None, x_zero_point: Tensor | None, bits: int
) -> tuple[Tensor, Tensor, Tensor]:
    """q, scale and zero point ``[..., 1]`` of activations, by the float32 operations that kernels do."""
    if x.dtype == torch.int8:
        zero = torch.zeros(1, dtype=torch.int32) if x_zero_point is None else x_zero_point
        assert x_scale is not None
        return x, x_scale.reshape(-1, 1), zero.reshape(-1, 1)
    x = x.float().reshape(-1, x.shape[-1])
    lowest, highest = -127.0, 127.0
    levels = torch.full((1, 1), 127.0)  # 127 / x is 127 times the reciprocal of x, which is rounded twice
    if x_scale is not None:
        scale, zero = x_scale.reshape(-1, 1), torch.zeros(1, 1)
        lowest = 0.0 if bits == 7 else -127.0
        if x_zero_point is not None:
            zero = x_zero_point.reshape(-1, 1).float()
            lowest = 0.0 if bits == 7 else -128.0
        inverse = 1 / scale
    elif bits == 8:
        range_ = x.abs().amax(1, keepdim=True).clamp_min(2.0**-100)
        scale, inverse, zero = range_ / 127, levels / range_, torch.zeros(1, 1)
    else:
        least = x.amin(1, keepdim=True).clamp_max(0)
        range_ = (x.amax(1, keepdim=True).clamp_min(0) - least).clamp_min(2.0**-100)
        scale, inverse = range_ / 127, levels / range_
        zero, lowest = (-least * inverse).round(), 0.0
    q = (x * inverse).clamp(lowest - zero, highest - zero).round() + zero
    broken = q.isnan().any(1, keepdim=True)
    scale = scale.expand(len(x), 1).masked_fill(broken, float("nan"))
    return q.nan_to_num(0).masked_fill(broken, 0), scale, zero


def reference(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    dtype: torch.dtype | None = None,
    **epilogue: Any,
) -> Tensor:
    """:func:`int8_linear` in plain PyTorch: float32 up to the integers, then float64; rounded at the end."""
    q, scale, zero = quantized(x, x_scale, x_zero_point, bits)
    w = byte_rows(packed).double()
    if packed.zero_point is not None:
        w = w - out_of_slots(packed.zero_point, packed.rows, packed.gated)[:, None]
    q = q.double().reshape(-1, packed.inner) - zero.double()
    sums = (q @ w.T * scale.double()).view(*x.shape[:-1], packed.rows)
    h = sums * out_of_slots(packed.scale, packed.rows, packed.gated).double()
    real = x.double() if x.is_floating_point() else (q * scale.double()).view(x.shape)
    y = finished(h, real, packed, bias=bias, **epilogue)
    return result_like(
        x, packed.outputs, dtype or (x.dtype if x.is_floating_point() else torch.float32)
    ).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def tolerance(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, **options: Any
) -> dict[str, float]:
    """The sums are exact; what is added to them, and the activation function, is float32."""
    real = x.double()
    if x.dtype == torch.int8 or options.get("x_scale") is not None:
        q, scale, zero = quantized(x, options["x_scale"], options.get("x_zero_point"), options.get("bits", 8))
        real = ((q.double().reshape(-1, packed.inner) - zero) * scale).view(x.shape)
    return {"scale": magnitude(real, packed, bias, **options), "terms": 16}


def dlpack_arguments(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    lowrank: LowRank | tuple[Tensor, ...] | None = None,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    down, up, gates = branch_of(lowrank)
    rows, samples = x[..., 0].numel(), x.shape[0] if x.dim() > 2 else 1
    rank = 0 if down is None else down.shape[0]
    size = _C.int8_linear_scratch(rows, packed.inner, packed.rows, rank=rank, samples=samples)
    return {
        "x": x, "weight": packed.weight, "scale": packed.scale, "column_sum": packed.column_sum,
        "columns": packed.rows, "zero_point": packed.zero_point, "gated": packed.gated, "bias": bias,
        "x_scale": per_row(x_scale), "x_zero_point": per_row(x_zero_point), "down": down, "up": up, "gates": gates,
        "activation": activation_code("int8_linear", activation),
        "scratch": torch.empty(size, dtype=torch.uint8, device=x.device), **options,
    }  # fmt: skip


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, generator=g).to(torch.int8)

    half, single = torch.bfloat16, torch.float32
    w, affine = pack_weight(normal(40, 70)), pack_weight(normal(40, 70) + 0.5, symmetric=False)
    rough = normal(4, 70)
    rough[1, 3], rough[2, 5] = float("nan"), float("inf")
    branch = (normal(3, 70, dtype=half), normal(40, 3, dtype=half), normal(2, 3))
    return [
        *(Case(f"8 bits, {str(t)[6:]}", (normal(2, 9, 70, dtype=t),),
               {"packed": w, "bias": normal(40, dtype=t), "activation": "gelu"})
          for t in (single, half, torch.float16)),
        Case("7 bits", (normal(19, 70),), {"packed": w, "bits": 7, "activation": "silu"}),
        Case("7 bits, affine weight", (normal(2, 3, 70, dtype=half),),
             {"packed": affine, "bits": 7, "dtype": single}),
        Case("8 bits, affine weight", (normal(33, 70),), {"packed": affine}),
        Case("int8 with zero points", (integers(2, 3, 70),),
             {"packed": affine, "x_scale": normal(2, 3, 1).abs(), "bias": normal(40),
              "x_zero_point": torch.randint(-128, 128, (2, 3, 1), generator=g, dtype=torch.int32)}),
        Case("a given scale", (normal(5, 70),), {"packed": w, "x_scale": torch.tensor(0.02),
             "x_zero_point": torch.tensor(-20, dtype=torch.int32), "activation": "gelu_tanh"}),
        Case("gate, residual and a branch", (normal(2, 9, 70, dtype=half),),
             {"packed": w, "bias": normal(40), "activation": "gelu_tanh", "gate": normal(2, 40, dtype=half),
              "residual": normal(2, 9, 40, dtype=half), "lowrank": branch}),
        Case("gated", (normal(3, 64, dtype=half),),
             {"packed": pack_weight(normal(44, 64), gated=True), "bias": normal(44), "activation": "gelu",
              "residual": normal(3, 22)}),
        Case("nan and inf", (rough,), {"packed": w}),
        Case("one row, square", (normal(17),), {"packed": pack_weight(normal(17, 17))}),
        Case("no rows", (normal(0, 70),), {"packed": w}),
    ]  # fmt: skip
