# SPDX-License-Identifier: Apache-2.0
"""window_blend: overlapping views of one image become the image, each pixel the mean of the views over it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

Box = tuple[int, int, int, int]

_ARGUMENTS = "Tensor views, int[] boxes, int height, int width, bool circular, Tensor? weights=None"


def _fake(
    views: Tensor,
    boxes: Sequence[int],
    height: int,
    width: int,
    circular: bool,
    weights: Tensor | None = None,
) -> Tensor:
    _check_devices(views, weights=weights)
    shape = (*views.shape[1:-2], height, width)
    # The dimensions lie in memory as those of the views do; empty_like has the rule for what "as" means.
    return torch.empty_like(views.new_empty_strided(shape, views.stride()[1:]))


def _fake_out(
    views: Tensor,
    boxes: Sequence[int],
    height: int,
    width: int,
    circular: bool,
    weights: Tensor | None = None,
    *,
    result: Tensor,
) -> None:
    _check_devices(views, weights=weights, out=result)


def _check_devices(views: Tensor, **others: Tensor | None) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, x in others.items():
        if x is not None and x.device != views.device:
            raise RuntimeError(
                f"fastdiff::window_blend: {name} must be on {views.device} like views, got {x.device}"
            )


# NOTE: boxes are ints and no table of our own on the device: under torch.compile they are constants that are guarded,
# in an exported program they can be read, and no caller can pass a table that points outside the views.
_native.define(f"window_blend({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"window_blend.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def window_blend(
    views: Tensor | Sequence[Tensor],
    boxes: Sequence[Sequence[int]] | Tensor,
    size: Sequence[int],
    weights: Tensor | None = None,
    circular: bool = False,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""The image that overlapping views are of: each pixel is the weighted mean of the views over it.

    For each pixel p of the image, over the views i whose box covers it, in their order:

    .. math::
        J(p) = \frac{\sum_i W_i(p)\, \Phi_i(p)}{\sum_i W_i(p)}

    where Phi_i(p) is the view's own pixel there, and W_i(p) its weight. Every view is read once and the image written
    once; the number of views at each pixel is never stored. Sums are formed in float32 (float64 for float64) with
    fused multiply-adds in the order of the views, divided, and rounded once: the result has the same bits on CPU (any
    instruction set, any number of threads) and CUDA, for any layout.

    Which views cover which pixels is worked out on the first call with these boxes, and kept: later calls copy
    nothing to the device and wait for nothing, so that a step can be captured in a CUDA graph once it has run outside
    of one. Under ``torch.compile`` boxes are constants: other boxes are another graph.

    Equivalent to, without weights and for boxes that do not wrap::

        value, count = torch.zeros(B, C, H, W), torch.zeros(B, C, H, W)
        for view, (y0, y1, x0, x1) in zip(views, boxes):
            value[..., y0:y1, x0:x1] += view
            count[..., y0:y1, x0:x1] += 1
        image = value / count

    Trap: that loop in diffusers ends in ``torch.where(count > 0, value / count, value)``, which silently leaves 0
    where no view is, and ``get_views`` rounds the number of views down, so that there can be such pixels at the right
    and lower border. Here they are an error; :func:`window_views` moves the last view to the border instead.

    Args:
        views: ``[V, *, h, w]``, such as ``[V, B, C, h, w]``: float32, float16, bfloat16 or float64, any strides whose
            dimensions between the first and the last two merge to at most 6. The fast paths are contiguous rows, and
            channels that lie innermost (channels_last). Or V tensors ``[*, h, w]``, which are copied into one first.
        boxes: for each view its ``(y0, y1, x0, x1)``, as diffusers' ``get_views`` and :func:`window_views` return
            them: rows y0 <= y < y1 and columns x0 <= x < x1 of the image. Or an integer tensor ``[V, 4]``, which is
            read by the host in each call (on CUDA that waits for the device) and refused under ``torch.compile``.
        size: (H, W) of the image.
        weights: ``[V]`` for each view, ``[h, w]`` for each pixel of any view, or ``[V, h, w]``; float32, float16,
            bfloat16 or float64, taken as float32 (float64 if views are). None: all are 1.
        circular: boxes may wrap around in x, as panoramas of 360 degrees do: x1 > W, or any x0, modulo W.
        out: where to write the image, ``[*, H, W]`` of the dtype of views, any strides; shares no memory with views or
            weights.

    Returns:
        The image ``[*, H, W]``, with dimensions in memory as in the views (or ``out``). NaN and inf propagate as in the
        expression, from the views that cover a pixel with a weight that is not 0: where a weight is exactly 0 the view
        is not read. Weights are not looked at before: where those over a pixel are all 0 the result is NaN (0/0), and
        where others cancel it is what the division gives.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap; a box that is not of the size of its view or leaves the
            image; pixels that no box covers, with the first of them. Nothing is written then.
        NotImplementedError: a gradient is asked for, or boxes are a tensor under ``torch.compile``.

    Source: Bar-Tal et al. 2023 (MultiDiffusion), the closed form of its per-pixel least squares problem for views
    that are crops; ``StableDiffusionPanoramaPipeline`` of diffusers; Kim et al. 2024 (BeyondScene) for views that are
    not on a regular grid.
    """
    stacked = views if isinstance(views, Tensor) else _stack(views)
    given = [t for t in (stacked, weights, out) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise NotImplementedError(
            "fastdiff.window_blend: no gradient is defined; detach the tensors or call it under torch.no_grad()"
        )
    height, width = size
    numbers = _numbers(boxes)
    if out is None:
        result: Tensor = torch.ops.fastdiff.window_blend.default(
            stacked, numbers, height, width, circular, weights
        )
        return result
    torch.ops.fastdiff.window_blend.out(stacked, numbers, height, width, circular, weights, result=out)
    _native.mark_written([out])
    return out


def _stack(views: Sequence[Tensor]) -> Tensor:
    if not views:
        raise RuntimeError("fastdiff::window_blend: views must be at least one view, got none")
    for n, view in enumerate(views):
        first = views[0]
        if (view.shape, view.dtype, view.device) != (first.shape, first.dtype, first.device):
            raise RuntimeError(
                f"fastdiff::window_blend: views[{n}] must be {_kind(first)} like views[0], got {_kind(view)}"
            )
    return torch.stack(list(views))


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def _numbers(boxes: Sequence[Sequence[int]] | Tensor) -> list[int]:
    """All numbers of the boxes in one list; that there are four for each view, the operator checks."""
    if not isinstance(boxes, Tensor):
        return list(chain.from_iterable(boxes))
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "fastdiff.window_blend: under torch.compile boxes must be a sequence of ints, got a tensor"
        )
    if boxes.is_floating_point() or boxes.is_complex() or boxes.dim() != 2 or boxes.shape[1] != 4:
        raise RuntimeError(f"fastdiff::window_blend: boxes must be integers [V, 4], got {_kind(boxes)}")
    numbers: list[int] = boxes.flatten().tolist()
    return numbers


def window_views(
    size: Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int],
    circular: bool = False,
) -> tuple[Box, ...]:
    """The boxes of windows that slide over an image, row by row, for :func:`window_blend`.

    Windows begin at every multiple of the stride, and the last one of a row or column at the border: every pixel is
    covered. Where the image is a whole number of strides longer than the window these are the boxes of diffusers'
    ``get_views``; elsewhere that leaves the remaining pixels out.

    Args:
        size: (H, W) of the image.
        window: (h, w) of the windows, or one number for both; at most ``size``.
        stride: the same for the distance from one window to the next; at most ``window``, or there would be gaps.
        circular: windows wrap around in x, beginning at every multiple of the stride below W; their x1 may be > W.

    Returns:
        ``(y0, y1, x0, x1)`` for each window.

    Raises:
        ValueError: a number that is not positive, a window larger than the image, a stride longer than the window.
    """
    (height, width), (h, w), (down, right) = (
        _pair("size", size),
        _pair("window", window),
        _pair("stride", stride),
    )
    if h > height or w > width:
        raise ValueError(f"window_views: window must fit into size {(height, width)}, got {(h, w)}")
    if down > h or right > w:
        raise ValueError(f"window_views: stride must be at most window {(h, w)}, got {(down, right)}")
    rows = [*range(0, height - h, down), height - h]
    columns = (
        [*range(0, width, right)] if circular and w < width else [*range(0, width - w, right), width - w]
    )
    return tuple((y, y + h, x, x + w) for y in rows for x in columns)


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    numbers = [operator.index(n) for n in (value if isinstance(value, Sequence) else (value, value))]
    if len(numbers) != 2 or min(numbers) < 1:
        raise ValueError(f"window_views: {name} must be one or two positive ints, got {value!r}")
    return numbers[0], numbers[1]


def reference(
    views: Tensor | Sequence[Tensor],
    boxes: Sequence[Sequence[int]] | Tensor,
    size: Sequence[int],
    weights: Tensor | None = None,
    circular: bool = False,
) -> Tensor:
    """:func:`window_blend` in plain PyTorch and float64, rounded at the end."""
    views = views if isinstance(views, Tensor) else _stack(views)
    value = torch.zeros(*views.shape[1:-2], *size, dtype=torch.float64, device=views.device)
    total = torch.zeros(*size, dtype=torch.float64, device=views.device)
    if weights is None:
        weights = value.new_ones(len(views))
    each = (weights.double() if weights.dim() != 2 else weights.double().expand(len(views), -1, -1)).unbind()
    for view, weight, (y0, y1, x0, x1) in zip(views.double(), each, boxes, strict=True):
        columns = torch.arange(int(x0), int(x1), device=views.device) % size[1]
        term = torch.where(weight == 0, 0.0, weight * view)
        value[..., int(y0) : int(y1), columns] += term
        total[int(y0) : int(y1), columns] += weight
    return (value / total).to(views.dtype)


def dlpack_arguments(
    views: Tensor | Sequence[Tensor],
    boxes: Sequence[Sequence[int]],
    size: Sequence[int],
    weights: Tensor | None = None,
    circular: bool = False,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``window_blend``, for CUDA, for a call of the public one; no ``out``."""
    from fastdiff import _C

    views = views if isinstance(views, Tensor) else _stack(views)
    numbers = _C.window_blend_table(views, _numbers(boxes), tuple(size), circular=circular, cuda=True)
    table = torch.tensor(numbers, device=views.device)
    return {"views": views, "table": table, "weights": weights}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``window_blend``."""
    return stored[0]


def tolerance(views: Tensor | Sequence[Tensor], *_: Any, **__: Any) -> dict[str, float]:
    """A sum of as many terms as there are views, of either sign; weights of the cases are positive."""
    views = views if isinstance(views, Tensor) else _stack(views)
    largest = views.double().nan_to_num(0, 0, 0).abs()
    return {"scale": float(largest.max()) if views.numel() else 0.0, "terms": 2 * len(views) + 2}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def positive(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.rand(shape, generator=g, dtype=torch.float64) + 0.1).to(dtype)

    def case(
        name: str,
        size: tuple[int, int],
        window: tuple[int, int],
        stride: tuple[int, int],
        planes: tuple[int, ...] = (2, 3),
        dtype: torch.dtype = torch.float32,
        circular: bool = False,
        **options: Tensor,
    ) -> Case:
        boxes = window_views(size, window, stride, circular)
        kwargs = {"circular": True} if circular else {}
        return Case(
            name, (normal(len(boxes), *planes, *window, dtype=dtype), boxes, size), {**kwargs, **options}
        )

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    def changed(base: Case, change: Any) -> Case:
        return Case(base.name, (change(base.args[0]), *base.args[1:]), base.kwargs)

    def channels_last(views: Tensor) -> Tensor:
        return views.movedim(-3, -1).contiguous().movedim(-1, -3)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    grid: dict[str, Any] = {"size": (14, 50), "window": (8, 20), "stride": (3, 7)}
    rough = case("nan and inf", **grid)
    for place, value in (
        ((1, 0, 0, 2, 3), math.nan),
        ((4, 1, 2, 5, 6), math.inf),
        ((7, 0, 1, 1, 1), -math.inf),
    ):
        rough.args[0][place] = value
    zeros = positive(18, 8, 20)  # other views lie over all pixels of every third
    zeros[1::3] *= zeros[1::3] > 0.5
    zeros[4] = 0
    unread = case("weights of 0 are not read", **grid, weights=zeros)
    unread.args[0][4] = math.nan
    unread.args[0][(zeros == 0)[:, None, None].expand(-1, 2, 3, -1, -1)] = math.inf
    odd = [
        (5, 8, 3, 10),
        (0, 3, 0, 7),
        (0, 3, 3, 10),
        (2, 5, 0, 7),
        (4, 7, 3, 10),
        (2, 5, 3, 10),
        (5, 8, 0, 7),
    ]
    wrapped = [(0, 5, -3, 4), (0, 5, 3, 10), (0, 5, 27, 34), (0, 5, 8, 15)]
    whole = Case("one view is the image", (normal(1, 2, 3, 5, 9), [(0, 5, 0, 9)], (5, 9)))
    return [
        *(case(str(d)[6:], **grid, dtype=d) for d in (single, torch.float16, half, double)),
        whole,
        case("one pixel", (1, 1), (1, 1), (1, 1), (1, 1)),
        case("disjoint views", (6, 40), (3, 10), (3, 10)),
        case("a panorama", (16, 64), (16, 16), (16, 4), (1, 4), half),
        case("several tiles", (19, 530), (9, 300), (9, 100), (1, 2)),
        Case("any order", (normal(7, 2, 1, 3, 7), odd, (8, 10))),
        Case("the same view twice", (normal(2, 1, 3, 4, 5), [(0, 4, 0, 5)] * 2, (4, 5))),
        case("circular", (9, 30), (6, 12), (3, 5), circular=True),
        Case("circular, any x0", (normal(4, 1, 2, 5, 7), wrapped, (5, 12)), {"circular": True}),
        Case("circular, as wide as the image", (normal(2, 1, 2, 3, 8), [(0, 3, 5, 13), (0, 3, 0, 8)], (3, 8)),
             {"circular": True}),
        case("a weight per view", **grid, weights=positive(18)),
        case("a weight per pixel", **grid, weights=positive(8, 20)),
        case("a weight per view and pixel", **grid, weights=positive(18, 8, 20)),
        case("weights of another dtype", **grid, dtype=half, weights=positive(8, 20, dtype=torch.float16)),
        case("float64 with float32 weights", **grid, dtype=double, weights=positive(18, 8, 20)),
        case("float64 weights", **grid, weights=positive(18, dtype=double)),
        case("strided weights", **grid, weights=positive(20, 8).t()),
        unread,
        rough,
        changed(case("channels_last", **grid, planes=(2, 4)), channels_last),
        changed(case("channels_last, weighted", **grid, dtype=half, weights=positive(8, 20)), channels_last),
        changed(case("channels_last, one plane", **grid, planes=(5,), weights=positive(18)), channels_last),
        changed(case("transposed", **grid), lambda x: x.mT.contiguous().mT),
        changed(case("expanded", **grid, planes=(2, 1)), lambda x: x.expand(-1, -1, 3, -1, -1)),
        changed(case("misaligned", **grid), misaligned),
        Case("a sequence of views", (list(normal(3, 1, 2, 4, 6)), window_views((4, 12), (4, 6), 3), (4, 12))),
        case("no planes", **grid, planes=()),
        case("many planes", (5, 9), (4, 5), (1, 2), (3, 4, 5)),
        case("empty batch", **grid, planes=(0, 3)),
        case("no channels", **grid, planes=(2, 0)),
    ]  # fmt: skip
