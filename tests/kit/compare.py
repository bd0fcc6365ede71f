# SPDX-License-Identifier: Apache-2.0
"""Comparisons that say where and by how much. Tolerances come from the dtype, and are written down here only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.kit.trees import bits

# Unit roundoff of the dtype in which a result is stored, and of the arithmetic behind it.
ROUNDOFF = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.complex64: 2.0**-24,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}
TINY = {dtype: torch.finfo(dtype).smallest_normal for dtype in ROUNDOFF if not dtype.is_complex} | {
    torch.complex64: torch.finfo(torch.float32).smallest_normal
}


def assert_close(got: Tensor, want: Tensor, *, scale: float = 1.0, terms: int = 8, what: str = "") -> None:
    """|got - want| <= roundoff of the stored dtype, plus `terms` roundoffs of the arithmetic times `scale`.

    Args:
        got: the result under test.
        want: the reference, rounded to the same dtype from float64.
        scale: the magnitude of the summands: cancellation is not the kernel's fault.
        terms: operations whose error can add up.
    """
    assert got.shape == want.shape, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}"
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, expected {want.dtype}"
    if not got.numel():
        return
    if not (got.is_floating_point() or got.is_complex()):
        assert_same_bits([got], [want], what)
        return
    wide = torch.complex128 if got.is_complex() else torch.float64
    g, w = got.to(wide), want.to(wide)
    arithmetic = 2.0**-53 if got.dtype == torch.float64 else 2.0**-24
    allowed = 2 * ROUNDOFF[got.dtype] * w.abs() + terms * arithmetic * scale + TINY[got.dtype]
    same = (g == w) | (g.isnan() & w.isnan())
    error = torch.where(same, torch.zeros_like(g.abs()), (g - w).abs())
    bad = ~(same | (error <= allowed))
    if bool(bad.any()):
        worst = torch.where(bad, error.nan_to_num(nan=float("inf")), torch.zeros_like(error)).argmax()
        at = [int(i) for i in torch.unravel_index(worst, got.shape)] if got.dim() else []
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {got.numel()} elements differ; worst at {at}: "
            f"got {g.flatten()[worst]}, expected {w.flatten()[worst]}"
        )


def assert_same_bits(got: Sequence[Tensor], want: Sequence[Tensor], what: str = "") -> None:
    """Every element has the same bit pattern (NaNs count as equal)."""
    assert len(got) == len(want), f"{what}: {len(got)} results, expected {len(want)}"
    for n, (g, w) in enumerate(zip(got, want, strict=True)):
        assert g.dtype == w.dtype, f"{what}: result {n} is {g.dtype}, expected {w.dtype}"
        assert g.shape == w.shape, f"{what}: result {n} is {list(g.shape)}, expected {list(w.shape)}"
        differs = (bits(g) != bits(w)).nonzero()
        assert not len(differs), (
            f"{what}: result {n} differs in {len(differs)} elements, first at {differs[0].tolist()}: "
            f"{g.flatten()[:4].tolist()} ..., expected {w.flatten()[:4].tolist()} ..."
        )
