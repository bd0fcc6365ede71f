# SPDX-License-Identifier: Apache-2.0
"""Scales, zero points and their tables: what the rooms that quantise element by element share."""

from __future__ import annotations

import torch
from torch import Tensor


def range_of(quant_min: int | None, quant_max: int, zero_point: Tensor | None) -> tuple[int, int]:
    """All that int8 holds with a zero point, as far down as up without one."""
    if quant_min is None:
        quant_min = -quant_max if zero_point is None else -quant_max - 1
    return quant_min, quant_max


def scale_and_zero(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, step: Tensor | None
) -> tuple[Tensor, ...]:
    """float32 scales and int64 zero points that broadcast to x, for the references."""
    zero = torch.zeros(1, dtype=torch.int64) if zero_point is None else zero_point.long()
    if step is None:
        return tuple(t.reshape(()) if t.numel() == 1 else t for t in (scale.float(), zero))
    rows = step.reshape(-1)
    shape = (-1, *(1,) * (x.dim() - 1)) if rows.numel() > 1 else ()
    return scale.float()[rows].view(shape), zero.expand(scale.shape)[rows].view(shape)
