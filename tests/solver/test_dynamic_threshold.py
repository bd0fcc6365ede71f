# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about dynamic_threshold: its order statistics, its rounding, its refusals."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, dynamic_threshold
from fastdiff.solver.dynamic_threshold import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, simt_worker, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import Canary, bits

INF, NAN = math.inf, math.nan
X = torch.ones(2, 3, 4)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
each_isa = pytest.mark.parametrize("isa", usable_isas())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def assert_right(x: Tensor, *numbers: float, **options: float) -> None:
    got, want = dynamic_threshold(x, *numbers, **options), reference(x, *numbers, **options)
    assert_close(got, want, scale=1.0, terms=0, what=f"{list(x.shape)} {x.dtype} {numbers} {options}")


# ---- refusals --------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[str, Any, dict[str, Any], str]] = [
    ("integers", X.long(), {}, "x must be float32, float16, bfloat16 or float64, got int64"),
    ("complex", X.cfloat(), {}, "x must be float32, float16, bfloat16 or float64, got complex64"),
    ("too many dimensions", torch.ones([1] * 13), {}, "x must have at most 12 dimensions, got 13"),
    ("negative ratio", X, {"ratio": -0.1}, r"ratio must be in 0\.\.1, got -0\.1"),
    ("percent", X, {"ratio": 99.5}, r"ratio must be in 0\.\.1, got 99\.5"),
    ("ratio NaN", X, {"ratio": NAN}, r"ratio must be in 0\.\.1, got nan"),
    ("no lower bound", X, {"min_value": 0.0}, r"min_value must be positive \(at least 1e-30\), got 0"),
    ("negative lower bound", X, {"min_value": -1.0}, "min_value must be positive .*, got -1"),
    ("lower bound NaN", X, {"min_value": NAN}, "min_value must be positive .*, got nan"),
    ("bounds the wrong way round", X, {"max_value": 0.5}, "max_value must be at least min_value = 1.*, got 0.5"),
    ("upper bound NaN", X, {"max_value": NAN}, "max_value must be at least min_value = 1.*, got nan"),
    ("shape of out", X, {"out": torch.ones(2, 3, 5)}, r"out must have shape \[2, 3, 4\], got \[2, 3, 5\]"),
    ("rank of out", X, {"out": torch.ones(24)}, r"out must have shape \[2, 3, 4\], got \[24\]"),
    ("dtype of out", X, {"out": X.double()}, "out must be float32 like x, got float64"),
    ("device of out", X, {"out": X.to("meta")}, "out must be on cpu like x, got meta"),
    ("expanded out", X, {"out": torch.ones(1, 3, 4).expand(2, 3, 4)}, "out must not have elements that share memory"),
]  # fmt: skip


@pytest.mark.parametrize(("x", "options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(x: Tensor, options: dict[str, Any], message: str, mode: Any) -> None:
    canary = Canary(torch.empty(2, 3, 4))
    before = canary.tensor.clone()
    if x.shape == X.shape and x.dtype == X.dtype:
        options = {"out": canary.tensor} | options
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::dynamic_threshold: {message}"):
        dynamic_threshold(x, **options)
    assert_same_bits([canary.tensor], [before], "something was written")


@pytest.mark.parametrize("offset", [1, 4, 23])
def test_refuses_a_partial_overlap(offset: int) -> None:
    room = torch.zeros(48)
    x, out = room[:24].view(2, 3, 4), room[offset : offset + 24].view(2, 3, 4)
    with pytest.raises(RuntimeError, match="out must be exactly x or not share memory with it"):
        dynamic_threshold(x, out=out)


def test_refuses_gradients_into_out() -> None:
    with pytest.raises(NotImplementedError, match=r"fastdiff\.dynamic_threshold: no gradient is defined"):
        dynamic_threshold(X, out=torch.ones(2, 3, 4, requires_grad=True))


# ---- the quantile ----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_the_definition(data: st.DataObject) -> None:
    """Any shape, dtype, ratio and amount of ties; up to where a sample no longer fits the table of few elements."""
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    dtype = data.draw(st.sampled_from(DTYPES))
    levels = data.draw(st.sampled_from([1, 2, 5, 1000]))
    ratio = data.draw(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.995, 1.0])))
    cap = data.draw(st.sampled_from([1.0, 2.5, INF]))
    x = normal(*shape, seed=data.draw(st.integers(0, 99))).double()
    assert_right((x * levels).round().div(levels).to(dtype), ratio, cap, min_value=min(cap, 1e-3))


@each_isa
@each_dtype
@pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 1023, 1025, 40_000])
def test_equals_the_definition_at_every_size(n: int, dtype: torch.dtype, isa: str) -> None:
    with instruction_set(isa):
        for ratio in (0.0, 1 / 3, 0.995, 1.0):
            assert_right(normal(2, n, dtype=dtype), ratio, INF, min_value=1e-6)


@each_dtype
@pytest.mark.parametrize("gap", [1, 2, 1 << 9, 1 << 10, 1 << 19, 1 << 20, 1 << 23])
def test_next_order_statistic_in_another_bin(gap: int, dtype: torch.dtype) -> None:
    """Two values whose bit patterns are `gap` apart: the same last digit, neighbours, or far from each other."""
    if dtype.itemsize == 2:
        gap = max(1, gap >> 16)
    low = bits(torch.tensor([2.0], dtype=dtype))
    high = (low + gap).view(dtype)
    x = torch.cat((low.view(dtype).expand(150), high.expand(151)))[None]
    for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert_right(x, (149 + weight) / 300, INF)
    assert_right(-x, 149.5 / 300, INF)


def test_interpolates_from_the_nearer_end_in_float64() -> None:
    """s is 1 + w with w = 0.3: x = s/2 then has the result 1/2, which no other s gives."""
    x = torch.tensor([[1.0, 2.0, 0.65]], dtype=torch.float64)
    s = torch.quantile(x, 0.65).item()  # at 1.3: between 1 and 2
    assert dynamic_threshold(x, 0.65, INF, min_value=0.1)[0].tolist() == [1 / s, 1.0, 0.65 / s]


def test_ratio_0_and_1_are_the_extremes() -> None:
    x = normal(3, 500)
    magnitudes = x.abs()
    for ratio, s in ((0.0, magnitudes.amin(1)), (1.0, magnitudes.amax(1))):
        want = (x.double().clamp(-s[:, None], s[:, None]) / s[:, None].double()).float()
        assert_same_bits([dynamic_threshold(x, ratio, INF, min_value=1e-9)], [want])


def test_bounds_of_s() -> None:
    x = normal(2, 1000)
    assert_same_bits([dynamic_threshold(x)], [x.clamp(-1, 1)], "the defaults are a clamp")
    assert_same_bits([dynamic_threshold(x, 0.9, 0.5, min_value=0.5)], [2 * x.clamp(-0.5, 0.5)])
    assert_same_bits([dynamic_threshold(x, 0.9, 64.0, min_value=64.0)], [x / 64])


def test_samples_are_independent() -> None:
    x = torch.cat((normal(1, 3, 700), 5 * normal(1, 3, 700, seed=1), 0.1 * normal(1, 3, 700, seed=2)))
    whole = dynamic_threshold(x, 0.9, INF)
    assert_same_bits([whole], [torch.cat([dynamic_threshold(s, 0.9, INF) for s in x.split(1)])])


def test_one_dimension_is_samples_of_one_element() -> None:
    x = torch.tensor([0.5, -2.0, 3.0, -0.0])
    assert dynamic_threshold(x, 0.9, 2.0).tolist() == [0.5, -1.0, 1.0, -0.0]
    assert float(dynamic_threshold(torch.tensor(-0.25))) == -0.25


# ---- the result ------------------------------------------------------------------------------------------------


@each_isa
def test_is_the_quotient_of_float64_rounded_once(isa: str) -> None:
    """1/s in two parts: at most one element in a million may lie so near a tie that it falls to the other side."""
    x = normal(4, 250_000)
    with instruction_set(isa):
        got = dynamic_threshold(x, 0.97, INF)
    want = reference(x, 0.97, INF)
    assert int((got != want).sum()) <= 1
    assert float(got.abs().max()) == 1.0
    in_float = x / torch.quantile(x.abs(), 0.97, dim=1, keepdim=True)
    assert int((in_float.clamp(-1, 1) != want).sum()) > 1000, "a quotient in float32 differs"


def test_signed_zeros_and_subnormals_keep_their_sign() -> None:
    x = torch.tensor([[0.0, -0.0, 1e-44, -1e-44, 4.0, -4.0]])
    got = dynamic_threshold(x, 1.0, INF)
    assert_same_bits([got], [torch.tensor([[0.0, -0.0, 2.8e-45, -2.8e-45, 1.0, -1.0]])])
    assert_same_bits([dynamic_threshold(x[:, :2])], [x[:, :2]])


@pytest.mark.parametrize("n", [6, 1000])
def test_nan_and_inf_are_those_of_eager(n: int) -> None:
    def eager(x: Tensor, ratio: float, cap: float) -> Tensor:
        s = torch.quantile(x.abs(), ratio, dim=1, keepdim=True).clamp(1.0, cap)
        return x.clamp(-s, s) / s

    x = normal(7, n).double()
    x[0, 3] = NAN
    x[1, 3], x[2, :2], x[3] = INF, -INF, INF
    x[4, 0], x[4, 1] = NAN, INF
    x[5] = NAN
    for ratio in (0.0, 0.5, 0.9, 1.0):
        for cap in (1.0, 3.0, INF):
            want = eager(x, ratio, cap)
            for dtype in (torch.float64, torch.float32):
                got = dynamic_threshold(x.to(dtype), ratio, cap)
                assert_same_bits([got.isnan()], [want.isnan()], f"{ratio} {cap}")
                torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7, equal_nan=True)


# ---- layouts, threads, sizes -----------------------------------------------------------------------------------


@each_dtype
def test_in_place(dtype: torch.dtype) -> None:
    for x in (normal(3, 4, 37, 41, dtype=dtype), normal(2, 3, 64, 32, dtype=dtype)[..., ::2]):
        want = dynamic_threshold(x, 0.9, 4.0)
        assert dynamic_threshold(x, 0.9, 4.0, out=x) is x
        assert_same_bits([x], [want])


def test_out_of_another_layout() -> None:
    x = normal(2, 3, 33, 35)
    want = dynamic_threshold(x, 0.9, 4.0)
    for out in (torch.empty_like(x, memory_format=torch.channels_last), torch.empty(2, 3, 33, 70)[..., ::2]):
        assert_same_bits([dynamic_threshold(x, 0.9, 4.0, out=out)], [want])


@each_isa
@each_dtype
@pytest.mark.parametrize("batch", [1, 2, 3, 9])
def test_any_thread_count(batch: int, dtype: torch.dtype, isa: str) -> None:
    """Threads share the samples, or the elements of each: 1 to 9 samples that are worth several threads."""
    x = normal(batch, 3, 113, 101, dtype=dtype)
    x = x.to(memory_format=torch.channels_last) if batch == 3 else x
    with instruction_set(isa):
        want = torch.cat([dynamic_threshold(s.contiguous(), 0.99, 9.0) for s in x.split(1)])
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits([dynamic_threshold(x, 0.99, 9.0)], [want], f"{threads} threads")


@each_isa
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_past_the_caches(dtype: torch.dtype, isa: str) -> None:
    """Results beyond the last-level cache are stored another way; start and end are misaligned."""
    n = (40 << 20) // dtype.itemsize + 77
    x = normal(1, n + 3, dtype=dtype)[:, 3:]
    with instruction_set(isa):
        far = dynamic_threshold(x, 0.99, 9.0)
        assert_same_bits([dynamic_threshold(x, 0.99, 9.0, out=x)], [far])


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 10 << 30,
    reason="needs 10 GiB of free memory",
)
def test_more_than_2_to_the_31_elements() -> None:
    """More than 2^31 zeros, then 10 ... 19 in the last places: the order statistic n - 5 is 15."""
    n = 2**31 + 9
    x = torch.zeros(1, n, dtype=torch.bfloat16)
    x[0, -10:] = torch.arange(10.0, 20.0)
    dynamic_threshold(x, (n - 5) / (n - 1), INF, out=x)
    assert x[0, -10:].tolist() == [*(torch.arange(10.0, 15.0) / 15).bfloat16().tolist(), *[1.0] * 5]
    assert int(x[0, : 2**31 - 1].count_nonzero()) == 0


def test_compiles_in_place_on_a_tensor_that_the_graph_makes() -> None:
    def step(x: Tensor) -> Tensor:
        y = 2 * x
        return dynamic_threshold(y, 0.9, 3.0, out=None if y.requires_grad else y)

    x = normal(2, 50)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert_same_bits([compiled(x)], [step(x)])
    torch._dynamo.reset()


# ---- without torch ---------------------------------------------------------------------------------------------


def test_numpy_arrays() -> None:
    x = normal(3, 40, 50).numpy()
    want = dynamic_threshold(torch.from_numpy(x), 0.9, 3.0).numpy()
    y = np.empty_like(x)
    _C.dynamic_threshold(x, y, ratio=0.9, max_value=3.0)
    assert np.array_equal(y, want)
    _C.dynamic_threshold(x[:, ::-1, ::-1], y, ratio=0.9, max_value=3.0)
    assert np.array_equal(y, want[:, ::-1, ::-1])


# ---- the kernels under the emulator ----------------------------------------------------------------------------

SMALL, LARGE = normal(2, 3, 11, 13), normal(2, 17_001)


@pytest.mark.parametrize("x", [SMALL, LARGE], ids=["one block", "many blocks"])
def test_no_races_on_shared_memory(x: Tensor) -> None:
    y, scratch = torch.empty_like(x), torch.empty(_C.dynamic_threshold_scratch(x), dtype=torch.uint8)
    with SimtWorker("races") as simt:
        for seed in (1, 2):
            simt.seed = seed
            simt.call("dynamic_threshold", x, out=y, ratio=0.9, max_value=3.0, scratch=scratch)
            assert_same_bits([y], [dynamic_threshold(x, 0.9, 3.0)])


def test_scratch_memory_is_checked() -> None:
    assert _C.dynamic_threshold_scratch(SMALL) == 0
    bytes_ = _C.dynamic_threshold_scratch(LARGE)
    for scratch in (None, torch.empty(bytes_ - 1, dtype=torch.uint8), torch.empty(bytes_ // 4)):
        with pytest.raises(RuntimeError, match=rf"scratch must be {bytes_} contiguous uint8 on cpu.*, got"):
            simt_worker().call("dynamic_threshold", LARGE, out=torch.empty_like(LARGE), scratch=scratch)
