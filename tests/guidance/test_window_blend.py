# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about window_blend: coverage, boxes, weights, the tables that it keeps."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, window_blend
from fastdiff.guidance import window_views
from fastdiff.guidance.window_blend import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.guidance.window_blend_refusals import BOXES, OUT, REFUSALS, SIZE, VIEWS
from tests.kit.backends import instruction_set, simt_worker, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.simt.worker import SimtCrashError, SimtWorker
from tests.kit.trees import Canary

INF, NAN = math.inf, math.nan
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
each_isa = pytest.mark.parametrize("isa", usable_isas())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

Box = tuple[int, int, int, int]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.1


def assert_right(views: Tensor, boxes: Sequence[Box], size: tuple[int, int], *options: Any) -> None:
    got, want = window_blend(views, boxes, size, *options), reference(views, boxes, size, *options)
    assert_close(got, want, **tolerance(views), what=f"{list(views.shape)} {views.dtype} {boxes} {size}")


def diffusers_loop(views: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    """`value` and `count` of the panorama pipeline, in the dtype of the views."""
    value = torch.zeros(*views.shape[1:-2], *size, dtype=views.dtype)
    count = torch.zeros_like(value)
    for view, (y0, y1, x0, x1) in zip(views, boxes, strict=True):
        if x1 > size[1]:
            seam = size[1] - x0
            value[..., y0:y1, x0:] += view[..., :seam]
            value[..., y0:y1, : x1 - size[1]] += view[..., seam:]
            count[..., y0:y1, x0:] += 1
            count[..., y0:y1, : x1 - size[1]] += 1
        else:
            value[..., y0:y1, x0:x1] += view
            count[..., y0:y1, x0:x1] += 1
    return torch.where(count > 0, value / count, value)


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(options: dict[str, Any], message: str, mode: Any) -> None:
    canary = Canary(OUT)
    before = canary.tensor.clone()
    arguments = {"views": VIEWS, "boxes": BOXES, "size": SIZE, "out": canary.tensor} | options
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::window_blend: {message}"):
        window_blend(**arguments)
    assert_same_bits([canary.tensor], [before], "something was written")


def test_refuses_memory_in_common() -> None:
    room = torch.zeros(4 * 2 * 3 * 4 * 6 + 100)
    views, out = room[: VIEWS.numel()].view(VIEWS.shape), room[100 : 100 + OUT.numel()].view(OUT.shape)
    with pytest.raises(RuntimeError, match="out must not share memory with views"):
        window_blend(views, BOXES, SIZE, out=out)
    with pytest.raises(RuntimeError, match="out must not share memory with weights"):
        window_blend(VIEWS, BOXES, SIZE, out.flatten()[-4:], out=out)


@pytest.mark.parametrize("name", ["views", "weights", "out"])
def test_refuses_gradients(name: str) -> None:
    tensors = {"views": VIEWS, "weights": torch.ones(4), "out": OUT}
    tensors[name] = tensors[name].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=r"fastdiff\.window_blend: no gradient is defined"):
        window_blend(tensors["views"], BOXES, SIZE, tensors["weights"], out=tensors["out"])


# ---- values ----------------------------------------------------------------------------------------------------


@st.composite
def works(draw: st.DrawFn) -> tuple[Tensor, list[Box], tuple[int, int], Tensor | None, bool]:
    """Views anywhere on an image, in any order, after a grid of them that covers it; any weights."""
    height, width = draw(st.integers(1, 21)), draw(st.integers(1, 40))
    h, w = draw(st.integers(1, height)), draw(st.integers(1, width))
    down, right = draw(st.integers(1, h)), draw(st.integers(max(1, w // 2), w))
    circular = draw(st.booleans())
    boxes = list(window_views((height, width), (h, w), (down, right), circular))
    for _ in range(draw(st.integers(0, 4))):
        y = draw(st.integers(0, height - h))
        x = draw(st.integers(-100, 100) if circular else st.integers(0, width - w))
        boxes.append((y, y + h, x, x + w))
    boxes = draw(st.permutations(boxes))
    seed = draw(st.integers(0, 99))
    planes = draw(st.sampled_from([(), (1,), (2, 3), (2, 1, 2), (0, 2)]))
    views = normal(len(boxes), *planes, h, w, dtype=draw(st.sampled_from(DTYPES)), seed=seed)
    shape = draw(st.sampled_from([None, (len(boxes),), (h, w), (len(boxes), h, w)]))
    return views, boxes, (height, width), None if shape is None else positive(*shape, seed=seed), circular


@settings(max_examples=200, deadline=None)
@given(work=works(), memory=st.sampled_from(["contiguous", "channels last", "columns apart"]))
def test_equals_the_definition(work: Any, memory: str) -> None:
    views, *others = work
    if memory == "channels last":
        views = views.movedim(-3, -1).contiguous().movedim(-1, -3)
    elif memory == "columns apart":
        views = torch.stack((views, views), -1)[..., 0]
    assert_right(views, *others)


@each_isa
@each_dtype
@pytest.mark.parametrize("width", [63, 255, 256, 257, 700])
@pytest.mark.parametrize("window", [(1, 1), (9, 17), (20, 60)])
def test_equals_the_definition_across_tiles(
    width: int, window: tuple[int, int], dtype: torch.dtype, isa: str
) -> None:
    size = (23, width)
    boxes = window_views(size, window, (max(1, window[0] // 2), max(1, window[1] // 2)))
    if window == (1, 1):
        boxes = boxes[::-1]
    with instruction_set(isa):
        assert_right(normal(len(boxes), 1, 2, *window, dtype=dtype), boxes, size)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_last_keeps_its_layout(dtype: torch.dtype, weighted: bool) -> None:
    """Channels side by side in memory; more of them than a block of sums has columns too."""
    boxes = window_views((10, 33), (6, 20), (4, 13))
    weights = positive(len(boxes), 6, 20) if weighted else None
    for channels in (2, 3, 300):
        views = normal(len(boxes), 2, 6, 20, channels, dtype=dtype).movedim(-1, 2)
        got = window_blend(views, boxes, (10, 33), weights)
        assert got.is_contiguous(memory_format=torch.channels_last)
        want = window_blend(views.contiguous(), boxes, (10, 33), weights)
        assert want.is_contiguous()
        assert_same_bits([got], [want])


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(16, 4), (16, 8), (12, 4)])
def test_equals_the_loop_of_diffusers(window: int, stride: int, circular: bool) -> None:
    """In float32 to the bit: additions in the same order, then the same division."""
    size = (16, 48)
    boxes = window_views(size, window, stride, circular)
    views = normal(len(boxes), 1, 4, window, window)
    assert_same_bits(
        [window_blend(views, boxes, size, circular=circular)], [diffusers_loop(views, boxes, size)]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_is_no_worse_than_eager(dtype: torch.dtype) -> None:
    size = (16, 64)
    boxes = window_views(size, 16, 2)
    views = normal(len(boxes), 1, 4, 16, 16, dtype=dtype)
    want = reference(views.double(), boxes, size)

    def error(x: Tensor) -> float:
        return float((x.double() - want).square().mean())

    assert 2 * error(window_blend(views, boxes, size)) < error(diffusers_loop(views, boxes, size))


@each_isa
@each_dtype
def test_equal_views_give_their_own_value(dtype: torch.dtype, isa: str) -> None:
    """Three times x is no power of two; multiplied by a rounded 1/3 it would not be x again."""
    x = normal(1, 4, 33, dtype=torch.float32).to(dtype)
    with instruction_set(isa):
        for count in (1, 3, 7, 49):
            exact = (x.double() * 2**10).round() / 2**10  # so that the sum is exact
            views = exact.to(dtype).expand(count, 1, 4, 33)
            assert_same_bits([window_blend(views, [(0, 4, 0, 33)] * count, (4, 33))], [views[0]])


def test_is_closed_form_of_least_squares() -> None:
    """MultiDiffusion's problem: the image of least weighted squared distance from all views."""
    boxes = window_views((5, 9), (3, 4), (1, 2))
    views, weights = normal(len(boxes), 3, 4).double(), positive(len(boxes), 3, 4).double()
    rows, targets = [], []
    for view, weight, (y0, _, x0, _) in zip(views, weights, boxes, strict=True):
        for y in range(3):
            for x in range(4):
                row = torch.zeros(45, dtype=torch.float64)
                row[(y0 + y) * 9 + x0 + x] = weight[y, x].sqrt()
                rows.append(row)
                targets.append(view[y, x] * weight[y, x].sqrt())
    want = torch.linalg.lstsq(torch.stack(rows), torch.stack(targets)[:, None]).solution.view(5, 9)
    torch.testing.assert_close(window_blend(views, boxes, (5, 9), weights), want, rtol=1e-12, atol=1e-12)


# ---- NaN, inf, zero weights ------------------------------------------------------------------------------------


@each_isa
@each_dtype
def test_nan_and_inf_are_those_of_eager(dtype: torch.dtype, isa: str) -> None:
    boxes, size = window_views((5, 40), (5, 24), (1, 8)), (5, 40)
    views = normal(len(boxes), 1, 5, 24, dtype=dtype)
    views[0, 0, 0, 3] = NAN
    views[1, 0, 1, 5], views[2, 0, 2, 7] = INF, -INF
    views[0, 0, 4, 16], views[1, 0, 4, 8] = INF, -INF  # the same pixel
    with instruction_set(isa):
        got = window_blend(views, boxes, size)
    want = diffusers_loop(views.double(), boxes, size)
    assert_same_bits([got.isnan()], [want.isnan()])
    assert_same_bits([got.isinf()], [want.isinf()])
    assert int(want.isnan().sum()) == 2


WEIGHT_SHAPES = {"view": (), "pixel": (4, 33)}


@each_isa
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("shape", WEIGHT_SHAPES.values(), ids=WEIGHT_SHAPES)
def test_what_has_no_weight_is_not_read(shape: tuple[int, ...], bad: float, zero: float, isa: str) -> None:
    views, weights = normal(3, 2, 4, 33), positive(3, *shape)
    weights[1] = zero
    with instruction_set(isa):
        want = window_blend(views[::2], [(0, 4, 0, 33)] * 2, (4, 33), weights[::2])
        views[1] = bad
        got = window_blend(views, [(0, 4, 0, 33)] * 3, (4, 33), weights)
    assert_same_bits([got], [want])


@pytest.mark.parametrize("backend", ["cpu", "simt"])
def test_weights_without_a_sum_are_loud(backend: str) -> None:
    """0/0 is NaN, also where nothing has been read; other sums of 0 are what the division gives."""
    views = torch.tensor([[2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 2.0, 1.0]])[:, None]
    weights = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, -1.0, -1.0, 0.0]])[:, None]
    boxes = [(0, 1, 0, 4)] * 2
    got = window_blend(views, boxes, (1, 4), weights)
    if backend == "simt":
        got = torch.empty_like(got)
        simt_call(views, simt_table(views, boxes, (1, 4)), got, weights=weights)
    assert got[0, :2].tolist()[1] == INF
    assert got[0].isnan().tolist() == [True, False, True, False]
    assert float(got[0, 3]) == 2.0


def test_tiny_weights() -> None:
    """1 over their sum would be infinite. (Products with powers of two and few-bit values are exact.)"""
    views = torch.arange(-8.0, 8.0).repeat(2, 1, 2)
    weights = torch.full((2,), 2.0**-135)
    assert_same_bits([window_blend(views, [(0, 1, 0, 32)] * 2, (1, 32), weights)], [views[0]])


def test_ones_are_no_weights() -> None:
    size, boxes = (9, 40), window_views((9, 40), (4, 20), (2, 7))
    views = normal(len(boxes), 2, 4, 20)
    want = window_blend(views, boxes, size)
    for shape in ((len(boxes),), (4, 20), (len(boxes), 4, 20)):
        assert_same_bits([window_blend(views, boxes, size, torch.ones(shape))], [want])


# ---- boxes -----------------------------------------------------------------------------------------------------


def test_boxes_in_any_form() -> None:
    want = window_blend(VIEWS, BOXES, SIZE)
    for boxes in (
        list(BOXES),
        [list(box) for box in BOXES],
        np.array(BOXES),
        torch.tensor(BOXES),
        torch.tensor(BOXES, dtype=torch.int32),
    ):
        assert_same_bits([window_blend(VIEWS, boxes, SIZE)], [want])
    assert_same_bits([window_blend(list(VIEWS), BOXES, torch.Size(SIZE))], [want])


def test_circular_boxes_are_modulo_the_width() -> None:
    boxes = window_views(SIZE, (4, 6), (2, 4), circular=True)
    views = normal(len(boxes), 2, 4, 6)
    want = window_blend(views, boxes, SIZE, circular=True)
    assert_same_bits([want], [diffusers_loop(views, boxes, SIZE)])
    for turns in (-3, 1, 10**9):
        shifted = [(y0, y1, x0 + 10 * turns, x1 + 10 * turns) for y0, y1, x0, x1 in boxes]
        assert_same_bits([window_blend(views, shifted, SIZE, circular=True)], [want])
    rolled = [(y0, y1, x0 + 3, x1 + 3) for y0, y1, x0, x1 in boxes]
    assert_same_bits([window_blend(views, rolled, SIZE, circular=True)], [want.roll(3, -1)])


def test_a_view_of_the_whole_circle() -> None:
    view = normal(1, 2, 3, 7)
    got = window_blend(view, [(0, 3, 5, 12)], (3, 7), circular=True)
    assert_same_bits([got], [view[0].roll(5, -1)])


def test_many_views() -> None:
    """Five thousand, one for each pixel of their own and some over all."""
    size = (50, 100)
    boxes = window_views(size, 1, 1)
    views = normal(5000, 1, 1, 1)
    assert_same_bits([window_blend(views, boxes, size)], [views.view(1, 50, 100)])
    boxes = window_views((60, 60), 10, 1)
    assert_right(normal(len(boxes), 2, 10, 10), boxes, (60, 60))


def test_boxes_that_change_in_every_call() -> None:
    """More sets of boxes than are kept, each used again later."""
    views = normal(2, 1, 3, 80)
    for _ in range(2):
        for x in range(1, 71):
            assert_right(views, [(0, 3, 0, 80), (0, 3, x, x + 80)], (3, 80 + x))


def test_the_size_is_part_of_what_is_kept() -> None:
    boxes = [(0, 4, 0, 6), (0, 4, 2, 8)]
    for circular in (False, True, False):
        assert_right(normal(2, 1, 4, 6), boxes, (4, 8), None, circular)
    with pytest.raises(RuntimeError, match="cover every pixel"):
        window_blend(normal(2, 1, 4, 6), boxes, (4, 9), circular=True)
    with pytest.raises(RuntimeError, match="like its view"):
        window_blend(normal(2, 1, 4, 5), boxes, (4, 8))


# ---- window_views ----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_windows_cover_every_pixel(data: st.DataObject) -> None:
    size = (data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40)))
    window = tuple(data.draw(st.integers(1, n)) for n in size)
    stride = tuple(data.draw(st.integers(1, n)) for n in window)
    circular = data.draw(st.booleans())
    boxes = window_views(size, window, stride, circular)
    assert len(set(boxes)) == len(boxes)
    image = window_blend(torch.ones(len(boxes), *window), boxes, size, circular=circular)
    assert image.unique().tolist() == [1.0]


def get_views_of_diffusers() -> Callable[..., list[Box]]:
    """The method, out of its module: to import that takes packages that only whole pipelines need."""
    diffusers = pytest.importorskip("diffusers")
    found = sorted(Path(diffusers.__file__).parent.rglob("pipeline_stable_diffusion_panorama.py"))
    if not found:
        pytest.skip("this version of diffusers has no panorama pipeline")
    for node in ast.walk(ast.parse(found[0].read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "get_views":
            node.decorator_list, node.returns = [], None
            for argument in node.args.args:
                argument.annotation = None
            namespace: dict[str, Any] = {}
            exec(compile(ast.Module([node], []), found[0].name, "exec"), namespace)
            function: Callable[..., list[Box]] = namespace["get_views"]
            return function
    raise AssertionError("the pipeline has no get_views")


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("size", [(64, 256), (64, 64), (96, 128), (64, 72)])
def test_windows_are_those_of_diffusers(size: tuple[int, int], circular: bool) -> None:
    theirs = get_views_of_diffusers()(None, 8 * size[0], 8 * size[1], 64, 8, circular_padding=circular)
    assert list(window_views(size, 64, 8, circular)) == theirs


def test_last_window_is_at_the_border() -> None:
    assert window_views((64, 100), 64, 30) == ((0, 64, 0, 64), (0, 64, 30, 94), (0, 64, 36, 100))
    assert window_views((5, 4), (3, 4), 2) == ((0, 3, 0, 4), (2, 5, 0, 4))
    assert window_views((1, 10), (1, 4), (1, 4), circular=True) == ((0, 1, 0, 4), (0, 1, 4, 8), (0, 1, 8, 12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 4), 5, 1), r"window must fit into size \(4, 4\), got \(5, 5\)"),
        (((4, 4), (4, 3), (1, 4)), r"stride must be at most window \(4, 3\), got \(1, 4\)"),
        (((4, 0), 1, 1), r"size must be one or two positive ints, got \(4, 0\)"),
        (((4, 4), 2, 0), "stride must be one or two positive ints, got 0"),
        (((4, 4), (1, 2, 3), 1), r"window must be one or two positive ints, got \(1, 2, 3\)"),
    ],
)
def test_windows_refuse(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^window_views: {message}"):
        window_views(*arguments)


# ---- threads, memory, compilation ------------------------------------------------------------------------------


@each_isa
@pytest.mark.parametrize("kind", ["none", "per view", "per pixel"])
def test_any_thread_count(kind: str, isa: str) -> None:
    """Enough work for several threads, whose ranges begin inside of a tile's planes."""
    size, boxes = (70, 300), window_views((70, 300), (40, 64), (10, 16))
    views = normal(len(boxes), 1, 5, 40, 64)
    weights = {"none": None, "per view": positive(len(boxes)), "per pixel": positive(40, 64)}[kind]
    with instruction_set(isa):
        torch.set_num_threads(1)
        want = window_blend(views, boxes, size, weights)
        for threads in (2, 3, 7):
            torch.set_num_threads(threads)
            assert_same_bits([window_blend(views, boxes, size, weights)], [want], f"{threads} threads")
    assert_close(want, reference(views, boxes, size, weights), **tolerance(views))


def test_more_than_2_to_the_31_elements_apart() -> None:
    """The last of the views is further away than a 32-bit offset reaches; the memory between is never touched."""
    room = torch.empty(2**31 + 100, dtype=torch.bfloat16)
    views = room.as_strided((2, 2, 3), (2**31 + 7, 3, 1))
    views.copy_(normal(2, 2, 3))
    assert_right(views, [(0, 2, 0, 3), (0, 2, 2, 5)], (2, 5))


def test_one_graph_for_all_steps_and_one_more_for_other_boxes() -> None:
    graphs = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(module)
        return module.forward

    compiled = torch.compile(window_blend, backend=backend, fullgraph=True)
    for seed in range(4):
        views = normal(4, 2, 3, 4, 6, seed=seed)
        assert_same_bits([compiled(views, BOXES, SIZE)], [window_blend(views, BOXES, SIZE)])
    assert len(graphs) == 1
    for width in range(11, 15):  # numbers that change become symbols, which the operator makes numbers again
        boxes = window_views((6, width), (4, 6), (2, 3))
        views = normal(len(boxes), 2, 3, 4, 6)
        assert_same_bits([compiled(views, boxes, (6, width))], [window_blend(views, boxes, (6, width))])
    assert len(graphs) <= 5
    torch._dynamo.reset()


def test_compiled_with_dynamic_shapes() -> None:
    """The size of the latents is a symbol then, and what is computed from it too."""

    def step(latents: Tensor) -> Tensor:
        size = latents.shape[-2:]
        boxes = window_views(size, 4, 2)
        views = torch.stack([latents[..., y0:y1, x0:x1] for y0, y1, x0, x1 in boxes])
        return window_blend(2 * views, boxes, size)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for width in (6, 9, 12):
        x = normal(1, 3, 5, width)
        assert_same_bits([compiled(x)], [step(x)])
    torch._dynamo.reset()


def test_a_tensor_of_boxes_is_refused_under_compilation() -> None:
    compiled = torch.compile(window_blend, backend="eager", fullgraph=True)
    with pytest.raises(
        torch._dynamo.exc.Unsupported, match=r"under torch\.compile boxes must be a sequence of ints"
    ):
        compiled(VIEWS, torch.tensor(BOXES), SIZE)
    torch._dynamo.reset()


def test_compiles_into_an_out_tensor() -> None:
    def step(views: Tensor) -> Tensor:
        return window_blend(views, BOXES, SIZE, out=torch.empty(2, 3, *SIZE)) + 1

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert_same_bits([compiled(VIEWS)], [step(VIEWS)])
    torch._dynamo.reset()


# ---- without torch, and tables of unknown origin ---------------------------------------------------------------


def flat(boxes: Sequence[Box]) -> list[int]:
    return [n for box in boxes for n in box]


def test_numpy_arrays() -> None:
    views, weights = VIEWS.numpy(), positive(4, 6).numpy()
    table = np.array(_C.window_blend_table(views, flat(BOXES), SIZE))
    out = np.empty((2, 3, *SIZE), np.float32)
    _C.window_blend(views, table, out, weights=weights)
    assert np.array_equal(out, window_blend(VIEWS, BOXES, SIZE, torch.from_numpy(weights)).numpy())
    mirrored = [(6 - y1, 6 - y0, 10 - x1, 10 - x0) for y0, y1, x0, x1 in BOXES]
    table = np.array(_C.window_blend_table(views, flat(mirrored), SIZE))
    image = np.empty_like(out)
    _C.window_blend(views[..., ::-1, ::-1], table, image, weights=weights[::-1, ::-1])
    assert np.array_equal(image[..., ::-1, ::-1], out)


def test_arrays_are_refused_like_tensors() -> None:
    with pytest.raises(
        RuntimeError, match=r"fastdiff::window_blend: out must have at least 2 dimensions .*, got \[6\]"
    ):
        _C.window_blend(VIEWS, torch.tensor(TABLE), OUT[0, 0, :, 0].clone())
    with pytest.raises(RuntimeError, match="fastdiff::window_blend: boxes must cover every pixel"):
        _C.window_blend_table(VIEWS, flat(BOXES[:1] * 4), SIZE)


TABLE = _C.window_blend_table(VIEWS, flat(BOXES), SIZE)
TILES = 1  # 6 x 10 pixels are one tile, on the CPU and on CUDA


def table_with(at: int, number: int) -> Tensor:
    table = torch.tensor(TABLE)
    table[at] = number
    return table


HUGE = 2**62
MALFORMED = {
    "list begins before": table_with(0, -1),
    "list begins far before": table_with(0, -HUGE),
    "list ends after": table_with(1, 5),
    "list ends far after": table_with(1, HUGE),
    "view below 0": table_with(2, -1),
    "view that is none": table_with(2, 4),
    "view far away": table_with(5, HUGE),
    "row outside": table_with(3, 6),
    "row far away": table_with(3, -(2**63)),
    "column outside": table_with(7, -6),
    "column far away": table_with(7, 2**63 - 1),
}
each_malformed = pytest.mark.parametrize("table", MALFORMED.values(), ids=MALFORMED)


def simt_table(views: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> Tensor:
    return torch.tensor(_C.window_blend_table(views, flat(boxes), size, cuda=True))


def simt_call(views: Tensor, table: Tensor, out: Tensor, **options: Any) -> None:
    simt_worker().call("window_blend", views=views, table=table, out=out, **options)


@each_malformed
def test_malformed_tables_are_refused_on_the_cpu(table: Tensor) -> None:
    out = OUT.clone()
    with pytest.raises(RuntimeError, match="table must be one of window_blend_table for these views"):
        _C.window_blend(VIEWS, table, out)
    assert_same_bits([out], [OUT])


@each_malformed
def test_malformed_tables_never_read_outside_on_the_device(table: Tensor) -> None:
    """The emulator has guard pages and a sanitizer around the views: it stops with the kernel's own words, or not."""
    with SimtWorker() as simt:
        try:
            simt.call("window_blend", views=VIEWS, table=table, out=OUT.clone())
        except (SimtCrashError, RuntimeError) as error:
            assert "fastdiff::window_blend: the table is not one of these views" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.tensor(TABLE).int(), "table must be int64, got int32"),
        (torch.tensor(TABLE)[:-1], "table must be the contiguous numbers of window_blend_table"),
        (torch.tensor(TABLE)[:1], "table must be the contiguous numbers of window_blend_table"),
        (torch.tensor(TABLE)[None], "table must be the contiguous numbers of window_blend_table"),
        (
            torch.tensor(TABLE).repeat_interleave(2)[::2],
            "table must be the contiguous numbers of window_blend_table",
        ),
    ],
)
def test_tables_of_another_form(table: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        _C.window_blend(VIEWS, table, OUT.clone())


@pytest.mark.parametrize("planes", [(1, 3), (40, 3), (9, 3)])
def test_several_planes_for_each_thread(planes: tuple[int, ...]) -> None:
    """The emulated device is small: with this many planes each thread takes four, the last of them less."""
    size = (16, 70)
    boxes = window_views(size, (8, 20), (4, 10))
    views = normal(len(boxes), *planes, 8, 20)
    got = torch.empty(*planes, *size)
    simt_call(views, simt_table(views, boxes, size), got)
    assert_same_bits([got], [window_blend(views, boxes, size)])
