# SPDX-License-Identifier: Apache-2.0
"""dwt: one level of a discrete wavelet transform in one, two or three dimensions, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.wavelet._filters import Wavelet, band_size, edge_of, filter_bank
from fastdiff.wavelet._reference import analysis

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = (
    "Tensor x, float[] taps, int ndim, int edge, Tensor? scale=None, bool divide=False, SymInt[]? grid=None"
)


def _fake(
    x: Tensor,
    taps: Sequence[float],
    ndim: int,
    edge: int,
    scale: Tensor | None = None,
    divide: bool = False,
    grid: Sequence[int] | None = None,
) -> Tensor:
    _check_devices(x, scale=scale)
    bands = [band_size(n, len(taps) // 2, edge) for n in x.shape[-ndim:]]
    shape = (*x.shape[:-ndim], 2**ndim, *(bands if grid is None else grid))
    if x.is_contiguous():
        return x.new_empty(shape)
    # The dimensions lie in memory as those of x do, the bands just outside of the outermost spatial one: its stride
    # plus a little. empty_like has the rule for what "as" means.
    leading, spatial = x.stride()[:-ndim], x.stride()[-ndim:]
    strides = (*(2 * s for s in leading), 2 * max(spatial) + 1, *(2 * s for s in spatial))
    return torch.empty_like(x.new_empty_strided(shape, strides))


def _fake_out(
    x: Tensor,
    taps: Sequence[float],
    ndim: int,
    edge: int,
    scale: Tensor | None = None,
    divide: bool = False,
    grid: Sequence[int] | None = None,
    *,
    result: Tensor,
) -> None:
    _check_devices(x, scale=scale, out=result)


def _check_devices(x: Tensor, **others: Tensor | None) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in others.items():
        if t is not None and t.device != x.device:
            raise RuntimeError(f"fastdiff::dwt: {name} must be on {x.device} like x, got {t.device}")


# NOTE: taps are the numbers of a wavelet, which never change in a run; an exported program holds them.
_native.define(f"dwt({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"dwt.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


class Bank(NamedTuple):
    """What both operators know of a transform: two rows of taps (low, high), its dimensions, and the rule at the ends.

    The same numbers describe dwt and the idwt that is its adjoint.
    """

    taps: Sequence[float]  # [2 L], band[k] = Σ_t f[t] x[2k + t − o]
    ndim: int
    edge: int


def dwt(
    x: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    scale: Tensor | None = None,
    grid: Sequence[int] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""One level of the discrete wavelet transform of the last ``ndim`` dimensions.

    Along each dimension, for the low and the high filter h of the wavelet (``dec_lo``, ``dec_hi``), of L taps each:

    .. math::
        y[k] = \sum_{j<L} h[j]\, \tilde x[2k + 1 - j], \quad 0 \le k < \lfloor (N + L - 1) / 2 \rfloor

    where x~ is x, continued past its ends by ``mode``; in mode "periodization" it is
    :math:`\tilde x[2k + L/2 - j]`, for k < ceil(N/2), and x~ periodic after a repetition of the last sample if N is
    odd. The numbers are those of ``pywt.dwtn``. Coefficients of all bands are formed in one pass over x: it is read
    once and the bands are written once. Sums are formed in float32 (float64 for float64), dimension after dimension,
    with fused multiply-adds in a fixed order, and rounded once: the result has the same bits on CPU (any instruction
    set, any number of threads) and CUDA, for any layout.

    Equivalent to, without scale and grid::

        bands = pywt.dwtn(x, wavelet, mode, axes=range(-ndim, 0))
        y = torch.stack([bands[key] for key in sorted(bands)], dim=-1 - ndim)

    Args:
        x: ``[*, *spatial]``: float32, float16, bfloat16 or float64, any strides. The fast paths are contiguous rows
            along the last dimension, and channels that lie innermost (channels_last).
        wavelet: the name of a discrete wavelet of PyWavelets ("haar" and "db1" need no PyWavelets), an object with its
            filters such as ``pywt.Wavelet``, or the four filters (dec_lo, dec_hi, rec_lo, rec_hi). At most 112 taps.
        ndim: how many trailing dimensions are transformed: 1, 2 or 3; each at least 1 long.
        mode: zero, constant, symmetric, reflect, periodic, smooth, antisymmetric, antireflect or periodization.
            Lengths shorter than the filters are continued as often as it takes. (Of one sample, reflect and
            antireflect make a constant; PyWavelets refuses them.)
        scale: divides each band: numbers that broadcast to ``[*, 2**ndim]``, such as ``[C, 4]`` for images
            ``[B, C, H, W]``; any of the dtypes above.
        grid: the spatial size of the result, if it shall be larger than the bands: zeros after them, for a network that
            wants multiples of something. :func:`pack_subbands` makes channels of all that.
        out: where to write the result, of the dtype of x, any strides; shares no memory with x or scale.

    Returns:
        ``[*, 2**ndim, *bands]`` (or ``grid``), or ``out``. Bands are in the order of PyWavelets: "a" (low) before "d"
        (high), the first transformed dimension's letter first: aa, ad, da, dd. With dimensions in memory as in x.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        ValueError, ImportError: an unknown wavelet or mode; PyWavelets is missing.
        NotImplementedError: gradients are asked for with ``out=``.

    Gradients, of any order: with respect to x, the exact adjoint (not the inverse: they differ for biorthogonal
    wavelets), one pass of :func:`idwt`; and with respect to ``scale``, for which x is transformed once more.

    Source: Mallat 1989; the conventions are those of PyWavelets. Per-band scale and padding are those of Hu et al. 2025
    (Wavelet Diffusion Neural Operator), which divides by a constant for each channel.
    """
    bank = Bank(filter_bank(wavelet).analysis_taps, ndim, edge_of(mode))
    return transform(x, bank, scale, True, grid, out=out)


def transform(
    x: Tensor,
    bank: Bank,
    scale: Tensor | None = None,
    divide: bool = False,
    grid: Sequence[int] | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """:func:`dwt` by taps, its scale multiplied or divided by; with gradients."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, out)):
        if out is not None:
            raise NotImplementedError(
                "fastdiff.dwt: out= does not record gradients; detach the tensors or omit out"
            )
        from fastdiff.wavelet.dwt_grad import differentiable_dwt

        return differentiable_dwt(x, bank, scale, divide, grid)
    if out is None:
        y: Tensor = torch.ops.fastdiff.dwt.default(x, *bank, scale, divide, grid)
        return y
    torch.ops.fastdiff.dwt.out(x, *bank, scale, divide, grid, result=out)
    _native.mark_written([out])
    return out


def reference(
    x: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    scale: Tensor | None = None,
    grid: Sequence[int] | None = None,
) -> Tensor:
    """:func:`dwt` in plain PyTorch and float64, rounded at the end."""
    y = analysis(x, filter_bank(wavelet).analysis_taps, ndim, edge_of(mode))
    if scale is not None:
        y = y / scale.double().reshape(*scale.shape, *(1,) * ndim)
    if grid is not None:
        margins = [(0, g - n) for g, n in zip(grid, y.shape[-ndim:], strict=True)]
        y = torch.nn.functional.pad(y, [m for margin in reversed(margins) for m in margin])
    return y.to(x.dtype)


def dlpack_arguments(
    x: Tensor,
    wavelet: Wavelet,
    *,
    ndim: int,
    mode: str = "zero",
    scale: Tensor | None = None,
    **_: Any,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``dwt``, for CUDA, for a call of the public one; no ``out``."""
    from fastdiff import _C

    taps, edge = filter_bank(wavelet).analysis_taps, edge_of(mode)
    bytes_needed = _C.dwt_scratch(x, taps=taps, ndim=ndim, edge=edge)
    scratch = torch.empty(bytes_needed, dtype=torch.uint8, device=x.device)
    given = {"x": x, "taps": taps, "ndim": ndim, "edge": edge, "scale": scale, "divide": True}
    return {**given, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``dwt``."""
    return stored[0]


def tolerance(x: Tensor, wavelet: Wavelet, *, ndim: int, **options: Any) -> dict[str, float]:
    """A sum of L terms for each dimension, which the filters and the modes that extrapolate make larger."""
    bank = filter_bank(wavelet)
    taps = len(bank.dec_lo)
    reach = taps if options.get("mode") in ("smooth", "antireflect") else 1
    growth = max(sum(map(abs, bank.dec_lo)), sum(map(abs, bank.dec_hi))) * reach
    largest = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    return {"scale": largest * growth**ndim, "terms": taps * ndim + 2}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def case(name: str, x: Tensor, wavelet: str = "db2", ndim: int = 2, **options: Any) -> Case:
        return Case(name, (x, wavelet), {"ndim": ndim, **options})

    def last(x: Tensor) -> Tensor:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)

    half, brain, double = torch.float16, torch.bfloat16, torch.float64
    rough = normal(2, 3, 12, 35)
    for place, value in (((0, 0, 3, 4), math.nan), ((1, 1, 5, 6), math.inf), ((1, 2, 6, 20), -math.inf)):
        rough[place] = value
    modes = ("constant", "symmetric", "reflect", "periodic", "smooth", "antisymmetric", "antireflect")
    positive = torch.rand(3, 4, generator=g) + 0.5
    return [
        case("image", normal(2, 3, 12, 70), "db4"),
        *(case(f"haar, {n} x {m}", normal(2, n, m), "haar") for n, m in ((8, 66), (7, 39))),
        *(case(f"{mode} 2-D", normal(2, 9, 38), "bior2.2", mode=mode) for mode in modes),
        *(case(f"{mode}, shorter than the filters", normal(2, 3, 2), "db4", mode=mode) for mode in modes),
        case("periodization", normal(2, 12, 40), "bior2.4", mode="periodization"),
        case("periodization, odd", normal(2, 11, 39), "db2", mode="periodization"),
        case("periodization, shorter than the filters", normal(2, 3, 2), "bior2.4", mode="periodization"),
        case("1-D", normal(3, 77), "db3", 1),
        case("1-D, smooth", normal(3, 9), "bior1.3", 1, mode="smooth"),
        case("1-D, long", normal(2, 4500), "sym4", 1, mode="periodic"),
        case("3-D", normal(2, 5, 6, 37), "bior1.3", 3),
        case("3-D haar", normal(2, 4, 6, 38), "haar", 3),
        case("3-D, antireflect", normal(5, 6, 7), "bior1.3", 3, mode="antireflect"),
        case("3-D, periodization", normal(5, 4, 21), "db2", 3, mode="periodization"),
        case("wide", normal(3, 4300), "db2", mode="periodic"),
        case("one sample", normal(2, 1, 1), "db4", mode="reflect"),
        case("scaled", normal(2, 3, 10, 33), "bior2.2", scale=positive),
        case("packed", normal(2, 3, 9, 12), "bior2.4", mode="periodization", scale=positive, grid=(8, 20)),
        case("packed 3-D", normal(4, 6, 7), "bior1.3", 3, grid=(6, 8, 10)),
        case("fp16", normal(2, 10, 37, dtype=half), "db2"),
        case("fp16 haar", normal(2, 10, 38, dtype=half), "haar"),
        case("bf16", normal(2, 10, 37, dtype=brain), "bior4.4", mode="symmetric"),
        case("bf16, scaled in fp32", normal(2, 3, 10, 37, dtype=brain), "db2", scale=positive),
        case("fp64", normal(2, 10, 21, dtype=double), "db4"),
        case("fp64 haar", normal(2, 9, 21, dtype=double), "haar"),
        case("channels_last", last(normal(2, 5, 9, 20)), "bior2.2", mode="reflect"),
        case("channels_last haar", last(normal(2, 20, 8, 10)), "haar"),
        case("channels_last 3-D", last(normal(2, 3, 4, 5, 6)), "db2", 3, mode="periodic"),
        case("rows apart", normal(3, 8, 20)[:, ::2, 1:18], "db2"),
        case("every second sample", normal(2, 8, 41)[..., ::2], "db2", mode="symmetric"),
        case("nan and inf", rough, "db2", mode="symmetric"),
        case("empty", normal(0, 3, 8, 8), "db2"),
    ]
