# SPDX-License-Identifier: Apache-2.0
"""weight_linear: floating activations, and a weight of few bits that is decoded on the way to the products."""

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
from fastdiff.quant._packing import E4M3_MAX, SCHEMES, PackedWeight, pack_weight

if TYPE_CHECKING:
    from fastdiff._case import Case

DOUBLES: Final = False
IN_PLACE: Final = False  # over `residual` it is, over x it cannot be
SAME_BITS: Final = False  # CUDA adds in the order of its tensor cores

_ARGUMENTS = (
    f"Tensor x, Tensor? x_scale, Tensor weight, Tensor? scale, Tensor? zero_point, {SCHEMA}, int columns, int scheme, "
    f"int group, bool round_x, {SETTINGS}, int dtype"
)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    *_, columns, _, _, _, _, gated, code = arguments
    return fake_linear(x, columns, gated, code)


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::weight_linear: out must be on {x.device} like x, got {result.device}")


_native.define(f"weight_linear({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"weight_linear.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def weight_linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    round_x: bool = False,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    lowrank: LowRank | tuple[Tensor, ...] | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""A linear layer of floating activations and a packed weight, with what follows it, in one call:

    .. math::
        h = \sum_k x_k \hat w_k + b + U (\gamma \odot (V^\top x)), \qquad
        y = \text{residual} + \text{gate} \odot \text{act}(h)

    with :math:`\hat w` = ``packed.dequantize()``, and with :math:`\text{act}(h) = h' \, \text{act}(h'')` for the two
    halves of the columns if the weight was packed with ``gated=True`` (GEGLU, SwiGLU). The weight is decoded on the
    way; nothing of its full size is ever written. :func:`int8_weight_linear`, :func:`int4_linear`,
    :func:`bf16_linear`, :func:`fp8_weight_linear` and, with rounded activations, :func:`fp8_linear` are the same for
    one scheme each.

    Activations and weights are widened to float32, as are products and sums. Where a CPU has the tiles of AMX, rows of
    bfloat16 stay as they are if there are more than 4, and weights are rounded to it: exact for e4m3 and for integers
    with a scale for each row, a relative error up to 2⁻⁹ for each weight of ``"int4"``. On CUDA rows of 16 bits stay as
    they are, and q − zero_point is rounded to their dtype: exact for whole numbers up to 256.

    With ``round_x`` both factors are e4m3: :math:`x_k = s q_k` with a scale s for each row, max|x| / 448 unless it is
    given, and :math:`q_k` the nearest number of e4m3 to :math:`x_k / s`, not beyond ±448. The tensor cores of Ada, and
    of Hopper from 128 rows on, multiply them twice as fast as 16 bits, and keep 13 bits behind the point of the largest
    product of 128; other CUDA devices, and fewer rows, multiply the same numbers as float16. A row with NaN, or of
    infinite range, gives NaN. A low-rank branch reads x as it was.

    Args:
        x: ``[..., K]`` float32, float16 or bfloat16; with ``round_x`` also float8_e4m3fn, with its scale. Any strides.
        packed: the weight, from :func:`pack_weight` with scheme ``"int8"``, ``"int4"``, ``"bf16"`` or ``"fp8"``.
        x_scale: s for ``round_x``, float32: one element, or one for each row of x (``[..., 1]``).
        round_x: to e4m3; for ``"fp8"``.
        bias: ``[N]``, as are gate, residual and the branch: float32, float16 or bfloat16.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or None.
        gate: ``[outputs]``, or ``[B or 1, outputs]`` for x ``[B, …, K]``: adaLN's gate, DiffFit's γ.
        residual: ``[..., outputs]``.
        lowrank: :class:`LowRank`, or ``(down, up)``, or ``(down, up, gates)``: added before the activation function.
        dtype: of the result; default: that of x, float32 for float8_e4m3fn.
        out: where to write, ``[..., outputs]``; may be exactly the residual, shares no memory with the others.

    Returns:
        y ``[..., outputs]``, or ``out``, rounded once.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        ValueError: another scheme, or an unknown activation.
        NotImplementedError: gradients are asked for with ``out=``, or with respect to ``x_scale`` or bytes of e4m3.

    Gradients, of any order: with respect to x, bias, gate, residual and the branch, each in its tensor's dtype. The
    packed weight is frozen and has none; x passes its gradient on as if ``round_x`` did not round it. Nothing of the
    size of y is kept: where an activation function, a gated weight or the gate's gradient needs h, the layer is called
    once more; h and its gradient are float32. :math:`dh \, \hat w` is a product of :func:`torch.matmul` in float32, on
    CUDA in the dtype of x, with 1024 of the K columns of the weight decoded at a time.

    The same bits on a CPU for any instruction set but AMX and any number of threads, and for a row whatever the others
    are; with AMX, whatever the others are if there are more than 4, or up to 4.

    Source: weight-only quantisation with groups as in GPTQ and AWQ; e4m3: FP8 Formats for Deep Learning; branches:
    LoRA, SPM (One-dimensional Adapter to Rule Them All), SVDQuant.
    """
    if wants_gradients(x, bias, gate, residual, *(lowrank or ()), x_scale, out):
        from fastdiff.quant.weight_linear_grad import differentiable_weight_linear

        return differentiable_weight_linear(
            x, packed, bias, gate=gate, residual=residual, lowrank=lowrank, activation=activation, dtype=dtype,
            out=out, x_scale=x_scale, round_x=round_x,
        )  # fmt: skip
    if packed.scheme not in SCHEMES:
        raise ValueError(
            f"fastdiff.weight_linear: packed must have a scheme of {', '.join(SCHEMES)}, got {packed.scheme}"
        )
    if x.shape[-1:] != (packed.inner,):
        raise RuntimeError(
            f"fastdiff::weight_linear: x must have shape [..., {packed.inner}], got {list(x.shape)}"
        )
    if x.dtype == torch.float8_e4m3fn:
        x = x.view(torch.uint8)
    arguments = (
        x, per_row(x_scale), packed.weight, packed.scale if packed.scale.numel() else None, packed.zero_point, bias,
        gate, residual, *branch_of(lowrank), packed.rows, SCHEMES.index(packed.scheme), packed.group, round_x,
        activation_code("weight_linear", activation), packed.gated, dtype_code("weight_linear", dtype),
    )  # fmt: skip
    if out is None:
        y: Tensor = torch.ops.fastdiff.weight_linear.default(*arguments)
        return y
    torch.ops.fastdiff.weight_linear.out(*arguments, result=out)
    _native.mark_written([out])
    return out


# ---- reference -------------------------------------------------------------------------------------------------


def rounded(x: Tensor, x_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """q and s ``[rows, …]`` of activations, float64, by the float32 operations that kernels do."""
    rows = x.float().reshape(-1, x.shape[-1])
    if x_scale is None:
        largest = rows.abs().amax(1, keepdim=True).clamp_min(2.0**-100)
        scale, inverse = largest / E4M3_MAX, torch.full((1, 1), E4M3_MAX) / largest
    else:
        scale = x_scale.reshape(-1, 1).expand(len(rows), 1)
        inverse = torch.ones(1, 1) if x.dtype == torch.float8_e4m3fn else 1 / scale
    q = (rows * inverse).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).double()
    broken = q.isnan().any(1, keepdim=True)
    return q.masked_fill(broken, 0), scale.double().masked_fill(broken, float("nan"))


def reference(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    round_x: bool = False,
    dtype: torch.dtype | None = None,
    **epilogue: Any,
) -> Tensor:
    """:func:`weight_linear` in plain PyTorch: float64 with the dequantised weight, rounded at the end."""
    own = factor = x.double()
    if round_x:
        q, scale = rounded(x, x_scale)
        factor = (q * scale).view(x.shape)
        own = factor if x.dtype == torch.float8_e4m3fn else own
    y = finished(factor @ packed.dequantize().double().T, own, packed, bias=bias, **epilogue)
    floating = torch.float32 if x.dtype == torch.float8_e4m3fn else x.dtype
    return result_like(x, packed.outputs, dtype or floating).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def tolerance(
    x: Tensor, packed: PackedWeight, bias: Tensor | None = None, **options: Any
) -> dict[str, float]:
    """float32; where the tiles of AMX multiply, weights of int4 are rounded to bfloat16: of a value and of its gate."""
    is_rounded = packed.scheme == "int4" and x.dtype == torch.bfloat16
    terms = (2 if packed.gated else 1) * 2**16 if is_rounded else 16
    if x.dtype == torch.float8_e4m3fn:
        q, scale = rounded(x, options["x_scale"])
        x = (q * scale).view(x.shape)
    return {"scale": magnitude(x, packed, bias, **options), "terms": terms}


def uses_tiles(x: Tensor, *_: Any, round_x: bool = False, **__: Any) -> bool:
    """Of bfloat16 and of e4m3; up to 4 rows are left to registers, with the bits of AVX-512."""
    return x.dtype == torch.bfloat16 or round_x


def dlpack_arguments(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    lowrank: LowRank | tuple[Tensor, ...] | None = None,
    x_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    down, up, gates = branch_of(lowrank)
    rows, samples = x[..., 0].numel(), x.shape[0] if x.dim() > 2 else 1
    rank = 0 if down is None else down.shape[0]
    size = _C.weight_linear_scratch(rows, packed.inner, packed.rows, rank=rank, samples=samples)
    return {
        "x": x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x, "x_scale": per_row(x_scale),
        "weight": packed.weight, "scale": packed.scale if packed.scale.numel() else None,
        "zero_point": packed.zero_point, "columns": packed.rows, "scheme": SCHEMES.index(packed.scheme),
        "group": packed.group, "gated": packed.gated, "bias": bias, "down": down, "up": up, "gates": gates,
        "activation": activation_code("weight_linear", activation),
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

    half, single = torch.bfloat16, torch.float32
    w = normal(40, 70)
    int8, int4, bf16, fp8 = (pack_weight(w, scheme) for scheme in SCHEMES)
    rough = normal(4, 70)
    rough[1, 3], rough[2, 5] = float("nan"), float("inf")
    branch = (normal(3, 70, dtype=half), normal(40, 3, dtype=half), normal(2, 3))
    return [
        *(Case(f"int4, {str(t)[6:]}", (normal(2, 9, 70, dtype=t),),
               {"packed": int4, "bias": normal(40, dtype=t), "activation": "gelu"})
          for t in (single, half, torch.float16)),
        Case("int8", (normal(3, 70),), {"packed": int8, "activation": "silu"}),
        Case("int8 with zero points", (normal(2, 9, 70, dtype=half),),
             {"packed": pack_weight(w + 0.5, symmetric=False), "dtype": single}),
        Case("int4 with zero points", (normal(13, 70),),
             {"packed": pack_weight(w + 0.5, "int4", group=32, symmetric=False), "bias": normal(40)}),
        Case("int4, one row, groups of 128", (normal(1, 600, dtype=torch.float16),),
             {"packed": pack_weight(normal(40, 600), "int4", group=128)}),
        Case("bf16, gate, residual and a branch", (normal(2, 9, 70, dtype=half),),
             {"packed": bf16, "bias": normal(40), "activation": "gelu_tanh", "gate": normal(2, 40, dtype=half),
              "residual": normal(2, 9, 40, dtype=half), "lowrank": branch}),
        Case("gated", (normal(3, 64, dtype=half),),
             {"packed": pack_weight(normal(44, 64), "int4", gated=True), "bias": normal(44), "activation": "gelu",
              "residual": normal(3, 22)}),
        Case("fp8", (normal(18, 70, dtype=half),), {"packed": fp8, "activation": "silu"}),
        Case("fp8, rounded", (normal(2, 9, 70),), {"packed": fp8, "round_x": True, "bias": normal(40),
             "residual": normal(2, 9, 40), "lowrank": branch}),
        Case("fp8, by a scale", (normal(3, 300, dtype=torch.float16),),
             {"packed": pack_weight(normal(40, 300), "fp8"), "round_x": True, "x_scale": torch.tensor(0.01)}),
        Case("fp8, bytes", (normal(2, 3, 70).mul(9).to(torch.float8_e4m3fn),),
             {"packed": fp8, "round_x": True, "x_scale": normal(2, 3, 1).abs(), "lowrank": branch}),
        Case("nan and inf", (rough,), {"packed": fp8, "round_x": True}),
        Case("one row, square", (normal(17),), {"packed": pack_weight(normal(17, 17), "bf16")}),
        Case("no rows", (normal(0, 70),), {"packed": int4}),
    ]  # fmt: skip
