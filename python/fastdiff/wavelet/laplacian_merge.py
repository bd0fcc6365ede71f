# SPDX-License-Identifier: Apache-2.0
"""laplacian_merge: the image whose Laplacian pyramid has these bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.wavelet._pyramid import reference_up

if TYPE_CHECKING:
    from fastdiff._case import Case

_ARGUMENTS = "Tensor[] bands"


def _fake(bands: Sequence[Tensor]) -> Tensor:
    _check_devices(bands)
    return torch.empty_like(bands[0])


def _fake_out(bands: Sequence[Tensor], *, result: Tensor) -> None:
    _check_devices(bands)
    if result.device != bands[0].device:
        raise RuntimeError(
            f"fastdiff::laplacian_merge: out must be on {bands[0].device} like bands, got {result.device}"
        )


def _check_devices(bands: Sequence[Tensor]) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if not bands:
        raise RuntimeError("fastdiff::laplacian_merge: bands must be 2..32 tensors, got 0")
    for n, band in enumerate(bands):
        if band.device != bands[0].device:
            raise RuntimeError(
                f"fastdiff::laplacian_merge: bands[{n}] must be on {bands[0].device} like bands[0], "
                f"got {band.device}"
            )


_native.define(f"laplacian_merge({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"laplacian_merge.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def laplacian_merge(bands: Sequence[Tensor], *, out: Tensor | None = None) -> Tensor:
    r"""The image whose Laplacian pyramid has these bands: the inverse of :func:`fastdiff.laplacian_split`.

    With L bands, :math:`G_{L-1} = \mathrm{band}_{L-1}` and for l = L - 2 ... 0:

    .. math::
        G_l = \mathrm{band}_l + \mathrm{up}(G_{l+1})

    and the result is G_0; ``up``, a bilinear resize by 2 followed by a binomial blur, is described there. It is the
    same ``up`` that split subtracts, so that merging what split returns gives the image back but for rounding, for
    all sizes. A level is one pass. Precision, order and the promise of equal bits are those of
    :func:`fastdiff.laplacian_split`.

    Equivalent to, for even sizes::

        image = bands[-1]
        for band in reversed(bands[:-1]):
            image = kornia.geometry.pyrup(image) + band

    Args:
        bands: 2 to 32 tensors, finest first: ``[*, H, W]``, ``[*, ceil(H / 2), ceil(W / 2)]``, ...; all float32,
            float16, bfloat16 or float64, any strides whose dimensions before the last two merge to at most 6. The
            fast path has rows of consecutive elements.
        out: where to write, like ``bands[0]``; may be exactly it (in place). Shares no memory with the other bands.

    Returns:
        The image, in the shape, dtype and layout of ``bands[0]`` (or ``out``). NaN and inf propagate as in the
        expression.

    Raises:
        RuntimeError: a wrong number of bands, dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: a gradient is asked for.

    Source: Sadat et al. 2025 (frequency-decoupled guidance, arXiv 2506.19713), algorithm 2;
    ``build_image_from_pyramid`` of diffusers.
    """
    given = list(bands)
    if torch.is_grad_enabled() and (
        any([t.requires_grad for t in given]) or (out is not None and out.requires_grad)  # noqa: C419
    ):
        raise NotImplementedError(
            "fastdiff.laplacian_merge: no gradient is defined; detach the tensors or call it under torch.no_grad()"
        )
    if out is None:
        image: Tensor = torch.ops.fastdiff.laplacian_merge.default(given)
        return image
    torch.ops.fastdiff.laplacian_merge.out(given, result=out)
    _native.mark_written([out])
    return out


def reference(bands: Sequence[Tensor]) -> Tensor:
    """:func:`laplacian_merge` in plain PyTorch and float64, rounded at the end."""
    image = bands[-1].double()
    for band in reversed(bands[:-1]):
        image = band.double() + reference_up(image, *band.shape[-2:])
    return image.to(bands[0].dtype)


def dlpack_arguments(bands: Sequence[Tensor]) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``laplacian_merge`` for a call of the public one, without ``out``."""
    from fastdiff import _C

    given = list(bands)
    scratch = torch.empty(_C.laplacian_merge_scratch(given), dtype=torch.uint8, device=given[0].device)
    return {"bands": given, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``laplacian_merge``."""
    return stored[0]


def tolerance(bands: Sequence[Tensor]) -> dict[str, float]:
    """Weights are positive and add up to 1: an image is at most the sum of the bands' largest."""
    largest = [float(b.double().nan_to_num(0, 0, 0).abs().max()) for b in bands if b.numel()]
    return {"scale": sum(largest), "terms": 8 * len(bands)}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        return (0.3 + torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    def pyramid(*shape: int, levels: int = 3, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        bands = []
        for _ in range(levels):
            bands.append(normal(shape, dtype))
            shape = (*shape[:-2], (shape[-2] + 1) // 2, (shape[-1] + 1) // 2)
        return bands

    def case(name: str, bands: list[Tensor]) -> Case:
        return Case(name, (bands,))

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    half, single, double, last = torch.bfloat16, torch.float32, torch.float64, torch.channels_last
    rough = pyramid(2, 2, 12, 20)
    rough[0][0, 0, 3, 3], rough[1][0, 1, 5, 9], rough[1][1, 0, 0, 0], rough[2][1, 1, 1, 2] = (
        math.nan, math.inf, -math.inf, math.nan)  # fmt: skip
    sizes = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 1), (3, 3), (4, 4), (5, 6), (7, 8), (6, 41), (19, 33))
    layouts = pyramid(2, 3, 8, 12)
    layouts[1] = layouts[1].to(memory_format=last)
    layouts[2] = normal((2, 3, 2, 6))[..., ::2]
    return [
        *(case(str(d)[6:], pyramid(2, 3, 12, 20, dtype=d)) for d in (single, torch.float16, half, double)),
        *(case(f"{h} x {w}", pyramid(2, h, w)) for h, w in sizes),
        case("two levels", pyramid(1, 4, 16, 32, levels=2)),
        case("more levels than there are sides", pyramid(1, 2, 9, 5, levels=7)),
        case("several strips", pyramid(1, 1, 10, 520, levels=2)),
        case("several strips, odd", pyramid(1, 9, 517, levels=2, dtype=half)),
        case("two columns in the last strip", pyramid(1, 6, 259, levels=2)),
        case("many rows", pyramid(1, 150, 9)),
        case("nan and inf", rough),
        case("channels_last", [b.to(memory_format=last) for b in pyramid(2, 5, 12, 14)]),
        case("layouts differ", layouts),
        case("transposed", [b.mT.contiguous().mT for b in pyramid(2, 3, 13, 11, levels=2)]),
        case("expanded", [b.expand(3, *b.shape[1:]) for b in pyramid(1, 2, 8, 10, levels=2)]),
        case("misaligned", [misaligned(b) for b in pyramid(2, 9, 21, levels=2)]),
        case("a video", pyramid(2, 3, 2, 6, 8, levels=2)),
        case("no planes", pyramid(10, 12, levels=2)),
        case("empty batch", pyramid(0, 3, 4, 6)),
    ]
