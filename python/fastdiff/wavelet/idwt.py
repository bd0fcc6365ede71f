# SPDX-License-Identifier: Apache-2.0
"""idwt: the inverse of one level of a discrete wavelet transform in one, two or three dimensions, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.wavelet._filters import (
    CIRCULAR,
    PERIODIZATION,
    ZERO,
    Wavelet,
    band_size,
    edge_of,
    filter_bank,
    signal_size,
)
from fastdiff.wavelet._reference import synthesis
from fastdiff.wavelet.dwt import Bank

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False
SHRINKS: Final = ("soft", "hard")

_ARGUMENTS = (
    "Tensor y, float[] taps, int ndim, int edge, SymInt[] size, Tensor? scale=None, bool divide=False, "
    "Tensor? threshold=None, bool hard=False, Tensor? approximation=None"
)


def _fake(
    y: Tensor,
    taps: Sequence[float],
    ndim: int,
    edge: int,
    size: Sequence[int],
    scale: Tensor | None = None,
    divide: bool = False,
    threshold: Tensor | None = None,
    hard: bool = False,
    approximation: Tensor | None = None,
) -> Tensor:
    _check_devices(y, scale=scale, threshold=threshold, approximation=approximation)
    shape = (*y.shape[: -1 - ndim], *size)
    if y.is_contiguous():
        return y.new_empty(shape)
    # The dimensions lie in memory as those of y do; empty_like has the rule for what "as" means.
    return torch.empty_like(y.new_empty_strided(shape, (*y.stride()[: -1 - ndim], *y.stride()[-ndim:])))


def _fake_out(
    y: Tensor,
    taps: Sequence[float],
    ndim: int,
    edge: int,
    size: Sequence[int],
    scale: Tensor | None = None,
    divide: bool = False,
    threshold: Tensor | None = None,
    hard: bool = False,
    approximation: Tensor | None = None,
    *,
    result: Tensor,
) -> None:
    _check_devices(y, scale=scale, threshold=threshold, approximation=approximation, out=result)


def _check_devices(y: Tensor, **others: Tensor | None) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in others.items():
        if t is not None and t.device != y.device:
            raise RuntimeError(f"fastdiff::idwt: {name} must be on {y.device} like y, got {t.device}")


_native.define(f"idwt({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"idwt.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def idwt(
    y: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    size: Sequence[int] | None = None,
    scale: Tensor | None = None,
    threshold: Tensor | None = None,
    shrink: str = "soft",
    approximation: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""The inverse of :func:`dwt`: the last ``ndim`` dimensions from their bands.

    Along each dimension, with the filters g of the wavelet (``rec_lo``, ``rec_hi``), of L taps each:

    .. math::
        x[n] = \sum_k g_{lo}[n + L - 2 - 2k]\, a[k] + g_{hi}[n + L - 2 - 2k]\, d[k]

    and :math:`g[n + L/2 - 1 - 2k]`, k modulo K, in mode "periodization"; in the other modes the inverse is the same.
    The numbers are those of ``pywt.idwtn``. All bands are read once and x is written once, with sums as in
    :func:`dwt`: the same bits everywhere. (On the CPU a scale, a threshold or bands without contiguous rows take a copy
    of the bands in the thread's memory first.) Before the sums, coefficients may be multiplied by ``scale`` and then
    shrunk:

    .. math::
        c' = \operatorname{sign}(c) \max(|c| - t, 0) \ \text{(soft)}, \qquad c' = c\,[|c| \ge t] \ \text{(hard)}

    which is denoising in one pass (Donoho and Johnstone 1994).

    Args:
        y: ``[*, 2**ndim, *bands]`` in the order of :func:`dwt`: float32, float16, bfloat16 or float64, any strides. It
            may be larger than the bands of ``size``: what is after them is not read.
        wavelet, ndim, mode: those of :func:`dwt`.
        size: the spatial size of the result. Its bands are as large as y at most. Default: the largest size with
            bands like y, which is one more than an odd length was.
        scale: multiplies each band: numbers that broadcast to ``[*, 2**ndim]``, the same that :func:`dwt` divided by.
        threshold: t of each band, not negative, in the same form; 0 leaves a band as it is. Applies after ``scale``.
        shrink: "soft" or "hard".
        approximation: the first band, ``[*, *bands]``, if y has only the others, ``[*, 2**ndim - 1, *bands]``: two
            tensors are read as one. Of the dtype of y; its spatial size may be larger too.
        out: where to write the result, of the dtype of y, any strides; shares no memory with the inputs.

    Returns:
        ``[*, *size]``, with dimensions in memory as in y; or ``out``. NaN and inf propagate, also through shrinking.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        ValueError, ImportError: an unknown wavelet, mode or shrink; PyWavelets is missing.
        NotImplementedError: gradients are asked for with ``out=``.

    Gradients: with respect to all tensors, of any order. Those of y and approximation are the exact adjoint, one pass
    of :func:`dwt`; with a threshold, or where ``scale`` records gradients too, PyTorch multiplies its result. A soft
    threshold of 0 shrinks nothing, and its own gradient is then that of a larger one.

    Source: as for :func:`dwt`. Trap: for biorthogonal wavelets this is not the adjoint of :func:`dwt`.
    """
    if shrink not in SHRINKS:
        raise ValueError(f"fastdiff: shrink must be one of {', '.join(SHRINKS)}, got {shrink!r}")
    edge = CIRCULAR if edge_of(mode) == PERIODIZATION else ZERO
    filters = filter_bank(wavelet)
    if size is None:
        taps = len(filters.rec_lo)
        size = [signal_size(k, taps, edge) for k in y.shape[-ndim:]]
    bank = Bank(filters.synthesis_taps, ndim, edge)
    return transform(y, bank, size, scale, False, threshold, shrink == "hard", approximation, out=out)


def transform(
    y: Tensor,
    bank: Bank,
    size: Sequence[int],
    scale: Tensor | None = None,
    divide: bool = False,
    threshold: Tensor | None = None,
    hard: bool = False,
    approximation: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`idwt` by taps, its scale multiplied or divided by, for any edge: the adjoint of dwt's; with gradients."""
    given = (y, scale, threshold, approximation, out)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        if out is not None:
            raise NotImplementedError(
                "fastdiff.idwt: out= does not record gradients; detach the tensors or omit out"
            )
        from fastdiff.wavelet.idwt_grad import differentiable_idwt

        return differentiable_idwt(y, bank, size, scale, divide, threshold, hard, approximation)
    if out is None:
        x: Tensor = torch.ops.fastdiff.idwt.default(
            y, *bank, size, scale, divide, threshold, hard, approximation
        )
        return x
    torch.ops.fastdiff.idwt.out(y, *bank, size, scale, divide, threshold, hard, approximation, result=out)
    _native.mark_written([out])
    return out


def shrunk(c: Tensor, threshold: Tensor, hard: bool) -> Tensor:
    """The coefficients after thresholding; a NaN stays."""
    if hard:
        return torch.where(c.abs() < threshold, torch.zeros_like(c), c)
    return torch.where(c.abs() <= threshold, torch.zeros_like(c), c - c.sign() * threshold)


def first_of(coefficients: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first so many along the last dimensions."""
    for axis, size in enumerate(sizes, start=-len(sizes)):
        coefficients = coefficients.narrow(axis, 0, size)
    return coefficients


def reference(
    y: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    size: Sequence[int] | None = None,
    scale: Tensor | None = None,
    threshold: Tensor | None = None,
    shrink: str = "soft",
    approximation: Tensor | None = None,
) -> Tensor:
    """:func:`idwt` in plain PyTorch and float64, rounded at the end."""
    edge = CIRCULAR if edge_of(mode) == PERIODIZATION else ZERO
    taps = filter_bank(wavelet).synthesis_taps
    if size is None:
        size = [signal_size(k, len(taps) // 2, edge) for k in y.shape[-ndim:]]
    used = [band_size(n, len(taps) // 2, edge) for n in size]
    c = first_of(y.double(), used)
    if approximation is not None:
        low = first_of(approximation.double(), used)
        c = torch.cat([low.unsqueeze(-1 - ndim), c], dim=-1 - ndim)
    if scale is not None:
        c = c * scale.double().reshape(*scale.shape, *(1,) * ndim)
    if threshold is not None:
        c = shrunk(
            c, threshold.double().reshape(*threshold.shape, *(1,) * ndim).expand(c.shape), shrink == "hard"
        )
    return synthesis(c, taps, size, edge).to(y.dtype)


def dlpack_arguments(
    y: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    size: Sequence[int] | None = None,
    scale: Tensor | None = None,
    threshold: Tensor | None = None,
    shrink: str = "soft",
    approximation: Tensor | None = None,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``idwt``, for CUDA, for a call of the public one; no ``out``."""
    from fastdiff import _C

    edge = CIRCULAR if edge_of(mode) == PERIODIZATION else ZERO
    taps = filter_bank(wavelet).synthesis_taps
    if size is None:
        size = [signal_size(k, len(taps) // 2, edge) for k in y.shape[-ndim:]]
    split = approximation is not None
    bytes_needed = _C.idwt_scratch(y, taps=taps, ndim=ndim, edge=edge, size=list(size), split=split)
    return {
        "y": y,
        "taps": taps,
        "ndim": ndim,
        "edge": edge,
        "scale": scale,
        "threshold": threshold,
        "hard": shrink == "hard",
        "approximation": approximation,
        "scratch": torch.empty(bytes_needed, dtype=torch.uint8, device=y.device),
    }


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``idwt``."""
    return stored[0]


def tolerance(y: Tensor, wavelet: Wavelet, *, ndim: int, **options: Any) -> dict[str, float]:
    """A sum of L terms for each dimension, half of them of each band, which the filters make larger."""
    bank = filter_bank(wavelet)
    taps = len(bank.rec_lo)
    growth = sum(map(abs, bank.rec_lo)) + sum(map(abs, bank.rec_hi))
    tensors = [y, *([options["approximation"]] if options.get("approximation") is not None else [])]
    largest = max(
        (float(t.double().nan_to_num(0, 0, 0).abs().max()) for t in tensors if t.numel()), default=0.0
    )
    if options.get("scale") is not None and options["scale"].numel():
        largest *= float(options["scale"].double().abs().max())
    return {"scale": largest * growth**ndim, "terms": taps * ndim + 3}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def case(name: str, y: Tensor, wavelet: str = "db2", ndim: int = 2, **options: Any) -> Case:
        return Case(name, (y, wavelet), {"ndim": ndim, **options})

    def last(y: Tensor) -> Tensor:
        return y.movedim(1, -1).contiguous().movedim(-1, 1)

    half, brain, double = torch.float16, torch.bfloat16, torch.float64
    rough = normal(2, 3, 4, 9, 21)
    for place, value in (
        ((0, 0, 1, 3, 4), math.nan),
        ((1, 1, 0, 5, 6), math.inf),
        ((1, 2, 3, 0, 0), -math.inf),
    ):
        rough[place] = value
    positive = torch.rand(3, 4, generator=g) + 0.5
    quarter = torch.tensor([0.0, 0.3, 0.5, 0.7])
    return [
        case("image", normal(2, 3, 4, 9, 38), "db4"),
        *(case(f"haar, {n} x {m}", normal(2, 4, n, m), "haar") for n, m in ((4, 35), (5, 20))),
        case("haar, odd size", normal(2, 4, 5, 20), "haar", size=(9, 39)),
        case("odd size", normal(2, 4, 7, 20), "bior2.2", size=(9, 35)),
        case("a small part of the bands", normal(2, 4, 7, 20), "bior2.2", size=(3, 5)),
        case("shorter than the filters", normal(2, 4, 4, 4), "db4", size=(1, 2)),
        case("periodization", normal(2, 4, 6, 20), "bior2.4", mode="periodization"),
        case("periodization, odd", normal(2, 4, 6, 20), "db2", mode="periodization", size=(11, 39)),
        case("periodization, shorter than the filters", normal(2, 4, 2, 1), "bior2.4", mode="periodization"),
        case("1-D", normal(3, 2, 41), "db3", 1),
        case("1-D, long", normal(2, 2, 2300), "sym4", 1, mode="periodization"),
        case("3-D", normal(2, 8, 5, 6, 20), "bior1.3", 3, size=(5, 6, 35)),
        case("3-D haar", normal(2, 8, 2, 3, 19), "haar", 3),
        case("3-D, periodization", normal(8, 3, 2, 11), "db2", 3, mode="periodization", size=(5, 4, 21)),
        case("wide", normal(4, 2, 2200), "db2"),
        case("scaled", normal(2, 3, 4, 7, 19), "bior2.2", scale=positive),
        case("soft threshold", normal(2, 3, 4, 7, 19), "db2", threshold=quarter),
        case(
            "hard threshold, scaled",
            normal(2, 3, 4, 7, 19),
            "db2",
            threshold=quarter,
            scale=positive,
            shrink="hard",
        ),
        case("packed", normal(2, 3, 4, 8, 20), "bior2.4", mode="periodization", scale=positive, size=(9, 12)),
        case("approximation apart", normal(2, 3, 7, 19), "db2", approximation=normal(2, 8, 20)),
        case(
            "all at once",
            normal(2, 7, 4, 5, 9, dtype=brain),
            "bior1.3",
            3,
            approximation=normal(2, 4, 5, 9, dtype=brain),
            threshold=torch.rand(8, generator=g),
            scale=torch.rand(8, generator=g),
            size=(3, 5, 13),
        ),
        case("fp16", normal(2, 4, 7, 19, dtype=half), "db2"),
        case("fp16 haar", normal(2, 4, 7, 19, dtype=half), "haar"),
        case("bf16", normal(2, 4, 10, 25, dtype=brain), "bior4.4"),
        case("fp64", normal(2, 4, 8, 14, dtype=double), "db4"),
        case("fp64 haar", normal(2, 4, 8, 14, dtype=double), "haar"),
        case("channels_last", last(normal(2, 5, 4, 7, 11)), "bior2.2"),
        case("channels_last haar", last(normal(2, 20, 4, 4, 5)), "haar"),
        case("channels_last 3-D", last(normal(2, 3, 8, 4, 5, 6)), "db2", 3),
        case("every second coefficient", normal(2, 4, 8, 41)[..., ::2], "db2"),
        case("nan and inf", rough, "db2", threshold=quarter),
        case("empty", normal(0, 4, 5, 5), "db2"),
    ]
