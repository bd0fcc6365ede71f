# SPDX-License-Identifier: Apache-2.0
"""How each scheme quantises a weight and lays it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastdiff.quant._packing import PANEL, PIECE, PackedWeight, in_slots, out_of_slots

LEVELS: Final = 127


class Format(NamedTuple):
    """``pack(w [N, K], scale, zero_point, symmetric, gated)`` and its inverse."""

    pack: Callable[[Tensor, Tensor | None, Tensor | None, bool, bool], PackedWeight]
    unpack: Callable[[PackedWeight], Tensor]


# ---- int8: [slots / 16, K / 64, 16, 16, 4] -------------------------------------------------------------------------


def quantize_rows(w: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Integers ``[N, K]`` within −127 and 127, scale ``[N]`` and, unless symmetric, zero point ``[N]`` int32."""
    w = w.float()
    if symmetric:
        scale = w.abs().amax(1).clamp_min(2.0**-100) / LEVELS
        return (w / scale[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8), scale, None
    lowest, highest = w.amin(1).clamp_max(0), w.amax(1).clamp_min(0)
    scale = (highest - lowest).clamp_min(2.0**-100) / (2 * LEVELS)
    zero = (-LEVELS - lowest / scale).round()
    q = ((w / scale[:, None]).round() + zero[:, None]).clamp(-LEVELS, LEVELS)
    return q.to(torch.int8), scale, zero.to(torch.int32)


def _given(w: Tensor, scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if w.is_floating_point() or bool((w.abs() > LEVELS).any()):
        raise ValueError("fastdiff.pack_weight: with scale, w must be integers within -127 and 127")
    for name, t in (("scale", scale), ("zero_point", zero_point)):
        if t is not None and t.shape != w.shape[:1]:
            raise ValueError(
                f"fastdiff.pack_weight: {name} must have shape [{w.shape[0]}], got {list(t.shape)}"
            )
    return w.to(torch.int8), scale.float(), None if zero_point is None else zero_point.to(torch.int32)


def _pack_int8(
    w: Tensor, scale: Tensor | None, zero_point: Tensor | None, symmetric: bool, gated: bool
) -> PackedWeight:
    q, s, z = quantize_rows(w, symmetric) if scale is None else _given(w, scale, zero_point)
    n, k = q.shape
    placed = torch.nn.functional.pad(in_slots(q, gated), (0, -k % PIECE))
    panels = (
        placed.view(-1, PANEL, placed.shape[1] // PIECE, PIECE // 4, 4).permute(0, 2, 3, 1, 4).contiguous()
    )
    sums = placed.sum(1, dtype=torch.int32)
    zeros = None if z is None else in_slots(z, gated)
    return PackedWeight("int8", n, k, panels, in_slots(s, gated), zeros, sums, gated)


def int8_rows(packed: PackedWeight) -> Tensor:
    """The integers ``[N, K]`` of a packed weight."""
    panels, pieces = packed.weight.shape[:2]
    placed = packed.weight.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, pieces * PIECE)
    return out_of_slots(placed, packed.rows, packed.gated)[:, : packed.inner]


def _unpack_int8(packed: PackedWeight) -> Tensor:
    q = int8_rows(packed).float()
    if packed.zero_point is not None:
        q = q - out_of_slots(packed.zero_point, packed.rows, packed.gated)[:, None].float()
    return q * out_of_slots(packed.scale, packed.rows, packed.gated)[:, None]


FORMATS: Final[dict[str, Format]] = {"int8": Format(_pack_int8, _unpack_int8)}
