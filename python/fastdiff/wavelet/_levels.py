# SPDX-License-Identifier: Apache-2.0
"""Several levels of a wavelet transform: the approximation of each is transformed again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.wavelet._filters import Wavelet, band_size, edge_of, filter_bank, max_level
from fastdiff.wavelet.dwt import dwt
from fastdiff.wavelet.idwt import SHRINKS, idwt


def wavedec(
    x: Tensor, wavelet: Wavelet, *, ndim: int, mode: str = "zero", level: int | None = None
) -> list[Tensor]:
    """The wavelet decomposition of the last ``ndim`` dimensions: ``pywt.wavedecn`` with details as one tensor a level.

    One pass of :func:`dwt` per level: the approximation of a level is read where the one before has written it, and
    details are views of what was written, so that nothing is copied.

    Args:
        x, wavelet, ndim, mode: as for :func:`dwt`.
        level: how many levels, 0 or more; None: ``max_level`` (that of PyWavelets: as long as the shortest dimension
            is not shorter than the filters).

    Returns:
        ``[approximation, details of the coarsest level, ..., details of the finest]``: ``[*, *bands]`` and
        ``[*, 2**ndim - 1, *bands]``, these in the order of :func:`dwt` without the first: ad, da, dd.

    Raises: as :func:`dwt`; ValueError for a negative level.
    """
    _check(x, wavelet, ndim, mode, "x")
    if level is None:
        level = max_level(x.shape[-ndim:], wavelet)
    if level < 0:
        raise ValueError(f"fastdiff: level must be 0 or more, got {level}")
    details = []
    for _ in range(level):
        bands = dwt(x, wavelet, ndim=ndim, mode=mode)
        x = bands.select(-1 - ndim, 0)
        details.append(bands.narrow(-1 - ndim, 1, 2**ndim - 1))
    return [x, *reversed(details)]


def waverec(
    coefficients: Sequence[Tensor],
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    size: Sequence[int] | None = None,
    threshold: Sequence[Tensor] | Tensor | None = None,
    shrink: str = "soft",
) -> Tensor:
    """The inverse of :func:`wavedec`: ``pywt.waverecn``, with ``pywt.threshold`` of all details before it.

    One pass of :func:`idwt` per level, which reads approximation and details from their two tensors.

    Args:
        coefficients: as :func:`wavedec` returns them.
        wavelet, ndim, mode: as for :func:`wavedec`.
        size: the spatial size of the result; default: the largest that has such details.
        threshold: for each level, from the coarsest on, the threshold of its details: numbers that broadcast to
            ``[*, 2**ndim - 1]``; or one tensor for all levels. The approximation is left as it is.
        shrink: "soft" or "hard", as for :func:`idwt`.

    Returns: ``[*, *size]``.

    Raises: as :func:`idwt`; ValueError where there is not one threshold per level.
    """
    x, *details = coefficients
    _check(x, wavelet, ndim, mode, "coefficients[0]")
    if shrink not in SHRINKS:
        raise ValueError(f"fastdiff: shrink must be one of {', '.join(SHRINKS)}, got {shrink!r}")
    if size is not None and not details and list(size) != list(x.shape[-ndim:]):
        raise ValueError(
            f"fastdiff: size must be that of the approximation where there are no details, {list(x.shape[-ndim:])}, "
            f"got {list(size)}"
        )
    thresholds = (
        [threshold] * len(details) if threshold is None or isinstance(threshold, Tensor) else threshold
    )
    if len(thresholds) != len(details):
        raise ValueError(
            f"fastdiff: threshold must be one for each of {len(details)} levels, got {len(thresholds)}"
        )
    taps, edge = len(filter_bank(wavelet).dec_lo), edge_of(mode)
    for n, bands in enumerate(details):
        # A level's result is as large as the details of the next finer one: odd sizes are known from there.
        following = details[n + 1].shape[-ndim:] if n + 1 < len(details) else size
        own = bands.shape[-ndim:]
        if following is not None and [band_size(k, taps, edge) for k in following] != list(own):
            raise ValueError(
                f"fastdiff: details of a level must have {[band_size(k, taps, edge) for k in following]} coefficients "
                f"for the {list(following)} of the next, got {list(own)}"
            )
        x = idwt(
            bands,
            wavelet,
            ndim=ndim,
            mode=mode,
            size=following,
            threshold=_with_approximation(thresholds[n], ndim),
            shrink=shrink,
            approximation=x,
        )
    return x


def _check(x: Tensor, wavelet: Wavelet, ndim: int, mode: str, argument: str) -> None:
    """What dwt and idwt check, for the calls in which there is no level to run them."""
    if ndim not in (1, 2, 3):
        raise RuntimeError(f"fastdiff: ndim must be 1, 2 or 3, got {ndim}")
    if x.dim() < ndim:
        raise RuntimeError(
            f"fastdiff: {argument} must have at least {ndim} dimensions, got shape {list(x.shape)}"
        )
    filter_bank(wavelet)
    edge_of(mode)


def _with_approximation(threshold: Tensor | None, ndim: int) -> Tensor | None:
    """What broadcasts to [*, 2**ndim - 1] -> what broadcasts to [*, 2**ndim], 0 for the approximation."""
    if threshold is None:
        return None
    if threshold.dim() == 0 or threshold.shape[-1] == 1:
        threshold = threshold.expand(*threshold.shape[:-1], 2**ndim - 1)
    return torch.nn.functional.pad(threshold, (1, 0))
