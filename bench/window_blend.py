# SPDX-License-Identifier: Apache-2.0
"""Cases of window_blend: the views of one denoising step, against the loop of diffusers' panorama pipeline."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from fastdiff.guidance.window_blend import Box, reference, window_blend, window_views
from torch import Tensor
from torch.nn import functional

OP = "window_blend"
EAGER, COMPILED = "eager", "torch.compile"

WINDOW, STRIDE = 64, 8  # of the pipeline
DTYPES = (torch.float32, torch.bfloat16)


class Work(NamedTuple):
    name: str
    title: str
    size: tuple[int, int]
    window: int = WINDOW
    stride: int = STRIDE
    channels: int = 4
    circular: bool = False
    weighted: bool = False


PANORAMA = Work("panorama", "views of a panorama, 512 × 2048", (64, 256))
WORKS = (
    Work("four_views", "four views of one image, half over each other", (64, 64), 48, 16),
    PANORAMA,
    PANORAMA._replace(name="circular", title="the same, all around", circular=True),
    PANORAMA._replace(name="weighted", title="the same, a weight per pixel of a view", weighted=True),
    Work("square", "views of 1024 × 1024", (128, 128)),
    Work("large", "16 channels, views of 2048 × 2048", (256, 256), stride=32, channels=16),
)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(work, dtype) for dtype in DTYPES for work in WORKS]


def _boxes(work: Work) -> tuple[Box, ...]:
    return window_views(work.size, work.window, work.stride, work.circular)


def _case(work: Work, dtype: torch.dtype) -> Case:
    shape = (1, work.channels, *work.size)
    read = len(_boxes(work)) * work.window**2 / math.prod(work.size)
    return Case(
        op=OP,
        name=work.name,
        title=work.title,
        shape=shape,
        dtype=dtype,
        tensors=round(read) + 1,
        build=lambda device: _contenders(work, dtype, device),
        targets=(Target(EAGER, factor=5.0), Target(COMPILED, factor=1.0)),
    )


def _contenders(work: Work, dtype: torch.dtype, device: torch.device) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    boxes = _boxes(work)
    views = torch.randn(len(boxes), 1, work.channels, work.window, work.window, generator=g).to(device, dtype)
    weights = _bump(work.window).to(device) if work.weighted else None
    want = reference(views.double(), boxes, work.size, weights, work.circular)
    # The loop adds up in the dtype of the views, one rounding for each view over a pixel.
    loop_check = close_to([want], roundoffs=4.0 * len(boxes))
    out = torch.empty(want.shape, dtype=dtype, device=device)
    inputs = [views] if weights is None else [views, weights.to(dtype)]

    def ours() -> tuple[Tensor]:
        return (window_blend(views, boxes, work.size, weights, work.circular, out=out),)

    return [
        Contender(EAGER, peers.with_tensors(blend_loop(boxes, work.size), inputs, []), loop_check),
        Contender(COMPILED, peers.compiled(padded_sum(boxes, work.size), inputs, []), loop_check),
        Contender(OURS, ours, close_to([want], roundoffs=4.0), rival=None),
    ]


def _bump(window: int) -> Tensor:
    """Weights that fall off towards the border of a view, so that no seam shows."""
    x = torch.linspace(-1, 1, window)
    return torch.exp(-2 * (x[:, None] ** 2 + x**2))


def blend_loop(boxes: Sequence[Box], size: tuple[int, int]) -> Callable[..., tuple[Tensor]]:
    """The end of the pipeline's step: `value` and `count` over all views, and their quotient."""

    def loop(views: Tensor, weights: Tensor | None = None) -> tuple[Tensor]:
        value = views.new_zeros((*views.shape[1:-2], *size))
        count = torch.zeros_like(value)
        for view, (y0, y1, x0, x1) in zip(views, boxes, strict=True):
            for begin, end, part in _parts(x0, x1, size[1]):
                if weights is None:
                    value[..., y0:y1, begin:end] += view[..., part]
                    count[..., y0:y1, begin:end] += 1
                else:
                    value[..., y0:y1, begin:end] += view[..., part] * weights[:, part]
                    count[..., y0:y1, begin:end] += weights[:, part]
        return (torch.where(count > 0, value / count, value),)

    return loop


def padded_sum(boxes: Sequence[Box], size: tuple[int, int]) -> Callable[..., tuple[Tensor]]:
    """The same sums without assignments to slices: the compiler inlines those into each other, twice for each view."""
    height, width = size

    def expression(views: Tensor, weights: Tensor | None = None) -> tuple[Tensor]:
        value = views.new_zeros((*views.shape[1:-2], *size))
        count = views.new_zeros(size)
        ones = views.new_ones(views.shape[-2:]) if weights is None else weights
        for view, (y0, y1, x0, x1) in zip(views.unbind(), boxes, strict=True):
            for begin, end, part in _parts(x0, x1, width):
                margins = (begin, width - end, y0, height - y1)
                term = view[..., part] if weights is None else view[..., part] * weights[:, part]
                value = value + functional.pad(term, margins)
                count = count + functional.pad(ones[:, part], margins)
        return (torch.where(count > 0, value / count, value),)

    return expression


def _parts(x0: int, x1: int, width: int) -> list[tuple[int, int, slice]]:
    """Columns of the image and those of the view, in two parts where the view wraps around."""
    if x1 <= width:
        return [(x0, x1, slice(None))]
    return [(x0, width, slice(0, width - x0)), (0, x1 - width, slice(width - x0, None))]
