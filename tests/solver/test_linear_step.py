# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about linear_step: its refusals, its rounding, its noise, its limits."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from typing import Any

import fastdiff
import numpy as np
import pytest
import torch
from fastdiff import _philox, linear_step
from fastdiff.solver.linear_step_cases import INF, NOISY_STEP, SOLVER_STEP, program
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.trees import Canary
from tests.solver.linear_step_refusals import IDENTITY, NOISE, REFUSALS, RNG, SUM, X

F32 = torch.float32
SOLVER = program(SOLVER_STEP)


def four(*shape: int, dtype: torch.dtype = F32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for _ in range(4)]


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "table", "options", "message"),
    [r[1:] for r in REFUSALS],
    ids=[r[0].replace(" ", "_") for r in REFUSALS],
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(
    inputs: list[Tensor], table: Tensor, options: dict[str, Any], message: str, mode: Any
) -> None:
    canary = Canary(torch.empty(2, 3, 4))
    options = dict(options)
    if (
        isinstance(inputs, list)
        and inputs
        and all(x.shape == (2, 3, 4) for x in inputs)
        and inputs[0].dtype == F32
        and "dtypes" not in options
    ):
        options.setdefault("out", [canary.tensor])
    before = canary.tensor.clone()
    with mode(), pytest.raises((RuntimeError, NotImplementedError), match=message) as error:
        linear_step(inputs, table, **options)
    if message != ".":  # torch itself refuses sparse tensors: no kernel is registered for them
        assert str(error.value).startswith("fastdiff::linear_step: ")
    assert_same_bits([canary.tensor], [before], "something was written")


def overlapping(offset: int) -> tuple[Tensor, Tensor]:
    room = torch.zeros(48)
    return room[:24].view(2, 3, 4), room[offset : offset + 24].view(2, 3, 4)


@pytest.mark.parametrize("offset", [1, 4, 23])
def test_refuses_a_partial_overlap(offset: int) -> None:
    x, out = overlapping(offset)
    with pytest.raises(
        RuntimeError, match=r"out\[0\] must be exactly inputs\[0\] or not share memory with it"
    ):
        linear_step([x, X], SUM, out=[out])


def test_takes_neighbours_and_interleaved_views() -> None:
    x, out = overlapping(0)[0], torch.zeros(48)[24:].view(2, 3, 4)
    assert_same_bits(linear_step([x, X], SUM, out=[out]), [x + X])
    room = torch.randn(2, 8, 4)
    u, c = room[:, :4], room[:, 4:]  # ranges overlap, elements do not
    want = u + c
    assert_same_bits(linear_step([u, c], SUM, out=[u]), [want])


@pytest.mark.parametrize("other", ["table", "step", "rng", "mask", "maps", "gate_table", "out[0]"])
def test_refuses_outputs_over_other_arguments(other: str) -> None:
    room = torch.zeros(64, dtype=torch.float64)
    x = torch.zeros(1, 6, dtype=torch.float64)
    out = room[:6].view(1, 6)
    table = program([[1.0, 0.0, 0.0]])
    options: dict[str, Any] = {"dtypes": [torch.float64]}
    if other == "table":
        table = room[:6].view(1, 6)
        x = x[:, :6]
        inputs = [x, x]
        options["out"] = [out]
        with pytest.raises(RuntimeError, match=r"out\[0\] must not share memory with table"):
            linear_step(inputs, table, **options)
        return
    if other == "step":
        options["step"], table = room[:1].view(torch.int64)[0], table[None]
    elif other == "rng":
        options["rng"] = room[:2].view(torch.int64)
    elif other == "mask":
        options |= {"mask": room[:6].view(1, 6), "gate_table": table[:, :-2]}
    elif other == "maps":
        options |= {"maps": room[:6].view(1, 6), "map_index": [0]}
    elif other == "gate_table":
        options |= {"gate_table": room[:3].view(1, 3), "mask": torch.ones(1, 1)}
    else:
        table = program([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
        with pytest.raises(RuntimeError, match=r"out\[1\] must not share memory with out\[0\]"):
            linear_step([x], table, out=[out, out])
        return
    with pytest.raises(RuntimeError, match=rf"out\[0\] must not share memory with {other}"):
        linear_step([x], table, out=[out], **options)


GRADIENT_REFUSALS = [
    ([X, X[:1, :1]], SUM, {}, "inputs must have one shape"),
    ([X, X[0, 0]], SUM, {}, "inputs must have one shape"),
    ([X, X], SOLVER, {}, "table must have 1 to 8 rows"),
    ([X] * 41, SUM, {}, "inputs must be 1 to 40 tensors, got 41"),
    ([X, X], SUM, {"dtypes": [None]}, "dtypes must store at least one row"),
    ([X, X], SUM, {"dtypes": [F32, F32]}, "dtypes must have M = 1 entries, got 2"),
    ([X, X], SUM, {"dtypes": [torch.complex64]}, "dtypes must store at least one row, each real"),
    ([X, X], SUM[0], {}, "table must have 1 to 8 rows"),
]


@pytest.mark.parametrize(("inputs", "table", "options", "message"), GRADIENT_REFUSALS)
def test_refuses_the_same_while_recording_gradients(
    inputs: list[Tensor], table: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        linear_step([inputs[0].clone().requires_grad_(), *inputs[1:]], table, **options)


@pytest.mark.parametrize("argument", ["mask", "maps", "gate_table"])
def test_refuses_gradients_of_constants(argument: str) -> None:
    options: dict[str, Any] = {"gate_table": SUM[:, :-2].float(), "mask": torch.ones(2, 3, 4)}
    options |= {"maps": torch.ones(1, 3, 4), "map_index": [0, -1]}
    options[argument] = options[argument].clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=f"with respect to {argument}"):
        linear_step([X, X], SUM, **options)


def test_refuses_gradients_it_cannot_give() -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        linear_step([x], IDENTITY, out=[torch.ones(2)])
    with pytest.raises(NotImplementedError, match="with respect to table"):
        linear_step([x], IDENTITY.clone().requires_grad_())


# ---- rounding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", usable_isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_float_survives(dtype: torch.dtype, isa: str) -> None:
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    with instruction_set(isa):
        assert_same_bits(linear_step([x], IDENTITY), [x], f"{dtype} to float32 and back")
        assert_same_bits(linear_step([x], IDENTITY, dtypes=[F32]), [x.float()], f"{dtype} to float32")


@pytest.mark.parametrize("isa", usable_isas())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_to_nearest_even(dtype: torch.dtype, isa: str) -> None:
    near = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    steps = near.nan_to_num(0, 0, 0).view(torch.int32)[:, None] + torch.tensor(
        [-4097, -4096, -4095, -1, 1, 4095, 4096, 4097, 32768]
    )
    x = steps.to(torch.int32).view(F32).flatten()
    with instruction_set(isa):
        assert_same_bits(linear_step([x], IDENTITY, dtypes=[dtype]), [x.to(dtype)], f"float32 to {dtype}")


def test_signed_zeros_are_those_of_the_product() -> None:
    x = torch.tensor([0.0, -0.0, 1.0])
    assert_same_bits(linear_step([x], IDENTITY), [x])
    assert_same_bits(linear_step([x], program([[-1.0, 0.0, 0.0]])), [-x])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_at_least_as_exact_as_eager(dtype: torch.dtype) -> None:
    x, u, c, m = four(4, 4, 32, 32, dtype=dtype)
    a, b = SOLVER_STEP[0][0], SOLVER_STEP[1]

    def expression(x: Tensor, u: Tensor, c: Tensor, m: Tensor) -> Tensor:
        x0 = a * x + 2.02 * u - 3.04 * c
        return b[0] * x + b[3] * m + b[4] * x0

    exact = expression(*(t.double() for t in (x, u, c, m)))
    (ours,) = linear_step([x, u, c, m], SOLVER)
    error, eager = ((t.double() - exact).abs() for t in (ours, expression(x, u, c, m)))
    assert error.mean() < 0.5 * eager.mean()
    assert error.max() <= eager.max()


# ---- noise -----------------------------------------------------------------------------------------------------


def test_philox_known_answers() -> None:
    """The test vectors published with Random123 (kat_vectors, philox 4x32, 10 rounds)."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    vectors = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ones,) * 4, (ones,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (*pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for counter, key, want in vectors:
        got = _philox.philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)
        assert tuple(int(w) for w in got[:, 0]) == want


@pytest.mark.parametrize("isa", usable_isas())
@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (1, 2), (-1, -1), (2**63 - 1, 2**40 + 3)])
def test_noise_is_the_documented_function(seed: int, offset: int, isa: str) -> None:
    rng = torch.tensor([seed, offset])
    with instruction_set(isa):
        (z,) = linear_step([torch.zeros(70001)], NOISE, rng=rng)
    assert_close(z, _philox.noise((70001,), rng).float(), scale=6.0, terms=4, what="z")


def test_noise_is_standard_normal() -> None:
    (z,) = linear_step([torch.zeros(1 << 22)], NOISE, rng=torch.tensor([2024, 0]))
    n, z = z.numel(), z.double()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0), (6, 15.0)):
        spread = {1: 1.0, 2: 2.0, 3: 15.0, 4: 96.0, 6: 10170.0}[power] ** 0.5  # of z^p
        assert abs(float((z**power).mean()) - moment) < 5 * spread / n**0.5, f"moment {power}"
    assert 5.0 < float(z.abs().max()) < 6.8
    for lag in (1, 2, 3, 4, 1024):
        assert abs(float((z[:-lag] * z[lag:]).mean())) < 5 / n**0.5, f"correlation at {lag}"


def test_complex_noise_has_total_variance_one() -> None:
    (z,) = linear_step([torch.zeros(1 << 20, dtype=torch.complex64)], NOISE, rng=RNG)
    assert abs(float((z.abs().double() ** 2).mean()) - 1) < 0.01
    assert abs(float(z.real.double().var()) - 0.5) < 0.01


def test_noise_does_not_depend_on_the_batch() -> None:
    """With one stream per sample, any split of the batch gives the same bits."""
    x, y = torch.randn(5, 3, 7, 9), torch.randn(5, 3, 7, 9)
    rng = torch.tensor([[3, 0], [1, 4], [1, 5], [9, 2], [6, 5]])
    (whole,) = linear_step([x, y], program(NOISY_STEP), rng=rng)
    for sizes in ([1, 4], [2, 3], [1] * 5):
        parts = [linear_step([a, b], program(NOISY_STEP), rng=r)[0]
                 for a, b, r in zip(x.split(sizes), y.split(sizes), rng.split(sizes), strict=True)]  # fmt: skip
        assert_same_bits([torch.cat(parts)], [whole], f"batch split {sizes}")


def test_noise_moves_on_with_the_step() -> None:
    tables = torch.stack([NOISE] * 4)
    x = torch.zeros(2, 11)
    draws = [linear_step([x], tables, step=torch.tensor(s), rng=torch.tensor([7, 10]))[0] for s in range(4)]
    for s, draw in enumerate(draws):
        assert_same_bits([draw], linear_step([x], NOISE, rng=torch.tensor([7, 10 + s])), f"step {s}")
    assert len({float(d[0, 0]) for d in draws}) == 4


# ---- sizes -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_slice(data: st.DataObject) -> None:
    """The result on a view is the view of the result, bit for bit."""
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    order = data.draw(st.permutations(range(len(shape))))
    steps = data.draw(st.lists(st.integers(1, 3), min_size=len(shape), max_size=len(shape)))
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    full = [torch.randn(shape) for _ in range(4)]
    index = tuple(slice(a, None, s) for a, s in zip(starts, steps, strict=True))
    views = [
        x.permute(order).contiguous().permute([order.index(d) for d in range(len(shape))])[index]
        for x in full
    ]
    whole = linear_step(full, SOLVER, dtypes=[F32, torch.bfloat16])
    assert_same_bits(linear_step(views, SOLVER, dtypes=[F32, torch.bfloat16]), [y[index] for y in whole])


@pytest.mark.parametrize("isa", usable_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_past_the_caches(isa: str, dtype: torch.dtype) -> None:
    """Tensors beyond the last-level cache are stored another way; start and end misaligned, several threads."""
    n = (48 << 20) // torch.empty((), dtype=dtype).element_size() + 77
    a, b = (torch.randn(n + 3).to(dtype)[3:] for _ in range(2))
    rng = torch.tensor([5, 5])
    with instruction_set(isa):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            whole = linear_step([a, b], program(NOISY_STEP), rng=rng, dtypes=[dtype, dtype])
            quiet = program([[0.9, -0.3, 0.0, 0.0]])
            pieces = torch.cat(
                [linear_step([x, y], quiet)[0] for x, y in zip(a.split(50001), b.split(50001), strict=True)]
            )
            assert_same_bits([whole[0]], [pieces], f"{threads} threads")
            if threads == 1:
                first = whole
    assert_same_bits(whole, first, "one thread against two")
    with instruction_set(isa):
        linear_step([a, b], program(NOISY_STEP), rng=rng, dtypes=[dtype, dtype], out=[b, a])
    assert_same_bits([b, a], whole, "over the inputs")


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 10 << 30,
    reason="needs 10 GiB of free memory",
)
def test_more_than_2_to_the_31_elements() -> None:
    n = 2**31 + 9
    x = torch.zeros(n, dtype=torch.float16)
    x[-9:] = torch.arange(9, dtype=torch.float16)
    x[2**30] = 3.0
    linear_step([x], program([[2.0, 0.0, 0.0]]), out=[x])
    assert x[-9:].tolist() == [2.0 * i for i in range(9)]
    assert float(x[2**30]) == 6.0
    assert int(x[: 2**30].count_nonzero()) == 0


# ---- gradients -------------------------------------------------------------------------------------------------


def test_gradients_leave_the_values_alone() -> None:
    inputs = [*four(2, 4, 8, 8), torch.randn(1, 4, 8, 8)]
    table = program(
        [[1.4, 2.0, -3.0, 0.0, 0.3, 0.0, 0.0, 0.0], [0.8, 0, 0, -0.2, 0, 0.5, 0, 0.3]],
        [(-1.0, 1.0), (-INF, INF)],
    )
    both = {"dtypes": [torch.bfloat16, F32], "rng": RNG}
    fused = linear_step(inputs, table, **both)
    leaves = [x.clone().requires_grad_() for x in inputs]
    recorded = linear_step(leaves, table, **both)
    assert_same_bits([t.detach() for t in recorded], fused)
    sum(t.float().sum() for t in recorded).backward()
    assert leaves[4].grad is not None
    assert leaves[4].grad.shape == (1, 4, 8, 8)


def test_autograd_notices_what_is_overwritten() -> None:
    weight, saved = torch.randn(2, 3, 4, requires_grad=True), X.clone()
    product = (weight * saved).sum()
    linear_step([saved, X], SUM, out=[saved])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_gradients_stop_where_the_bounds_bite() -> None:
    x = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0], requires_grad=True)
    (y,) = linear_step([x], program([[1.0, 0.0, 0.0]], [(-1.0, 1.0)]))
    y.sum().backward()
    want = torch.clamp(x.detach().requires_grad_(), -1, 1)
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert_same_bits([y.detach()], [want.detach()])


def test_complex_gradients() -> None:
    x = [torch.randn(3, 5, dtype=torch.complex64).requires_grad_() for _ in range(2)]
    table = program([[0.9, -0.3, 0.0, 0.0, 0.0], [0.5, 0.0, 0.7, 0.0, 0.0]])
    weight = torch.randn(3, 5, dtype=torch.complex64)
    (y,) = linear_step(x, table)
    want = 0.5 * x[0] + 0.7 * (0.9 * x[0] - 0.3 * x[1])
    ours = torch.autograd.grad((y * weight).abs().sum(), x)
    eager = torch.autograd.grad((want * weight).abs().sum(), x)
    for g, w in zip(ours, eager, strict=True):
        assert_close(g, w, scale=4.0, what="complex gradient")


# ---- torch.compile, threads, processes -------------------------------------------------------------------------


def test_one_graph_over_all_steps_and_sizes() -> None:
    graphs = 0

    def count(gm: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return gm.forward

    tables = torch.stack([SOLVER * s for s in (0.5, 1.0, 2.0, 3.0)]).nan_to_num(
        nan=0.0, posinf=INF, neginf=-INF
    )
    step = torch.compile(
        lambda xs, i: linear_step(xs, tables, step=i, dtypes=[F32, F32]),
        backend=count,
        fullgraph=True,
        dynamic=True,
    )
    for i in range(4):
        for size in (8, 16, 24):
            xs = four(2, 4, size, size)
            assert_same_bits(
                step(xs, torch.tensor(i)), linear_step(xs, tables, step=torch.tensor(i), dtypes=[F32, F32])
            )
    assert graphs == 1


def test_inductor_runs_it_in_place() -> None:
    def two_steps(x: Tensor, e: Tensor, m: Tensor) -> Tensor:
        table = program([[0.9, -0.2, 0.1, 0.0, 0.0], [0.5, 0.1, 0.0, 0.3, 0.0]]).float()
        for _ in range(2):
            m, x = linear_step(
                [x, e, m], torch.cat([table[:, :5], torch.zeros(2, 1), table[:, 5:]], 1), dtypes=[F32, F32]
            )
        return x * 2

    xs = four(2, 33)[:3]
    assert_same_bits([torch.compile(two_steps, fullgraph=True)(*xs)], [two_steps(*xs)])


def _child(x: Tensor, queue: Any) -> None:
    queue.put(linear_step([x, x], SUM)[0].sum().item())


def test_works_in_forked_workers() -> None:
    x = torch.ones(1 << 17)
    linear_step([x, x], SUM)  # the parent has used its thread pool
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_child, args=(x[: 1 << 15], queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [float(1 << 16)] * 2
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0


@pytest.mark.parametrize("isa", usable_isas())
def test_the_environment_chooses_the_instruction_set(isa: str) -> None:
    code = "import fastdiff; print(fastdiff.isa())"
    environment = os.environ | {"FASTDIFF_CPU_ISA": isa}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == isa


def test_unknown_instruction_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'avx9' .* is not one of"):
        fastdiff.use_isa("avx9")


# ---- the torch-free entry --------------------------------------------------------------------------------------


def test_numpy_arrays_get_the_same_bits() -> None:
    from fastdiff import _C  # type: ignore[attr-defined]

    inputs = four(2, 4, 9, 9)
    x0, out = np.empty((2, 4, 9, 9), np.float32), np.empty((2, 4, 9, 9), np.float16)
    _C.linear_step([x.numpy() for x in inputs], SOLVER.numpy(), [x0, out])
    assert_same_bits(
        [torch.from_numpy(x0), torch.from_numpy(out)],
        linear_step(inputs, SOLVER, dtypes=[F32, torch.float16]),
    )


def test_numpy_refusals() -> None:
    from fastdiff import _C  # type: ignore[attr-defined]

    x, table = np.ones((2, 3), np.float32), IDENTITY.numpy()
    with pytest.raises(
        RuntimeError, match=r"fastdiff::linear_step: out\[0\] must have shape \[2, 3\], got \[3\]"
    ):
        _C.linear_step([x], table, [np.ones(3, np.float32)])
    frozen = np.ones((2, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises((RuntimeError, BufferError), match="read-only"):
        _C.linear_step([x], table, [frozen])
