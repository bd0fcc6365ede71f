# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show of window_blend: tables that stay on the device. The contract's tests run there too."""

from __future__ import annotations

import pytest
import torch
from fastdiff import window_blend
from fastdiff.guidance import window_views
from torch import Tensor

from tests.kit.compare import assert_same_bits

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device in this machine (torch.cuda.is_available())"
)

SIZE = (64, 130)
BOXES = window_views(SIZE, 32, 16)


def views(seed: int) -> Tensor:
    return torch.randn(len(BOXES), 2, 4, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_only_the_first_call_waits_for_the_device() -> None:
    x = views(0).cuda()
    first = window_blend(x, BOXES, SIZE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = window_blend(x, list(BOXES), SIZE)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same_bits([first.cpu(), again.cpu()], [window_blend(views(0), BOXES, SIZE)] * 2)


def test_a_captured_step_keeps_its_table() -> None:
    """More other boxes than are kept come between capture and replay."""
    x = views(0).cuda()
    out = window_blend(x, BOXES, SIZE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        window_blend(x, BOXES, SIZE, out=out)
    for width in range(40, 140):
        boxes = window_views((32, width), 32, 20)
        window_blend(torch.ones(len(boxes), 1, 32, 32, device="cuda"), boxes, (32, width))
    for seed in (1, 2):
        x.copy_(views(seed))
        graph.replay()
        assert_same_bits([out.cpu()], [window_blend(views(seed), BOXES, SIZE)])


def test_new_boxes_are_refused_while_a_graph_is_captured() -> None:
    boxes = ((0, 32, 0, 32), (0, 32, 9, 41))
    x = torch.ones(2, 1, 32, 32, device="cuda")
    out = torch.empty(1, 32, 41, device="cuda")
    with (
        pytest.raises(
            RuntimeError, match="boxes must have been used before a CUDA graph is captured with them"
        ),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        window_blend(x, boxes, (32, 41), out=out)
    assert window_blend(x, boxes, (32, 41)).unique().tolist() == [1.0]


def test_several_planes_for_each_thread() -> None:
    """Enough pixels to fill the device, so that each thread takes four planes, and the last of them fewer."""
    size, boxes = (512, 512), window_views((512, 512), 256, 128)
    x = torch.randn(len(boxes), 3, 7, 256, 256, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        got = window_blend(x.to("cuda", dtype), boxes, size).cpu()
        assert_same_bits([got], [window_blend(x.to(dtype), boxes, size)])
