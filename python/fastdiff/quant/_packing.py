# SPDX-License-Identifier: Apache-2.0
"""Weights packed once: cut into panels of 16 columns and pieces along K, the same for every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from torch import Tensor

PANEL: Final = 16
PIECE: Final = 64
VERSION: Final = 1
E4M3_MAX: Final = 448.0
SCHEMES: Final = ("int8", "int4", "bf16", "fp8")
"""In the order of the numbers that a saved weight and the schema of weight_linear have."""


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight ``[N, K]`` of a linear layer as :func:`pack_weight` lays it out.

    Attributes:
        scheme: how its elements are stored, one of :data:`SCHEMES`.
        rows: N, the columns of the product; of a gated layer both halves.
        inner: K.
        gated: panels of the two halves of the rows alternate.
        group: elements along K that share a scale; 0: all of them.
        weight: ``[slots / 16, …]``, the panels: docs/quant.md has the layout of each scheme.
        scale: float32 ``[slots]``, or ``[ceil(K / group), slots]``; without elements where nothing is scaled.
        zero_point: int32 or float32 of the shape of scale, or None: all 0.
        column_sum: int32 ``[slots]``, the sums of the stored integers along K; None where no zero point can ask for it.
        kernel: (kh, kw) of a convolution's weight, whose K is in the order of (kh, kw, C); None: of another layer.

    Slots are the rows in the order of the panels, filled up to a multiple of 16 with rows of zeros.
    """

    scheme: str
    rows: int
    inner: int
    weight: Tensor
    scale: Tensor
    zero_point: Tensor | None = None
    column_sum: Tensor | None = None
    gated: bool = False
    group: int = 0
    kernel: tuple[int, int] | None = None

    def to(self, device: torch.device | str) -> PackedWeight:
        """The same weight on another device."""
        return self._changed(lambda t: t.to(device))

    def with_tensors(self, tensors: Mapping[str, Tensor | None]) -> PackedWeight:
        """The same form with tensors of these names, such as a module's buffers; others are ignored."""
        replaced: dict[str, Any] = {name: tensors[name] for name in self.tensors()}
        return replace(self, **replaced)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> PackedWeight:
        changed: dict[str, Any] = {name: change(t) for name, t in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        """All that it holds, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def outputs(self) -> int:
        """The columns of the layer's result: half of the rows if it is gated."""
        return self.rows // 2 if self.gated else self.rows

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(t.nbytes for t in self.tensors().values())

    def dequantize(self) -> Tensor:
        """float32 ``[N, K]``: the numbers that the kernels multiply with, rows in their own order."""
        from fastdiff.quant._formats import FORMATS

        return FORMATS[self.scheme].unpack(self)

    def columns(self, first: int, last: int) -> PackedWeight:
        """The same rows, of their elements along K those from first, a multiple of 128, to last or the end.

        Raises:
            ValueError: first is no such multiple.
        """
        if first % 128:
            raise ValueError(f"fastdiff.PackedWeight.columns: first must be a multiple of 128, got {first}")
        last = min(last, self.inner)
        step = 2 if self.scheme == "bf16" else PIECE
        weight = self.weight[:, first // step : -(-last // step)]
        scale, zero_point = self.scale, self.zero_point
        if self.group:
            groups = slice(first // self.group, -(-last // self.group))
            scale, zero_point = scale[groups], None if zero_point is None else zero_point[groups]
        return replace(
            self, inner=last - first, weight=weight, scale=scale, zero_point=zero_point, column_sum=None
        )

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Everything as tensors, for safetensors; :meth:`from_state_dict` reads it."""
        layer = [self.rows, self.inner, int(self.gated), self.group, *(self.kernel or (0, 0))]
        numbers = [VERSION, SCHEMES.index(self.scheme), *layer]
        return {f"{prefix}{name}": t for name, t in self.tensors().items()} | {
            f"{prefix}format": torch.tensor(numbers)
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], prefix: str = "") -> PackedWeight:
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: another version or an unknown scheme.
            KeyError: a tensor is missing.
        """
        version, scheme, rows, inner, gated, group, height, width = state[f"{prefix}format"].tolist()
        if version != VERSION or not 0 <= scheme < len(SCHEMES):
            raise ValueError(
                f"fastdiff.PackedWeight: {prefix}format must be version {VERSION} with a scheme below {len(SCHEMES)}, "
                f"got version {version}, scheme {scheme}"
            )
        return cls(
            SCHEMES[scheme], rows, inner, state[f"{prefix}weight"], state[f"{prefix}scale"],
            state.get(f"{prefix}zero_point"), state.get(f"{prefix}column_sum"), bool(gated), group,
            (height, width) if height else None,
        )  # fmt: skip


def pack_weight(
    w: Tensor,
    scheme: str = "int8",
    *,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    symmetric: bool = True,
    gated: bool = False,
    group: int | None = None,
) -> PackedWeight:
    r"""Quantise a weight and lay it out for the kernels, once.

    Args:
        w: ``[N, K]`` floating, or a convolution's ``[N, C, *kernel]``, which becomes ``[N, *kernel, C]`` with
            K = C · kernel elements; or, with ``scale``, integers that are quantised already, within −128 and 127,
            or −8 and 7 for ``"int4"``; or float8_e4m3fn for ``"fp8"``, with ``scale`` or without.
        scheme: ``"int8"``: integers with a scale for each row, for :func:`int8_linear`, :func:`int8_weight_linear`,
            :func:`int8_conv2d`. ``"int4"``: integers of four bits with a scale for each row and each group along K, for
            :func:`int4_linear`. ``"bf16"``: bfloat16, for :func:`bf16_linear`. ``"fp8"``: e4m3 with a scale for each
            row, max|w| / 448, for :func:`fp8_linear` and :func:`fp8_weight_linear`; a row with NaN, or of infinite
            range, is NaN then.
        scale: ``[N]``, or ``[N, ceil(K / group)]``, of integers in w; of float8_e4m3fn ``[N]`` or one element, 1 by
            default.
        zero_point: of the shape of scale, of integers in w: they stand for scale · (w − zero_point). Of ``"int4"`` it
            may be a fraction.
        symmetric: False: a zero point for each scale, so that the range need not be symmetric around 0.
        gated: the layer's result is its first half times an activation of its second half (GEGLU, SwiGLU).
        group: 32, 64 (the default) or 128 elements along K that share a scale; ``"int4"`` only.

    Returns:
        the packed weight, on the device of w.

    Symmetric: scale = max|w| / 127. Else scale = (max(w, 0) − min(w, 0)) / 254 and the zero point is
    round(−127 − min(w, 0) / scale). Rounding is to nearest even; −128 is not used. With four bits the scales are
    max|w| / 7 and (max(w, 0) − min(w, 0)) / 15 with the zero point round(−8 − min(w, 0) / scale).

    Raises:
        ValueError: an unknown scheme, a wrong shape, dtype or group, integers out of range, an odd N when gated.
    """
    from fastdiff.quant._formats import FORMATS

    if scheme not in FORMATS:
        raise ValueError(f"fastdiff.pack_weight: scheme must be one of {', '.join(FORMATS)}, got {scheme!r}")
    if w.dim() < 2 or 0 in w.shape:
        raise ValueError(
            f"fastdiff.pack_weight: w must be [N, K] or [N, C, *kernel], not empty, got {list(w.shape)}"
        )
    if gated and w.shape[0] % 2:
        raise ValueError(
            f"fastdiff.pack_weight: a gated layer must have an even number of rows, got {w.shape[0]}"
        )
    form = FORMATS[scheme]
    if group not in (None, *form.groups):
        allowed = ", ".join(map(str, form.groups)) or "left out"
        raise ValueError(f"fastdiff.pack_weight: group must be {allowed} for {scheme}, got {group}")
    kernel = (w.shape[2], w.shape[3]) if w.dim() == 4 else None
    if w.dim() > 2:
        w = w.movedim(1, -1).flatten(1)
    sizes = {"group": group or form.groups[0]} if form.groups else {}
    return replace(form.pack(w.detach(), scale, zero_point, symmetric, gated, **sizes), kernel=kernel)


# ---- panels ----------------------------------------------------------------------------------------------------


def slots_of(rows: int, gated: bool, device: torch.device) -> Tensor:
    """The slot of each row, int64 ``[rows]``."""
    n = torch.arange(rows, device=device)
    if not gated:
        return n
    half = rows // 2
    at = n % half
    return at // PANEL * (2 * PANEL) + (n >= half) * PANEL + at % PANEL


def slot_count(rows: int, gated: bool) -> int:
    """The number of slots, a multiple of 16."""
    half = rows // 2 if gated else rows
    return -(-half // PANEL) * PANEL * (2 if gated else 1)


def in_slots(rows: Tensor, gated: bool) -> Tensor:
    """Rows ``[N, …]`` in the order of the slots, zeros where there is none."""
    n = rows.shape[0]
    placed = rows.new_zeros(slot_count(n, gated), *rows.shape[1:])
    placed[slots_of(n, gated, rows.device)] = rows
    return placed


def out_of_slots(placed: Tensor, rows: int, gated: bool) -> Tensor:
    """The inverse of :func:`in_slots`; a view unless halves alternate."""
    return placed[slots_of(rows, gated, placed.device)] if gated else placed[:rows]
