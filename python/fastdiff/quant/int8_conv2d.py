# SPDX-License-Identifier: Apache-2.0
"""int8_conv2d: convolutions of int8 with exact sums, from images that are quantised on the way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.quant._epilogue import (
    SETTINGS,
    activation_code,
    dtype_code,
    finished,
    result_dtype,
    wants_gradients,
)
from fastdiff.quant._formats import byte_rows
from fastdiff.quant._packing import PackedWeight, out_of_slots, pack_weight
from fastdiff.quant.int8_linear import quantized

if TYPE_CHECKING:
    from fastdiff._case import Case

DOUBLES: Final = False
IN_PLACE: Final = False  # over `residual` it is, over x it cannot be
INTEGERS: Final = True

Pair = int | tuple[int, int]

_ARGUMENTS = (
    "Tensor x, Tensor? x_scale, Tensor? x_zero_point, Tensor weight, Tensor scale, Tensor column_sum, "
    "Tensor? zero_point, Tensor? bias, Tensor? gate, Tensor? residual, int columns, int[] kernel, int[] stride, "
    f"int[] padding, int[] dilation, int bits, {SETTINGS}, int dtype"
)


def _fake(x: Tensor, *arguments: Any) -> Tensor:
    *_, columns, kernel, stride, padding, dilation, _, _, gated, code = arguments
    outputs = columns // 2 if gated else columns
    return _empty(x, outputs, kernel, stride, padding, dilation, result_dtype(x, code))


def _empty(
    x: Tensor, outputs: int, kernel: Any, stride: Any, padding: Any, dilation: Any, dtype: torch.dtype
) -> Tensor:
    h, w = (
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    )
    strides = (h * w * outputs, 1, w * outputs, outputs)  # channels last
    return x.new_empty_strided((x.shape[0], outputs, h, w), strides, dtype=dtype)


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::int8_conv2d: out must be on {x.device} like x, got {result.device}")


_native.define(f"int8_conv2d({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"int8_conv2d.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def int8_conv2d(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    kernel: Pair | None = None,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    activation: str | None = None,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""A convolution of int8 weights and int8 activations, with what follows it, in one call:

    .. math::
        h_{bnij} = s_x s_w \sum_{uvc} (q_x - z_x)_{b,c,\,iS+uD-P,\,jS+vD-P} (q_w - z_w)_{nuvc} + b_n, \qquad
        y = \text{residual} + \text{gate} \odot \text{act}(h)

    with stride S, padding P and dilation D, and :math:`\text{act}(h) = h' \, \text{act}(h'')` for the two halves of the
    channels if the weight was packed with ``gated=True``. The sums of integers are exact.

    x in floating point is quantised here, each sample by its own range: with 8 bits to −127 … 127, scale max|x| / 127;
    with 7 bits to 0 … 127 with a zero point, scale (max(x, 0) − min(x, 0)) / 127, which CPUs without VNNI multiply
    1.4 times as fast. With ``x_scale`` it is quantised by that scale instead. Around x there are zeros, quantised as x
    is. A sample with NaN, or of infinite range, gives NaN.

    Args:
        x: ``[B, C, H, W]`` float32, float16 or bfloat16; or int8, with its scale. Any strides; channels last are read
            fastest.
        packed: the weight ``[N, C, kh, kw]``, from :func:`pack_weight` with scheme ``"int8"``; C kh kw up to 33,024.
        bias: ``[N]``, as are gate and residual: float32, float16 or bfloat16.
        stride: one number, or one for rows and one for columns; so are the next two.
        padding: rows above and below, columns left and right.
        dilation: rows, columns from one element of the kernel to the next.
        kernel: (kh, kw), of a weight that was packed as a matrix ``[N, kh kw C]``; default: what ``packed`` says.
        x_scale: float32, one element or one for each sample of x.
        x_zero_point: int32, likewise: x stands for x_scale · (q − x_zero_point); q and it in −128 … 127.
        bits: 8 or 7, of activations that are quantised here.
        activation: ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or None.
        gate: ``[outputs]``, or ``[B or 1, outputs]``.
        residual: ``[B, outputs, OH, OW]``, any strides.
        dtype: of the result; default: that of x, float32 for int8.
        out: where to write, in any layout; may be exactly the residual, shares no memory with the others.

    Returns:
        y ``[B, outputs, OH, OW]`` in channels_last, whatever the layout of x, or ``out``. OH is
        (H + 2 P − D (kh − 1) − 1) // S + 1, and OW likewise. Arithmetic behind the sums is float32, rounded once.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        ValueError: another scheme, an unknown activation, or no kernel.
        NotImplementedError: gradients are asked for with ``out=``, or with respect to ``x_scale``.

    Gradients, of any order, as those of :func:`int8_linear`; that of x is a transposed convolution in float32, on CUDA
    in the dtype of x, with the whole weight decoded.

    All channels are one group, and there is no low-rank branch: without an activation function, its result can be the
    ``residual``. The same bits on a CPU for any instruction set and any number of threads, and on CUDA.

    Source: affine form of Post-training Quantization on Diffusion Models (PTQ4DM), quant_layer.py.
    """
    if packed.scheme != "int8":
        raise ValueError(f"fastdiff.int8_conv2d: packed must have the scheme int8, got {packed.scheme}")
    size = _kernel_of(packed, kernel)
    if x.dim() != 4 or x.shape[1] * size[0] * size[1] != packed.inner:
        channels = packed.inner / (size[0] * size[1])
        raise RuntimeError(
            f"fastdiff::int8_conv2d: x must have shape [B, {channels:g}, H, W] for kernels {list(size)} of "
            f"{packed.inner} elements, got {list(x.shape)}"
        )
    if wants_gradients(x, bias, gate, residual, x_scale, out):
        from fastdiff.quant.int8_conv2d_grad import differentiable_int8_conv2d

        return differentiable_int8_conv2d(
            x, packed, bias, gate=gate, residual=residual, activation=activation, dtype=dtype, out=out,
            stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation), kernel=size, x_scale=x_scale,
            x_zero_point=x_zero_point, bits=bits,
        )  # fmt: skip
    arguments = (
        x, _flat(x_scale), _flat(x_zero_point), packed.weight, packed.scale, packed.column_sum, packed.zero_point,
        bias, gate, residual, packed.rows, size, _pair(stride), _pair(padding), _pair(dilation), bits,
        activation_code("int8_conv2d", activation), packed.gated, dtype_code("int8_conv2d", dtype),
    )  # fmt: skip
    if out is None:
        y: Tensor = torch.ops.fastdiff.int8_conv2d.default(*arguments)
        return y
    torch.ops.fastdiff.int8_conv2d.out(*arguments, result=out)
    _native.mark_written([out])
    return out


def _kernel_of(packed: PackedWeight, kernel: Pair | None) -> tuple[int, int]:
    if kernel is None and packed.kernel is None:
        raise ValueError(
            "fastdiff.int8_conv2d: kernel must be given for a weight that was packed as a matrix"
        )
    size = packed.kernel if kernel is None else _pair(kernel)
    assert size is not None
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"fastdiff.int8_conv2d: kernel must be positive, got {list(size)}")
    return size


def _pair(n: Pair) -> tuple[int, int]:
    return (n, n) if isinstance(n, int) else n


def _flat(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.reshape(-1)


# ---- reference -------------------------------------------------------------------------------------------------


def _convolved(
    x: Tensor,
    w: Tensor,
    packed: PackedWeight,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    kernel: Pair | None,
) -> Tensor:
    """``[B, OH, OW, N]`` of float64 x ``[B, C, H, W]`` and w ``[N, K]``."""
    weight = w.view(len(w), *_kernel_of(packed, kernel), -1).permute(0, 3, 1, 2)
    y = torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation)
    return y.permute(0, 2, 3, 1)


def _dequantized(
    x: Tensor, x_scale: Tensor | None, x_zero_point: Tensor | None, bits: int
) -> tuple[Tensor, Tensor]:
    """q − z ``[B, C, H, W]`` and scale ``[B or 1, 1]`` as float64."""
    q, scale, zero = quantized(x.flatten(1), x_scale, x_zero_point, bits)
    return (q.double() - zero).view(x.shape), scale.double()


def reference(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    kernel: Pair | None = None,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    dtype: torch.dtype | None = None,
    residual: Tensor | None = None,
    **epilogue: Any,
) -> Tensor:
    """:func:`int8_conv2d` in plain PyTorch: float32 up to the integers, then float64; rounded at the end."""
    q, scale = _dequantized(x, x_scale, x_zero_point, bits)
    w = byte_rows(packed).double()
    if packed.zero_point is not None:
        w = w - out_of_slots(packed.zero_point, packed.rows, packed.gated)[:, None]
    sums = _convolved(q, w, packed, stride, padding, dilation, kernel) * scale.view(-1, 1, 1, 1)
    h = sums * out_of_slots(packed.scale, packed.rows, packed.gated).double()
    rest = None if residual is None else residual.permute(0, 2, 3, 1)
    y = finished(h, h, packed, bias=bias, residual=rest, **epilogue).permute(0, 3, 1, 2)
    return y.to(
        dtype or (x.dtype if x.is_floating_point() else torch.float32), memory_format=torch.channels_last
    )


# ---- what tests need to know -----------------------------------------------------------------------------------


def tolerance(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    kernel: Pair | None = None,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    **_: Any,
) -> dict[str, float]:
    """The sums are exact; what is added to them, and the activation function, is float32."""
    q, scale = _dequantized(
        x.nan_to_num(0, 0, 0) if x.is_floating_point() else x, x_scale, x_zero_point, bits
    )
    real = (q * scale.view(-1, 1, 1, 1)).abs()
    bounds = [None if t is None else t.double().abs() for t in (bias, gate, residual)]
    h = _convolved(real, packed.dequantize().double().abs(), packed, stride, padding, dilation, kernel)
    rest = None if bounds[2] is None else bounds[2].permute(0, 2, 3, 1)
    y = finished(h, h, packed, bias=bounds[0], gate=bounds[1], residual=rest)
    return {"scale": max(1.0, float(y.max())) if y.numel() else 1.0, "terms": 16}


def dlpack_arguments(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    kernel: Pair | None = None,
    activation: str | None = None,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    size, strides, around, apart = _kernel_of(packed, kernel), _pair(stride), _pair(padding), _pair(dilation)
    y = _empty(x, packed.outputs, size, strides, around, apart, torch.int8)
    scratch = _C.int8_conv2d_scratch(tuple(x.shape), tuple(y.shape), packed.rows, around)
    return {
        "x": x, "weight": packed.weight, "scale": packed.scale, "column_sum": packed.column_sum,
        "columns": packed.rows, "zero_point": packed.zero_point, "gated": packed.gated, "bias": bias,
        "kernel": size, "strides": strides, "padding": around, "dilation": apart,
        "x_scale": _flat(x_scale), "x_zero_point": _flat(x_zero_point),
        "activation": activation_code("int8_conv2d", activation),
        "scratch": torch.empty(scratch, dtype=torch.uint8, device=x.device), **options,
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

    def last(t: Tensor) -> Tensor:
        return t.to(memory_format=torch.channels_last)

    half = torch.bfloat16
    w, affine = pack_weight(normal(20, 17, 3, 3)), pack_weight(normal(20, 17, 3, 3) + 0.5, symmetric=False)
    wide, point = pack_weight(normal(20, 16, 3, 3)), pack_weight(normal(33, 64, 1, 1))
    rough = normal(2, 17, 5, 4)
    rough[1, 3, 2, 1] = float("nan")
    return [
        Case("8 bits", (normal(2, 17, 6, 7),),
             {"packed": w, "bias": normal(20), "padding": 1, "activation": "silu"}),
        *(Case(f"8 bits, channels last, {str(t)[6:]}", (last(normal(2, 16, 6, 5, dtype=t)),),
               {"packed": wide, "bias": normal(20, dtype=t), "padding": 1}) for t in (half, torch.float16)),
        Case("7 bits", (normal(1, 17, 6, 7),), {"packed": w, "padding": (0, 2), "bits": 7}),
        Case("7 bits, affine weight", (last(normal(2, 17, 5, 6, dtype=half)),),
             {"packed": affine, "bits": 7, "padding": 1, "stride": 2, "dtype": torch.float32}),
        Case("int8 with zero points", (integers(2, 16, 6, 5),),
             {"packed": pack_weight(normal(20, 16, 3, 2) + 0.5, symmetric=False), "padding": 1, "dilation": (1, 2),
              "x_scale": normal(2).abs(), "bias": normal(20),
              "x_zero_point": torch.randint(-128, 128, (2,), generator=g, dtype=torch.int32)}),
        Case("a given scale", (normal(1, 3, 7, 6),),
             {"packed": pack_weight(normal(5, 27)), "kernel": 3, "x_scale": torch.tensor(0.02), "dilation": 2,
              "x_zero_point": torch.tensor(-20, dtype=torch.int32), "padding": 2, "activation": "gelu"}),
        Case("1 by 1, gate and residual", (last(normal(2, 64, 5, 4, dtype=half)),),
             {"packed": point, "bias": normal(33), "gate": normal(2, 33, dtype=half), "activation": "gelu_tanh",
              "residual": normal(2, 33, 5, 4, dtype=half)}),
        Case("gated", (normal(1, 4, 5, 5),),
             {"packed": pack_weight(normal(12, 4, 2, 2), gated=True), "bias": normal(12), "activation": "silu"}),
        Case("one channel", (normal(2, 1, 9, 8),), {"packed": pack_weight(normal(3, 1, 5, 3)), "stride": (2, 1)}),
        Case("nan", (rough,), {"packed": w}),
        Case("no samples", (normal(0, 17, 4, 4),), {"packed": w}),
    ]  # fmt: skip
