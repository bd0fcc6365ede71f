# SPDX-License-Identifier: Apache-2.0
"""Gradients of int8_linear: those of the layer of floats, straight through the rounding of x."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.quant._linear_grad import Layer, Options, differentiable_linear


def differentiable_int8_linear(*arguments: Any, **options: Any) -> Tensor:
    """:func:`fastdiff.int8_linear` with gradients; x passes them on as if it were not rounded."""
    from fastdiff.quant.int8_linear import int8_linear

    return differentiable_linear(Layer("int8_linear", int8_linear, _decoded), *arguments, **options)


def _decoded(x: Tensor, options: Options) -> Tensor:
    if x.dtype != torch.int8:
        return x.float()
    x_scale, x_zero_point = options["x_scale"], options["x_zero_point"]
    shifted = x.float() if x_zero_point is None else x.float() - _of_rows(x_zero_point, x)
    return shifted * _of_rows(x_scale, x)


def _of_rows(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(*x.shape[:-1], 1) if t.numel() > 1 else t.reshape(1)
