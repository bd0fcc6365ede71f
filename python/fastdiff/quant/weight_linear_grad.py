# SPDX-License-Identifier: Apache-2.0
"""Gradients of weight_linear: to everything but the packed weight, which is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff.quant._linear_grad import Layer, Options, differentiable_linear


def differentiable_weight_linear(*arguments: Any, **options: Any) -> Tensor:
    """:func:`fastdiff.weight_linear` with gradients; x passes them on as if it were not rounded."""
    from fastdiff.quant.weight_linear import weight_linear

    return differentiable_linear(Layer("weight_linear", weight_linear, _decoded), *arguments, **options)


def _decoded(x: Tensor, options: Options) -> Tensor:
    if x.dtype != torch.float8_e4m3fn:
        return x.float()
    scale: Tensor = options["x_scale"].reshape(-1)
    return x.float() * (scale if scale.numel() == 1 else scale.view(*x.shape[:-1], 1))
