# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about scaled_error_norm: the order of its sum, its accuracy, its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, scaled_error_norm
from fastdiff.solver.scaled_error_norm import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, simt_worker, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import Canary

INF, NAN = math.inf, math.nan
X = torch.ones(2, 3, 4)
F32, F64 = torch.float32, torch.float64
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CHUNK, LANES, SLOTS = 1024, 128, 256  # of csrc/core/reduce.h
each_isa = pytest.mark.parametrize("isa", usable_isas())


def three(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    lower, difference, move = (torch.randn(shape, generator=g, dtype=F64) for _ in range(3))
    return lower.to(dtype), (lower + 0.02 * difference).to(dtype), (lower + 0.1 * move).to(dtype)


def assert_right(inputs: tuple[Tensor, ...], **options: float) -> None:
    got, want = scaled_error_norm(*inputs, **options), reference(*inputs, **options)
    what = f"{list(inputs[0].shape)} {[x.dtype for x in inputs]} {options}"
    assert_close(got, want, **tolerance(*inputs, **options), what=what)  # type: ignore[arg-type]


# ---- refusals --------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("integers", [X.long(), X, X], {}, "lower must be float32, float16, bfloat16 or float64, got int64"),
    ("complex", [X, X.cfloat(), X], {}, "higher must be float32, float16, bfloat16 or float64, got complex64"),
    ("no batch", [X[0, 0, 0]] * 3, {}, r"lower must have at least 1 dimension \[B, \*sample\], got a 0-d tensor"),
    ("shape of higher", [X, X[:, :2], X], {}, r"higher must have shape \[2, 3, 4\] like lower, got \[2, 2, 4\]"),
    ("rank of previous", [X, X, X[0]], {}, r"previous must have shape \[2, 3, 4\] like lower, got \[3, 4\]"),
    ("shared batch", [X, X, X[:1]], {}, r"previous must have shape \[2, 3, 4\] like lower, got \[1, 3, 4\]"),
    ("device", [X, X.to("meta"), X], {}, "higher must be on cpu like lower, got meta"),
    ("device of out", [X, X, X], {"out": torch.ones(2, device="meta")}, "out must be on cpu like lower, got meta"),
    ("negative atol", [X, X, X], {"atol": -0.1}, r"atol must be finite and at least 0, got -0\.1"),
    ("infinite atol", [X, X, X], {"atol": INF}, "atol must be finite and at least 0, got inf"),
    ("negative rtol", [X, X, X], {"rtol": -0.1}, r"rtol must be finite and at least 0, got -0\.1"),
    ("rtol NaN", [X, X, X], {"rtol": NAN}, "rtol must be finite and at least 0, got nan"),
    ("length of out", [X, X, X], {"out": torch.ones(3)}, r"out must have shape \[2\], got \[3\]"),
    ("rank of out", [X, X, X], {"out": torch.ones(2, 1)}, r"out must have shape \[2\], got \[2, 1\]"),
    ("dtype of out", [X, X, X], {"out": torch.ones(2).half()}, "out must be float32, got float16"),
    ("wide out", [X, X, X], {"out": torch.ones(2).double()}, "out must be float32, got float64"),
    ("narrow out", [X, X.double(), X], {"out": torch.ones(2)},
     r"out must be float64 \(an input is float64\), got float32"),
    ("expanded out", [X, X, X], {"out": torch.ones(1).expand(2)}, "out must not have elements that share memory"),
    ("out over lower", [X, X + 1, X + 1], {"out": X[0, 0, :2]}, "out must not share memory with lower"),
    ("out over previous", [X + 1, X + 1, X], {"out": X[:, 0, 0]}, "out must not share memory with previous"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(inputs: list[Tensor], options: dict[str, Any], message: str, mode: Any) -> None:
    canary = Canary(torch.empty(2))
    before = canary.tensor.clone()
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::scaled_error_norm: {message}"):
        scaled_error_norm(*inputs, **({"out": canary.tensor} | options))
    assert_same_bits([canary.tensor], [before], "something was written")
    assert bool((X == 1).all())


def test_refuses_gradients_into_out() -> None:
    with pytest.raises(NotImplementedError, match=r"fastdiff\.scaled_error_norm: no gradient is defined"):
        scaled_error_norm(X, X, X, out=torch.ones(2, requires_grad=True))


# ---- values ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_equals_the_definition(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(3)]
    inputs = three(*shape, seed=data.draw(st.integers(0, 99)))
    options = {"atol": data.draw(st.floats(1e-3, 1.0)), "rtol": data.draw(st.floats(0.0, 1.0))}
    assert_right(tuple(x.to(d) for x, d in zip(inputs, dtypes, strict=True)), **options)


def test_known_values() -> None:
    lower, previous = torch.tensor([[1.0, -2.0, 0.5, 0.0]]), torch.tensor([[0.5, 4.0, -0.5, 0.0]])
    higher = lower + torch.tensor([[0.25, -0.5, 0.125, 0.0625]])
    # delta: max(0.125, max(|l|, |p|)/4) = 1/4, 1, 1/8, 1/8; errors 1, -1/2, 1, 1/2
    got = scaled_error_norm(lower, higher, previous, atol=0.125, rtol=0.25)
    assert_same_bits([got], [torch.tensor([0.625]).sqrt()])
    assert_same_bits([scaled_error_norm(higher, lower, higher, atol=1.0, rtol=0.0)],
                     [torch.tensor([(0.25**2 + 0.5**2 + 0.125**2 + 0.0625**2) / 4]).sqrt()])  # fmt: skip


def test_defaults_are_those_of_the_paper() -> None:
    zero = torch.zeros(1, 8)
    assert float(scaled_error_norm(zero, zero + 0.0078, zero)) == 1.0
    assert abs(float(scaled_error_norm(zero + 10, zero + 10.5, zero)) - 1) < 1e-6
    assert abs(float(scaled_error_norm(zero, zero + 0.5, zero + 10)) - 1) < 1e-6


def test_no_error_is_zero() -> None:
    x = torch.randn(3, 2000)
    assert_same_bits([scaled_error_norm(x, x, x)], [torch.zeros(3)])


def test_nan_and_inf_are_those_of_eager() -> None:
    for n in (7, 3000):
        lower, higher, previous = three(6, n)
        for sample, x in enumerate((lower, higher, previous)):
            x[sample, 5] = NAN
        lower[3, 2], higher[4, 2], previous[5, 2] = INF, -INF, INF
        assert_right((lower, higher, previous))
        assert scaled_error_norm(lower, higher, previous).isnan().tolist() == [True] * 4 + [False] * 2
    zero = torch.zeros(2, 5)
    assert bool(scaled_error_norm(zero, zero, zero, atol=0.0).isnan().all())
    assert bool(scaled_error_norm(zero, zero + 1, zero, atol=0.0).isinf().all())


def test_empty_samples_are_nan_and_no_samples_are_empty() -> None:
    assert bool(scaled_error_norm(*[torch.ones(2, 0, 3)] * 3).isnan().all())
    assert scaled_error_norm(*[torch.ones(0, 3)] * 3).shape == (0,)


# ---- the order of the sum --------------------------------------------------------------------------------------


def tree(x: np.ndarray) -> Any:
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]


def documented(terms: np.ndarray) -> Any:
    """The sum of csrc/core/reduce.h, of squares that are exact in the arithmetic, so that fma and sum agree."""
    slots = np.zeros(SLOTS)
    for c, begin in enumerate(range(0, len(terms), CHUNK)):
        chunk = np.zeros(CHUNK, terms.dtype)
        chunk[: len(terms[begin : begin + CHUNK])] = terms[begin : begin + CHUNK]
        lanes = np.zeros(LANES, terms.dtype)
        for turn in chunk.reshape(-1, LANES):
            lanes = lanes + turn
        slots[c % SLOTS] += np.float64(tree(lanes))
    return tree(slots)


@pytest.mark.parametrize(("dtype", "length"), [(F32, 12), (F64, 26)], ids=str)
@pytest.mark.parametrize("n", [1, 5, 128, 129, 1024, 1500, 40_000, 600_001])
def test_sum_is_the_documented_one(n: int, dtype: torch.dtype, length: int) -> None:
    """Numbers of 12 or 26 bits have exact squares; a tolerance of 1 leaves them as they are."""
    g = torch.Generator().manual_seed(n)
    error = torch.randint(1 - 2**length, 2**length, (2, n), generator=g).to(dtype)
    error *= torch.exp2(torch.randint(-6, 7, (2, n), generator=g).to(dtype))
    assert_documented(error)


def test_what_a_large_number_swallows_shows_the_order() -> None:
    """2^64 + 1024 is 2^64: of the chunks of ones, those are lost that meet the large one by themselves."""
    error = torch.ones(1, 5000, 1, dtype=F64)
    error[0, 0] = 2.0**27
    assert_documented(error.expand(1, 5000, CHUNK))


def assert_documented(error: Tensor) -> None:
    zero = torch.zeros_like(error)
    want = [np.sqrt(documented(terms.numpy()) / len(terms)) for terms in error.square().flatten(1)]
    got = scaled_error_norm(zero, error, zero, atol=1.0, rtol=0.0)
    assert_same_bits([got], [torch.tensor(want, dtype=F64).to(error.dtype)])


@each_isa
@pytest.mark.parametrize(
    "dtypes", [(F32, F32, F32), (torch.bfloat16, F32, torch.float16), (F64, F32, F64)], ids=str
)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_any_thread_count(batch: int, dtypes: tuple[torch.dtype, ...], isa: str) -> None:
    inputs = tuple(x.to(d) for x, d in zip(three(batch, 3, 113, 101), dtypes, strict=True))
    with instruction_set(isa):
        want = torch.cat([scaled_error_norm(*s) for s in zip(*(x.split(1) for x in inputs), strict=True)])
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits([scaled_error_norm(*inputs)], [want], f"{threads} threads")


def test_layout_does_not_change_the_order() -> None:
    inputs = three(2, 5, 33, 31)
    want = scaled_error_norm(*inputs)
    last = [x.to(memory_format=torch.channels_last) for x in inputs]
    mixed = [inputs[0], last[1], inputs[2].transpose(0, 3).contiguous().transpose(0, 3)]
    assert_same_bits([scaled_error_norm(*last), scaled_error_norm(*mixed)], [want, want])


@pytest.mark.parametrize("n", [10**3, 10**5, 10**7])
def test_error_does_not_grow_with_the_sample(n: int) -> None:
    inputs = three(1, n)
    got, want = float(scaled_error_norm(*inputs)), float(reference(*(x.double() for x in inputs)))
    assert abs(got - want) < 2 * 2**-24 * want


def test_sums_up_where_float32_would_stop() -> None:
    """2^27 equal terms: a running sum in float32 stays at 2^24."""
    one = torch.ones(1).expand(1, 2**27)
    assert float(scaled_error_norm(one, 2 * one[:, :1].expand(1, 2**27), one, atol=1.0, rtol=0.0)) == 1.0


def test_samples_are_independent() -> None:
    inputs = three(4, 3, 700)
    whole = scaled_error_norm(*inputs)
    alone = [scaled_error_norm(*sample) for sample in zip(*(x.split(1) for x in inputs), strict=True)]
    assert_same_bits([whole], [torch.cat(alone)])


def test_out_of_any_stride() -> None:
    inputs, room = three(3, 2, 50), torch.full((6,), 7.0)
    out = room[::2]
    assert scaled_error_norm(*inputs, out=out) is out
    assert_same_bits([out, room[1::2]], [scaled_error_norm(*inputs), torch.full((3,), 7.0)])


def test_compiles_on_tensors_that_the_graph_makes() -> None:
    def step(x: Tensor) -> Tensor:
        return scaled_error_norm(x, x + 0.01, torch.empty_like(x).fill_(1.0))

    x = torch.randn(2, 50)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert_same_bits([compiled(x)], [step(x)])
    torch._dynamo.reset()


# ---- without torch ---------------------------------------------------------------------------------------------


def test_numpy_arrays() -> None:
    inputs = three(3, 40, 50)
    y = np.empty(3, np.float32)
    _C.scaled_error_norm(*(x.numpy() for x in inputs), y)
    assert np.array_equal(y, scaled_error_norm(*inputs).numpy())
    backwards = [x.numpy()[:, ::-1] for x in inputs]
    _C.scaled_error_norm(*backwards, y)
    assert np.array_equal(y, scaled_error_norm(*(x.flip(1) for x in inputs)).numpy())


# ---- the kernels under the emulator ----------------------------------------------------------------------------


def scratch_of(inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.empty(_C.scaled_error_norm_scratch(inputs[0]), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(2, 3000), (1, 66_001)], ids=["one block", "many blocks"])
def test_no_races_on_shared_memory(shape: tuple[int, ...]) -> None:
    inputs, y = three(*shape), torch.empty(shape[0])
    with SimtWorker("races") as simt:
        for seed in (1, 2):
            simt.seed = seed
            simt.call("scaled_error_norm", *inputs, out=y, scratch=scratch_of(inputs))
            assert_same_bits([y], [scaled_error_norm(*inputs)])


def test_kernels_divide_zero_by_zero() -> None:
    """Not among the cases: opcheck compares results with an equality that NaN fails."""
    for x, atol in ((torch.ones(2, 0, 3), 0.1), (torch.zeros(2, 40), 0.0)):
        y = torch.zeros(2)
        simt_worker().call("scaled_error_norm", x, x, x, out=y, atol=atol)
        assert bool(y.isnan().all())
        assert bool(scaled_error_norm(x, x, x, atol=atol).isnan().all())


def test_scratch_memory_is_checked() -> None:
    assert scratch_of(three(2, 3000)).numel() == 0
    inputs = three(1, 66_001)
    with pytest.raises(RuntimeError, match=r"scratch must be 520 contiguous uint8 on cpu.*, got none"):
        simt_worker().call("scaled_error_norm", *inputs, out=torch.empty(1))
