# SPDX-License-Identifier: Apache-2.0
"""Sub-bands as the channels of a network (Wavelet Diffusion Neural Operator)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.wavelet._filters import Wavelet
from fastdiff.wavelet.dwt import dwt
from fastdiff.wavelet.idwt import idwt


def pack_subbands(
    x: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    scale: Tensor | None = None,
    grid: Sequence[int] | None = None,
) -> Tensor:
    """The bands of one level as channels, each divided by its scale, padded with zeros to the network's grid.

    One pass of :func:`dwt`; the channels are a view of its result (of a channels_last one, a copy). ``bior2.4`` with
    "periodization" makes ``[B, 2, 81, 120]`` into ``[B, 8, 64, 64]``: bands of 41 × 60 in a grid of 64 × 64.

    Args:
        x: ``[*, C, *spatial]``, as for :func:`dwt`.
        wavelet, ndim, mode: as for :func:`dwt`.
        scale: what each band is divided by: ``[C * 2**ndim]`` in the order of the channels, ``[C, 2**ndim]``, or for
            all channels ``[2**ndim]``.
        grid: the spatial size of the result; default: that of the bands.

    Returns: ``[*, C * 2**ndim, *grid]``: all bands of the first channel, in the order of :func:`dwt`, then of the next.

    Raises: as :func:`dwt`.

    Source: Hu et al. 2025, section 3.2; per-band constants and grids as in its published code.
    """
    _check_channels("pack_subbands", "x", x, ndim)
    channels = x.shape[-1 - ndim]
    y = dwt(x, wavelet, ndim=ndim, mode=mode, scale=_by_band(scale, channels, ndim), grid=grid)
    return y.flatten(-2 - ndim, -1 - ndim)


def unpack_subbands(
    y: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    size: Sequence[int],
    mode: str = "zero",
    scale: Tensor | None = None,
) -> Tensor:
    """The inverse of :func:`pack_subbands`, one pass of :func:`idwt`.

    Args:
        y: ``[*, C * 2**ndim, *grid]``. What is after the bands of ``size`` is not read.
        wavelet, ndim, mode, scale: those of :func:`pack_subbands`.
        size: the spatial size of the result, which the grid does not tell.

    Returns: ``[*, C, *size]``.

    Raises: as :func:`idwt`; RuntimeError where the channels are not whole sets of bands.
    """
    _check_channels("unpack_subbands", "y", y, ndim)
    channels, rest = divmod(y.shape[-1 - ndim], 2**ndim)
    if rest:
        raise RuntimeError(
            f"fastdiff.unpack_subbands: y must have a multiple of {2**ndim} channels, got {list(y.shape)}"
        )
    bands = y.unflatten(-1 - ndim, (channels, 2**ndim))
    return idwt(bands, wavelet, ndim=ndim, mode=mode, size=size, scale=_by_band(scale, channels, ndim))


def _check_channels(function: str, argument: str, t: Tensor, ndim: int) -> None:
    if t.dim() <= ndim:
        raise RuntimeError(
            f"fastdiff.{function}: {argument} must have channels and {ndim} spatial dimensions, got {list(t.shape)}"
        )


def _by_band(scale: Tensor | None, channels: int, ndim: int) -> Tensor | None:
    if scale is None or scale.dim() != 1 or scale.numel() != channels * 2**ndim:
        return scale
    return scale.view(channels, 2**ndim)


def upsample_subbands(
    y: Tensor,
    *,
    ndim: int,
    bands: Sequence[int],
    size: Sequence[int],
    grid: Sequence[int] | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Coefficients of a coarse signal as the input of a network for a finer one: nearest neighbours on its grid.

    Coefficient k of the result is number floor(k K / size) of the K that there are: with twice as many, each stands
    twice. It costs a copy: an index for each dimension, and no sum anywhere.

    Args:
        y: ``[*, *padded]``, such as packed bands of a coarse sample.
        ndim: how many dimensions are spatial.
        bands: the size of the bands in y, at most ``padded``; what is after them is not read.
        size: the size of the bands of the finer signal.
        grid: the spatial size of the result, at least ``size``: zeros after the bands; default: ``size``.
        scale: multiplies each channel: numbers that broadcast to the dimensions before the spatial ones; the coarse
            bands' scale over that of the finer ones.

    Returns: ``[*, *grid]``, contiguous.

    Raises:
        RuntimeError: sizes that do not fit each other.

    Source: Hu et al. 2025, section 3.3 (multi-resolution training); the nearest rule is that of
    ``torch.nn.functional.interpolate(mode="nearest")`` without the rounding of its ratio.
    """
    grid = size if grid is None else grid
    if not (len(bands) == len(size) == len(grid) == ndim):
        raise RuntimeError(
            f"fastdiff.upsample_subbands: bands, size and grid must have {ndim} numbers each, got {list(bands)}, "
            f"{list(size)} and {list(grid)}"
        )
    if y.dim() < ndim:
        raise RuntimeError(f"fastdiff.upsample_subbands: y must have {ndim} dimensions, got {list(y.shape)}")
    fits = zip(bands, y.shape[-ndim:], size, grid, strict=True)
    if not all(1 <= k <= there and 1 <= n <= g for k, there, n, g in fits):
        raise RuntimeError(
            f"fastdiff.upsample_subbands: bands must fit into y and size into grid, got {list(bands)} in "
            f"{list(y.shape)} and {list(size)} in {list(grid)}"
        )
    for axis, k, n in zip(range(-ndim, 0), bands, size, strict=True):
        y = y.index_select(axis, torch.arange(n, device=y.device) * k // n)
    if scale is not None:
        y = (y * scale.reshape(*scale.shape, *(1,) * ndim)).to(y.dtype)
    margins = [m for n, g in zip(reversed(size), reversed(grid), strict=True) for m in (0, g - n)]
    return torch.nn.functional.pad(y, margins)
