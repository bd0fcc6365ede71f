# SPDX-License-Identifier: Apache-2.0
"""How each scheme quantises a weight and lays it out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch import Tensor

from fastdiff.quant._packing import E4M3_MAX, PANEL, PIECE, PackedWeight, in_slots, out_of_slots

LEVELS: Final = 127


class Format(NamedTuple):
    """``pack(w [N, K], scale, zero_point, symmetric, gated)`` and its inverse.

    Where there are ``groups``, sizes of groups along K, the default first, pack takes one as ``group=``.
    """

    pack: Callable[..., PackedWeight]
    unpack: Callable[[PackedWeight], Tensor]
    groups: tuple[int, ...] = ()


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
    for name, t in (("w", w), ("zero_point", zero_point)):
        if t is not None and (t.is_floating_point() or bool(((t < -LEVELS - 1) | (t > LEVELS)).any())):
            raise ValueError(f"fastdiff.pack_weight: with scale, {name} must be integers within -128 and 127")
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
    sums = placed.sum(1, dtype=torch.int32)
    zeros = None if z is None else in_slots(z, gated)
    return PackedWeight("int8", n, k, _byte_panels(placed), in_slots(s, gated), zeros, sums, gated)


def _byte_panels(placed: Tensor) -> Tensor:
    pieces = placed.shape[1] // PIECE
    return placed.view(-1, PANEL, pieces, PIECE // 4, 4).permute(0, 2, 3, 1, 4).contiguous()


def byte_rows(packed: PackedWeight) -> Tensor:
    """What :func:`pack_weight` put into panels of bytes, ``[N, K]``."""
    panels, pieces = packed.weight.shape[:2]
    placed = packed.weight.permute(0, 3, 1, 2, 4).reshape(panels * PANEL, pieces * PIECE)
    return out_of_slots(placed, packed.rows, packed.gated)[:, : packed.inner]


def _unpack_int8(packed: PackedWeight) -> Tensor:
    q = byte_rows(packed).float()
    if packed.zero_point is not None:
        q = q - out_of_slots(packed.zero_point, packed.rows, packed.gated)[:, None].float()
    return q * out_of_slots(packed.scale, packed.rows, packed.gated)[:, None]


# ---- int4: [slots / 16, K / 64, 8, 16, 4] --------------------------------------------------------------------------
# Byte i of a word has element i of eight neighbours along K in its low half and element 4 + i in its high half, plus 8:
# the two halves are quadruples of the int8 layout.


def quantize_groups(w: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Integers within −8 and 7 of w ``[N, groups, group]``, scale ``[N, groups]`` and, unless symmetric, zero point."""
    w = w.float()
    if symmetric:
        scale = w.abs().amax(2).clamp_min(2.0**-100) / 7
        return (w / scale[..., None]).round().clamp(-8, 7).to(torch.int8), scale, None
    lowest, highest = w.amin(2).clamp_max(0), w.amax(2).clamp_min(0)
    scale = (highest - lowest).clamp_min(2.0**-100) / 15
    zero = (-8 - lowest / scale).round()
    q = ((w / scale[..., None]).round() + zero[..., None]).clamp(-8, 7)
    return q.to(torch.int8), scale, zero


def _given_groups(
    w: Tensor, scale: Tensor, zero_point: Tensor | None, groups: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    if w.is_floating_point() or bool(((w < -8) | (w > 7)).any()):
        raise ValueError("fastdiff.pack_weight: with scale, w must be integers within -8 and 7")
    shape = (w.shape[0], groups)
    for name, t in (("scale", scale), ("zero_point", zero_point)):
        if t is not None and t.shape != shape:
            raise ValueError(
                f"fastdiff.pack_weight: {name} must have shape {list(shape)}, got {list(t.shape)}"
            )
    return w.to(torch.int8), scale.float(), None if zero_point is None else zero_point.float()


def _pack_int4(
    w: Tensor, scale: Tensor | None, zero_point: Tensor | None, symmetric: bool, gated: bool, *, group: int
) -> PackedWeight:
    n, k = w.shape
    groups = -(-k // group)
    if scale is None:
        filled = torch.nn.functional.pad(w, (0, groups * group - k)).view(n, groups, group)
        q, s, z = quantize_groups(filled, symmetric)
        q = q.flatten(1)[:, :k]
    else:
        q, s, z = _given_groups(w, scale, zero_point, groups)
    placed = torch.nn.functional.pad(in_slots(q, gated), (0, -k % PIECE)) + 8
    eights = placed.to(torch.uint8).view(-1, PANEL, placed.shape[1] // PIECE, PIECE // 8, 2, 4)
    panels = (eights[..., 0, :] | eights[..., 1, :] << 4).permute(0, 2, 3, 1, 4).contiguous()
    scales, zeros = (None if t is None else in_slots(t, gated).T.contiguous() for t in (s, z))
    assert scales is not None
    return PackedWeight("int4", n, k, panels, scales, zeros, gated=gated, group=group)


def _unpack_int4(packed: PackedWeight) -> Tensor:
    panels, pieces = packed.weight.shape[:2]
    eights = torch.stack((packed.weight & 15, packed.weight >> 4), -2).permute(0, 3, 1, 2, 4, 5)
    q = eights.reshape(panels * PANEL, pieces * PIECE)[:, : packed.inner].float() - 8

    def along(t: Tensor) -> Tensor:
        return t.T.repeat_interleave(packed.group, 1)[:, : packed.inner]

    w = (q if packed.zero_point is None else q - along(packed.zero_point)) * along(packed.scale)
    return out_of_slots(w, packed.rows, packed.gated)


# ---- bf16: [slots / 16, K / 2, 16, 2] ------------------------------------------------------------------------------


def _pack_bf16(
    w: Tensor, scale: Tensor | None, zero_point: Tensor | None, symmetric: bool, gated: bool
) -> PackedWeight:
    if not (w.is_floating_point() and symmetric and scale is None and zero_point is None):
        raise ValueError("fastdiff.pack_weight: bf16 takes a floating w and neither scale nor zero_point")
    n, k = w.shape
    placed = torch.nn.functional.pad(in_slots(w.bfloat16(), gated), (0, -k % PIECE))
    panels = placed.view(-1, PANEL, placed.shape[1] // 2, 2).transpose(1, 2).contiguous()
    return PackedWeight("bf16", n, k, panels, w.new_empty(0, dtype=torch.float32), gated=gated)


def _unpack_bf16(packed: PackedWeight) -> Tensor:
    placed = packed.weight.transpose(1, 2).flatten(2).flatten(0, 1)[:, : packed.inner]
    return out_of_slots(placed, packed.rows, packed.gated).float()


# ---- fp8: as int8, bytes of e4m3 -----------------------------------------------------------------------------------


def _pack_fp8(
    w: Tensor, scale: Tensor | None, zero_point: Tensor | None, symmetric: bool, gated: bool
) -> PackedWeight:
    """A row with NaN or infinity becomes zeros with the scale NaN: panels hold numbers."""
    if not symmetric or zero_point is not None or not w.is_floating_point():
        raise ValueError("fastdiff.pack_weight: fp8 takes a floating w and no zero_point")
    n, k = w.shape
    if w.dtype != torch.float8_e4m3fn:
        if scale is not None:
            raise ValueError(
                f"fastdiff.pack_weight: with scale, w must be float8_e4m3fn for fp8, got {w.dtype}"
            )
        w = w.float()
        scale = w.abs().amax(1).clamp_min(2.0**-100) / E4M3_MAX
        w = (w / scale[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    scale = torch.ones(1, device=w.device) if scale is None else scale.float().reshape(-1)
    if scale.numel() not in (1, n):
        raise ValueError(
            f"fastdiff.pack_weight: scale must have 1 element or {n}, got shape {list(scale.shape)}"
        )
    broken = w.float().isnan().any(1)
    scale = scale.expand(n).masked_fill(broken, float("nan"))
    codes = w.contiguous().view(torch.uint8).masked_fill(broken[:, None], 0)
    placed = torch.nn.functional.pad(in_slots(codes, gated), (0, -k % PIECE))
    return PackedWeight("fp8", n, k, _byte_panels(placed), in_slots(scale, gated), gated=gated)


def _unpack_fp8(packed: PackedWeight) -> Tensor:
    w = byte_rows(packed).contiguous().view(torch.float8_e4m3fn).float()
    return w * out_of_slots(packed.scale, packed.rows, packed.gated)[:, None]


FORMATS: Final[dict[str, Format]] = {
    "int8": Format(_pack_int8, _unpack_int8),
    "int4": Format(_pack_int4, _unpack_int4, groups=(64, 32, 128)),
    "bf16": Format(_pack_bf16, _unpack_bf16),
    "fp8": Format(_pack_fp8, _unpack_fp8),
}
