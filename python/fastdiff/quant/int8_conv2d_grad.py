# SPDX-License-Identifier: Apache-2.0
"""Gradients of int8_conv2d: a linear layer of patches, with channels last, but for the transposed convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from fastdiff.quant._linear_grad import Layer, Options, differentiable_linear
from fastdiff.quant._packing import PackedWeight


def differentiable_int8_conv2d(
    x: Tensor, packed: PackedWeight, bias: Tensor | None, *, residual: Tensor | None, **options: Any
) -> Tensor:
    """:func:`fastdiff.int8_conv2d` with gradients; x passes them on as if it were not rounded."""
    layer = Layer("int8_conv2d", _convolution, transposed=_transposed, rows=_channels_last)
    rest = None if residual is None else _channels_last(residual)
    return differentiable_linear(
        layer, _channels_last(x), packed, bias, residual=rest, lowrank=None, **options
    )


def _channels_last(t: Tensor) -> Tensor:
    """Of another rank it is left as it is, for the operator to refuse."""
    return t.movedim(1, -1) if t.dim() == 4 else t


def _channels_first(t: Tensor) -> Tensor:
    return t.movedim(-1, 1) if t.dim() == 4 else t


def _convolution(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None,
    *,
    residual: Tensor | None = None,
    lowrank: None = None,
    **options: Any,
) -> Tensor:
    """Of x, and residual, ``[B, H, W, C]``; there is no branch."""
    from fastdiff.quant.int8_conv2d import int8_conv2d

    rest = None if residual is None else _channels_first(residual)
    return int8_conv2d(_channels_first(x), packed, bias, residual=rest, **options)


def _transposed(
    dh: Tensor, packed: PackedWeight, shape: torch.Size, dtype: torch.dtype, options: Options
) -> Tensor:
    samples, height, width, channels = shape
    w = packed.dequantize().to(dtype).view(packed.rows, *options["kernel"], channels).permute(0, 3, 1, 2)
    dx = conv2d_input(
        (samples, channels, height, width), w, dh.to(dtype).permute(0, 3, 1, 2),
        options["stride"], options["padding"], options["dilation"],
    )  # fmt: skip
    return dx.permute(0, 2, 3, 1)  # type: ignore[no-any-return]
