# SPDX-License-Identifier: Apache-2.0
"""What a wavelet and a mode are for the operators: two rows of taps, and a rule for the samples past the ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch

MODES: Final = (
    "zero",
    "constant",
    "symmetric",
    "reflect",
    "periodic",
    "smooth",
    "antisymmetric",
    "antireflect",
    "periodization",
)
PERIODIZATION: Final = MODES.index("periodization")
# Periodization whose sample at the end of an odd length is 0 and not the one before it: the inverse's own edge.
CIRCULAR: Final = len(MODES)
ZERO: Final = MODES.index("zero")


class FilterBank(NamedTuple):
    """The four filters of a discrete wavelet, of one even length L, as PyWavelets has them."""

    dec_lo: tuple[float, ...]
    dec_hi: tuple[float, ...]
    rec_lo: tuple[float, ...]
    rec_hi: tuple[float, ...]

    @property
    def analysis_taps(self) -> list[float]:
        """Low and high filter, [2 L], so that band[k] = Σ_t f[t] x[2k + t − o]."""
        return [*self.dec_lo[::-1], *self.dec_hi[::-1]]

    @property
    def synthesis_taps(self) -> list[float]:
        """Low and high filter, [2 L], so that x[2k + t − o] += f[t] band[k]."""
        return [*self.rec_lo, *self.rec_hi]


@runtime_checkable
class HasFilters(Protocol):
    """Such as ``pywt.Wavelet``."""

    dec_lo: Sequence[float]
    dec_hi: Sequence[float]
    rec_lo: Sequence[float]
    rec_hi: Sequence[float]


Wavelet: TypeAlias = str | HasFilters | Sequence[Sequence[float]]


def filter_bank(wavelet: Wavelet) -> FilterBank:
    """The filters of a wavelet.

    Args:
        wavelet: the name of a discrete wavelet, as in ``pywt.wavelist(kind="discrete")``; an object with the
            attributes dec_lo, dec_hi, rec_lo and rec_hi; or those four, in this order.

    Raises:
        ValueError: an unknown name, or filters that are not of one even length.
        ImportError: a name other than "haar" and "db1" where PyWavelets is not installed.
    """
    if isinstance(wavelet, FilterBank):
        return wavelet
    if isinstance(wavelet, str):
        named: FilterBank = _named(wavelet)
        return named
    filters = (
        (wavelet.dec_lo, wavelet.dec_hi, wavelet.rec_lo, wavelet.rec_hi)
        if isinstance(wavelet, HasFilters)
        else tuple(wavelet)
    )
    lengths = {len(taps) for taps in filters}
    if len(filters) != 4 or len(lengths) != 1 or lengths.pop() % 2:
        raise ValueError(
            "fastdiff: wavelet must have four filters (dec_lo, dec_hi, rec_lo, rec_hi) of one even length, got "
            f"lengths {[len(taps) for taps in filters]}"
        )
    return FilterBank(*(tuple(float(tap) for tap in taps) for taps in filters))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _named(name: str) -> FilterBank:
    """Under torch.compile a constant of the graph. What is inside is not traced, which a cache's wrapper would be."""
    return _looked_up(name)


@functools.cache
def _looked_up(name: str) -> FilterBank:
    if name in ("haar", "db1"):
        tap = math.sqrt(0.5)
        return FilterBank((tap, tap), (-tap, tap), (tap, tap), (tap, -tap))
    try:
        import pywt
    except ImportError as error:
        raise ImportError(
            f"fastdiff: the filters of {name!r} come from PyWavelets: pip install torch-fastdiff[wavelet]"
        ) from error
    if name not in pywt.wavelist(kind="discrete"):
        raise ValueError(
            f"fastdiff: wavelet must be the name of a discrete wavelet as in pywt.wavelist(kind='discrete'), "
            f"got {name!r}"
        )
    return FilterBank(*(tuple(taps) for taps in pywt.Wavelet(name).filter_bank))


def edge_of(mode: str) -> int:
    """The number of a mode. Raises ValueError that lists them."""
    if mode not in MODES:
        raise ValueError(f"fastdiff: mode must be one of {', '.join(MODES)}, got {mode!r}")
    return MODES.index(mode)


def band_size(size: int, taps: int, edge: int) -> int:
    """How many coefficients a band has along a dimension of ``size`` samples, with filters of ``taps`` taps."""
    return (size + 1) // 2 if edge >= PERIODIZATION else (size + taps - 1) // 2


def signal_size(bands: int, taps: int, edge: int) -> int:
    """The larger of the two sizes whose bands have so many coefficients."""
    return 2 * bands if edge >= PERIODIZATION else 2 * bands - taps + 2


def max_level(sizes: Sequence[int], wavelet: Wavelet) -> int:
    """The deepest level at which the shortest dimension is still as long as the filters: ``pywt.dwtn_max_level``.

    Raises: as :func:`filter_bank`.
    """
    taps = len(filter_bank(wavelet).dec_lo)
    shortest = min(sizes)
    return 0 if shortest < taps - 1 else int(math.log2(shortest / (taps - 1)))
