# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: streams, graphs, syncs, other array libraries, and the contract on device tensors."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import fastdiff
import pytest
import torch
from fastdiff import (
    _C,
    cached_residual_add,
    dequantize,
    guidance,
    linear_step,
    planners,
    quantize_per_token,
    schedules,
)
from fastdiff._case import Case
from fastdiff.planners import Plan
from fastdiff.solver.linear_step_cases import NOISY_STEP, SOLVER_STEP, program
from torch import Tensor

from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.ops import CASES, OPS, Op, case_id
from tests.kit.trees import Canary, at_offset, map_tensors, moved, tensors_of, with_gaps


def why_not() -> str | None:
    """What keeps these tests from running: `torch.cuda.is_available()` and `fastdiff info` say the same."""
    if not torch.cuda.is_available():
        return f"no CUDA device: torch.cuda.is_available() is False (torch {torch.__version__})"
    if not _C.facts()["has_cuda"]:
        return 'fastdiff was built without CUDA: fastdiff._C.facts()["has_cuda"] is False'
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
each_case = pytest.mark.parametrize(("op", "case"), CASES, ids=case_id)
each_op = pytest.mark.parametrize(("op", "case"), [(op, op.cases()[0]) for op in OPS], ids=case_id)

DOUBLE = program([[2.0, 0.0, 0.0]])  # y = 2 x
NOISE = program([[0.0, 0.0, 1.0]])  # y = z


# ---- the contract, on the device -------------------------------------------------------------------------------


@functools.cache
def on_cpu(op: Op, name: str) -> tuple[Tensor, ...]:
    case = next(case for o, case in CASES if o is op and case.name == name)
    return op(*case.args, **case.kwargs)


def on_device(case: Case, change: Any = lambda t: t) -> tuple[Any, Any]:
    """The arguments as CUDA tensors; `rng` is one value and keeps its layout."""
    args, kwargs = map_tensors(moved((case.args, case.kwargs), "cuda"), change)
    return args, kwargs | ({"rng": case.kwargs["rng"].cuda()} if "rng" in case.kwargs else {})


def back(results: Any) -> list[Tensor]:
    return [t.cpu() for t in results]


def assert_as_on_cpu(op: Op, case: Case, got: Sequence[Tensor], what: str) -> None:
    """The same bits, or where CUDA adds in another order the same numbers."""
    want = on_cpu(op, case.name)
    if op.gives_the_same_bits:
        assert_same_bits(got, want, what)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w, **op.tolerance(case), what=what)


@each_case
def test_same_bits_every_time(op: Op, case: Case) -> None:
    args, kwargs = on_device(case)
    first = back(op(*args, **kwargs))
    assert_as_on_cpu(op, case, first, f"{op} {case}")
    for _ in range(2):
        assert_same_bits(back(op(*args, **kwargs)), first, f"{op} {case}, again")


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 7, 8, 15])
@each_case
def test_any_storage_offset(op: Op, case: Case, elements: int) -> None:
    args, kwargs = on_device(case, lambda t: at_offset(t, elements))
    got = op(*args, **kwargs)
    assert_as_on_cpu(op, case, back(got), f"{op} {case} at storage offset {elements}")


@each_case
def test_any_strides(op: Op, case: Case) -> None:
    args, kwargs = on_device(case, with_gaps)
    assert_as_on_cpu(op, case, back(op(*args, **kwargs)), f"{op} {case} with gaps")


@each_case
def test_out_writes_its_elements_and_nothing_else(op: Op, case: Case) -> None:
    args, kwargs = on_device(case)
    for layout in (lambda t: t, with_gaps):
        canaries = [Canary(layout(t.cuda())) for t in on_cpu(op, case.name)]
        op(*args, **kwargs, out=[c.tensor for c in canaries])
        assert_as_on_cpu(op, case, back(c.tensor for c in canaries), f"{op} {case}, out=")
        assert all(c.is_alive() for c in canaries), f"{op} {case}: wrote outside an output"


@pytest.mark.parametrize(("op", "case"), [pair for pair in CASES if pair[0].works_in_place], ids=case_id)
def test_out_may_be_an_input(op: Op, case: Case) -> None:
    args, kwargs = on_device(case, lambda t: t.clone())
    left = op.inputs(Case(case.name, args, kwargs))
    out = []
    for like in on_cpu(op, case.name):
        chosen = next((t for t in left if t.shape == like.shape and t.dtype == like.dtype), None)
        left = [t for t in left if t is not chosen]
        out.append(torch.empty_like(like, device="cuda") if chosen is None else chosen)
    op(*args, **kwargs, out=out)
    assert_as_on_cpu(op, case, back(out), f"{op} {case}, in place")


@pytest.mark.parametrize("shape", [(1 << 22,), (3, 1 << 20), (70_000, 5)])
def test_large_noise_has_the_same_bits(shape: tuple[int, ...]) -> None:
    x, rng = torch.randn(2, *shape), torch.tensor([2**40 + 7, -3])
    per_sample = (
        torch.stack([torch.arange(shape[0]), torch.arange(shape[0]) - 2], 1) if len(shape) > 1 else rng
    )
    for key in (rng, per_sample):
        want = linear_step(list(x), program(NOISY_STEP), rng=key)
        got = linear_step(list(x.cuda()), program(NOISY_STEP).cuda(), rng=key.cuda())
        assert_same_bits(back(got), want, f"noise of {shape}, rng {list(key.shape)}")


# ---- devices and streams ---------------------------------------------------------------------------------------


@each_op
def test_runs_on_the_current_stream(op: Op, case: Case) -> None:
    """What the same stream still has to write is read after that; a launch elsewhere would read zeros."""
    arguments = on_device(case)
    late = map_tensors(arguments, torch.zeros_like)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for slot, value in zip(tensors_of(late), tensors_of(arguments), strict=True):
            slot.copy_(value)
        args, kwargs = late
        got = [t.clone() for t in op(*args, **kwargs)]
    stream.synchronize()
    assert_as_on_cpu(op, case, back(got), f"{op} {case} on a stream of its own")


def test_refuses_tensors_on_different_devices() -> None:
    x = torch.ones(4, device="cuda")
    with pytest.raises(
        RuntimeError, match=r"fastdiff::linear_step: table must be on cuda:0 like inputs\[0\], got cpu"
    ):
        linear_step([x], DOUBLE)


@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason=f"needs two devices, found {torch.cuda.device_count()}"
)
@each_op
def test_runs_on_the_device_of_its_inputs(op: Op, case: Case) -> None:
    """Where there is one device, test_fakes_stay_on_their_device() of the contract has a second one."""
    args, kwargs = moved((case.args, case.kwargs), "cuda:1")
    got = op(*args, **kwargs)
    assert torch.cuda.current_device() == 0
    assert {str(t.device) for t in got} == {"cuda:1"}
    assert_as_on_cpu(op, case, back(got), f"{op} {case} on the second device")


# ---- graphs and syncs, for every op ----------------------------------------------------------------------------


@contextmanager
def syncs_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What waits for the device fails before the capture, which would leave the next tests in it."""
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        work()  # the first call may have a table to copy to the device
        with syncs_are_errors():
            work()
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            work()
    finally:
        torch.cuda.set_stream(stream)
    return graph


@each_case
def test_a_captured_call_gives_its_results_at_every_replay(op: Op, case: Case) -> None:
    args, kwargs = on_device(case)
    results: list[tuple[Tensor, ...]] = []
    graph = capture(lambda: results.append(op(*args, **kwargs)))
    for _ in range(2):
        for result in results[-1]:
            result.fill_(85)
        graph.replay()
        assert_as_on_cpu(op, case, back(results[-1]), f"{op} {case}, replayed")


@each_case
def test_a_call_never_waits_for_the_device(op: Op, case: Case) -> None:
    args, kwargs = on_device(case)
    op(*args, **kwargs)  # the first call may have a table to copy to the device
    with syncs_are_errors():
        got = op(*args, **kwargs)
    assert_as_on_cpu(op, case, back(got), f"{op} {case}")


# ---- whole plans: graphs, syncs, allocations -------------------------------------------------------------------

STEPS = 8
PLANS = {
    "dpm_solver_pp": planners.dpm_solver_pp(schedules.cosine(), STEPS, prediction="v").guided(3.0),
    "ddim": planners.ddim(schedules.scaled_linear(), STEPS, eta=1.0, clip_sample=1.0),
    "euler": planners.euler(schedules.flow(), STEPS),
    "rescaled": planners.dpm_solver_pp(schedules.cosine(), STEPS).guided(guidance.RescaledCFG(3.0)),
    "apg": planners.euler(schedules.flow(), STEPS).guided(guidance.APG(4.0, eta=0.25, momentum=-0.5)),
    "adaptive": planners.ddim(schedules.scaled_linear(), STEPS).guided(guidance.AdaptiveGuidance(4.0)),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
# The whole family, as it comes.
SCHEDULES = {"consistency": schedules.edm()}
OPTIONS = {"langevin": {"step_size": 2e-5}}
SOLVERS = {
    name: planner(SCHEDULES.get(name, schedules.cosine()), STEPS, **OPTIONS.get(name, {}))
    for name, planner in inspect.getmembers(planners, inspect.isfunction)
    if inspect.signature(planner).return_annotation == "Plan"
}
every_plan = pytest.mark.parametrize(
    "plan", [*PLANS.values(), *SOLVERS.values()], ids=[*PLANS, *(f"{s}_alone" for s in SOLVERS)]
)
SEED = torch.tensor([1234, 0])


def predict(plan: Plan, x: Tensor) -> Any:
    """Powers of two: exact, so that a run has the same bits on CPU and GPU."""
    return (0.5 * x, 0.25 * x) if plan.is_guided else 0.5 * x


def loop(plan: Plan, x: Tensor) -> Tensor:
    return plan.run(lambda x, t: predict(plan, x), x, seed=SEED.to(x.device) if plan.stochastic else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_plan
def test_run_has_the_same_bits_as_on_the_cpu(plan: Plan, dtype: torch.dtype) -> None:
    x = torch.randn(2, 4, 16, 16).to(dtype)
    want = loop(plan, x)
    assert want.isfinite().all()
    assert_same_bits([loop(plan, x.cuda()).cpu()], [want], plan.solver)


@each_plan
def test_one_captured_step_replays_the_whole_plan(plan: Plan) -> None:
    start = torch.randn(2, 4, 16, 16, device="cuda")
    x, counter = start.clone(), torch.zeros((), dtype=torch.int64, device="cuda")
    seed = SEED.cuda() if plan.stochastic else None
    _, first = plan.step(0, x, predict(plan, x), seed=seed)
    history = tuple(torch.zeros_like(slot) for slot in first)  # a latch too, if there is one

    def step() -> None:
        new_x, new_history = plan.step(counter, x, predict(plan, x), history, seed=seed)
        x.copy_(new_x)
        for slot, value in zip(history, new_history, strict=True):
            slot.copy_(value)
        counter.add_(1)

    graph = capture(step)
    for _ in range(2):  # a graph can be replayed for another sample
        x.copy_(start)
        counter.zero_()
        for slot in history:
            slot.zero_()
        for _ in range(plan.steps):
            graph.replay()
        assert_same_bits([x.cpu()], [loop(plan, start.cpu())], f"{plan.solver}, replayed")


@every_plan
def test_a_captured_run_follows_its_input(plan: Plan) -> None:
    x = torch.randn(2, 4, 16, 16, device="cuda")
    seed = SEED.cuda() if plan.stochastic else None
    result: list[Tensor] = []
    graph = capture(lambda: result.append(plan.run(lambda x, t: predict(plan, x), x, seed=seed)))
    for _ in range(2):
        x.normal_()
        graph.replay()
        assert_same_bits([result[-1].cpu()], [loop(plan, x.cpu())], f"{plan.solver}, captured")


@each_plan
def test_a_run_never_waits_for_the_device(plan: Plan) -> None:
    x = torch.randn(2, 4, 16, 16, device="cuda")
    seed = SEED.cuda() if plan.stochastic else None
    plan.run(
        lambda x, t: predict(plan, x), x, seed=seed
    )  # the first run copies the plan's table to the device
    with syncs_are_errors():
        plan.run(lambda x, t: predict(plan, x), x, seed=seed)


@pytest.mark.parametrize("plan", [p for p in PLANS.values() if p.adaptive is None], ids=lambda p: p.solver)
def test_steps_allocate_nothing(plan: Plan) -> None:
    x = torch.randn(2, 4, 16, 16, device="cuda")
    predictions = predict(plan, x.clone())
    seed = SEED.cuda() if plan.stochastic else None
    x, history = plan.step(0, x, predictions, seed=seed, inplace=True)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for i in range(1, plan.steps):
        x, history = plan.step(i, x, predictions, history, seed=seed, inplace=True)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


# ---- without torch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_stream", [False, True], ids=["default_stream", "own_stream"])
def test_takes_cupy_arrays(own_stream: bool) -> None:
    cupy = pytest.importorskip("cupy")
    x = torch.randn(4, 2, 3, 64)
    table, rng = program(SOLVER_STEP), torch.tensor([5, 6])
    table[1, 6] = 0.5
    want = linear_step(list(x), table, rng=rng, dtypes=[torch.float32, torch.float16])
    stream = cupy.cuda.Stream(non_blocking=True) if own_stream else cupy.cuda.Stream.null
    with stream:
        inputs = [cupy.asarray(t.numpy()) for t in x]
        out = [cupy.empty(x.shape[1:], dtype) for dtype in ("float32", "float16")]
        arguments = {"rng": cupy.asarray(rng.numpy()), "stream": stream.ptr}
        _C.linear_step(inputs, cupy.asarray(table.numpy()), out, **arguments)
        got = [torch.from_numpy(cupy.asnumpy(y)) for y in out]
    assert_same_bits(got, want, "CuPy")


# ---- refusals on the device ------------------------------------------------------------------------------------

BAD = {
    "step past the end": ("step=torch.tensor(3, device='cuda')", "step is outside the table"),
    "negative step": ("step=torch.tensor(-1, device='cuda')", "step is outside the table"),
    "noise without rng": ("step=torch.tensor(2, device='cuda')", "rng is needed"),
}


@pytest.mark.parametrize(("option", "message"), BAD.values(), ids=[name.replace(" ", "_") for name in BAD])
def test_bad_values_stop_the_kernel(option: str, message: str) -> None:
    """In a process of its own: a stopped kernel ends the CUDA context."""
    script = f"""
        import torch, fastdiff
        table = torch.tensor([[[1.0, 0, 0, -9, 9]], [[1.0, 0, 0, -9, 9]], [[1.0, 0, 1, -9, 9]]], device="cuda")
        try:
            fastdiff.linear_step([torch.ones(64, device="cuda")], table, {option})
            torch.cuda.synchronize()
        except RuntimeError as error:
            print("refused:", error)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "refused:" in run.stdout, run.stdout + run.stderr
    assert f"fastdiff::linear_step: {message}" in run.stderr


# ---- sizes -----------------------------------------------------------------------------------------------------


WIDTH, ROWS = 1 << 12, (1 << 19) + 3  # the last three rows lie past 2^31 elements
LARGE: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "linear_step": lambda x: linear_step([x], DOUBLE.to(x.device)),
    "cached_residual_add": lambda x: [cached_residual_add(x, [x])],
    "quantize_per_token": lambda x: quantize_per_token(x),
    "dequantize": lambda x: [
        dequantize(x.view(torch.int8), torch.tensor(0.5, device=x.device), dtype=torch.float16)
    ],
}


@pytest.mark.parametrize("skipped", [0, 1], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("work", LARGE.values(), ids=list(LARGE))
def test_more_than_2_to_the_31_elements(work: Callable[[Tensor], Sequence[Tensor]], skipped: int) -> None:
    """Rows are independent of each other: those past 2^31 give what they give alone."""
    needed, free = 5 * 2 * WIDTH * ROWS, torch.cuda.mem_get_info()[0]
    if free < needed:
        pytest.skip(f"needs {needed} bytes of device memory, {free} are free (torch.cuda.mem_get_info())")
    x = torch.zeros(WIDTH * ROWS + skipped, dtype=torch.float16, device="cuda")[skipped:].view(ROWS, WIDTH)
    last = x[-5:].normal_().clone()
    for got, want in zip(work(x), work(last.cpu()), strict=True):
        assert_same_bits([got[-5:].cpu()], [want], "the last rows")
        assert got[: ROWS // 2].eq(got[0]).all()


def test_more_samples_than_a_grid_has_rows() -> None:
    """Coefficients per sample put the samples on the grid's second axis, which ends at 65535."""
    count = 3 * 65535 + 5
    scale = torch.randn(count)
    table = torch.zeros(count, 1, 5)
    table[:, 0, 0], table[:, 0, 3], table[:, 0, 4] = scale, -torch.inf, torch.inf
    x = torch.randn(count, 3)
    (got,) = linear_step([x.cuda()], table.cuda())
    assert_same_bits([got.cpu()], linear_step([x], table), f"{count} samples")


def test_the_device_is_the_one_reported() -> None:
    devices = _C.cuda_facts()["devices"]
    assert devices[0]["name"] == torch.cuda.get_device_name(0)
    assert fastdiff.isa() in _C.facts()["isas"]
