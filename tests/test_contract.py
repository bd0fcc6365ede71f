# SPDX-License-Identifier: Apache-2.0
"""What every operator promises, for every operator and every case it lists. Nothing here names an operator."""

from __future__ import annotations

import functools
import gc
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fastdiff._case import Case
from torch import Tensor

from tests.kit.backends import backends, run
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.ops import CASES, OPS, Op, case_id
from tests.kit.trees import (
    Canary,
    as_tuple,
    at_offset,
    map_tensors,
    moved,
    structure_of,
    tensors_of,
    with_gaps,
)

each_case = pytest.mark.parametrize(("op", "case"), CASES, ids=case_id)
# Schemas, shape functions and tracing cannot tell calls of one structure from another.
STRUCTURES = {(op, structure_of((case.args, case.kwargs))): (op, case) for op, case in reversed(CASES)}
each_structure = pytest.mark.parametrize(("op", "case"), list(reversed(STRUCTURES.values())), ids=case_id)
each_op = pytest.mark.parametrize("op", OPS, ids=case_id)
# VNNI and AMX run the very kernels of AVX2 and AVX-512, but for what has its own.
RUNS = [
    (op, case, name)
    for op, case in CASES
    for name in backends()
    if op.has_kernels_for(name.removeprefix("cpu-"), case)
]
BEST_LANES = next(name for name in ("cpu-avx512", "cpu-avx2", "cpu-baseline") if name in backends())
LANES = [
    run
    for run in RUNS
    if run[2].startswith("cpu") and not (run[2] == "cpu-amx" and run[0].uses_tiles(run[1]))
]


@functools.cache
def reference(op: Op, name: str) -> tuple[Tensor, ...]:
    return op.reference(_case(op, name))


@functools.cache
def plain(op: Op, name: str) -> tuple[Tensor, ...]:
    """The result on the CPU as the user gets it."""
    case = _case(op, name)
    return op(*case.args, **case.kwargs)


@functools.cache
def best_of_lanes(op: Op, name: str) -> tuple[Tensor, ...]:
    """The same, but never by the tiles of AMX."""
    case = _case(op, name)
    return run(op, case, BEST_LANES) if op.uses_tiles(case) else plain(op, name)


def _case(op: Op, name: str) -> Case:
    return next(case for o, case in CASES if o is op and case.name == name)


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "case", "backend"), RUNS, ids=case_id)
def test_equals_the_reference(op: Op, case: Case, backend: str) -> None:
    got = run(op, case, backend)
    for n, (g, w) in enumerate(zip(got, reference(op, case.name), strict=True)):
        assert_close(g, w, **op.tolerance(case), what=f"{op} {case} on {backend}, result {n}")


SAME_BITS = [pair for pair in CASES if pair[0].gives_the_same_bits]


@pytest.mark.parametrize(("op", "case", "backend"), LANES, ids=case_id)
def test_every_instruction_set_gives_the_same_bits(op: Op, case: Case, backend: str) -> None:
    """But for the tiles of AMX, which test_equals_the_reference() holds to the tolerance."""
    assert_same_bits(
        run(op, case, backend), best_of_lanes(op, case.name), f"{op} {case}: {backend} against the CPU's best"
    )


@pytest.mark.parametrize(("op", "case"), SAME_BITS, ids=case_id)
def test_emulated_kernels_give_the_same_bits(op: Op, case: Case) -> None:
    assert_same_bits(
        run(op, case, "simt"), best_of_lanes(op, case.name), f"{op} {case}: simt against the CPU"
    )


@pytest.mark.skipif(
    "cuda" not in backends(), reason="no CUDA device in this machine (torch.cuda.is_available())"
)
@pytest.mark.parametrize(("op", "case"), SAME_BITS, ids=case_id)
def test_cuda_gives_the_same_bits(op: Op, case: Case) -> None:
    assert_same_bits(
        run(op, case, "cuda"), best_of_lanes(op, case.name), f"{op} {case}: cuda against the CPU"
    )


@each_case
def test_is_deterministic_for_any_thread_count(op: Op, case: Case) -> None:
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        assert_same_bits(
            op(*case.args, **case.kwargs), plain(op, case.name), f"{op} {case}, {threads} threads"
        )


@each_case
def test_leaves_its_inputs_alone(op: Op, case: Case) -> None:
    before = map_tensors((case.args, case.kwargs), torch.clone)
    op(*case.args, **case.kwargs)
    assert_same_bits(
        list(tensors_of((case.args, case.kwargs))), list(tensors_of(before)), f"{op} {case}: an input changed"
    )


# ---- layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1, 2, 3, 5, 7, 8, 13, 15])
@each_case
def test_any_storage_offset(op: Op, case: Case, elements: int) -> None:
    args, kwargs = map_tensors((case.args, case.kwargs), lambda t: at_offset(t, elements))
    assert_same_bits(op(*args, **kwargs), plain(op, case.name), f"{op} {case} at storage offset {elements}")


def transposed(t: Tensor) -> Tensor:
    """The same values with the memory order of the dimensions reversed."""
    order = list(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order) if order else t.clone()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaps": with_gaps,
    "contiguous": lambda t: t.clone(memory_format=torch.contiguous_format),
    "reversed": transposed,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case
def test_any_layout(op: Op, case: Case, layout: str) -> None:
    # rng stays: its pair is one value, not a tensor with a layout
    keep = {name: value for name, value in case.kwargs.items() if name == "rng"}
    args, kwargs = map_tensors((case.args, case.kwargs), LAYOUTS[layout])
    got = op(*args, **(kwargs | keep))
    assert_same_bits(got, plain(op, case.name), f"{op} {case}, {layout}")


@each_case
def test_fakes_know_shapes_strides_and_dtypes(op: Op, case: Case) -> None:
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        args, kwargs = map_tensors((case.args, case.kwargs), mode.from_tensor)
        fakes = op(*args, **kwargs)
    for fake, real in zip(fakes, plain(op, case.name), strict=True):
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype), (
            f"{op} {case}"
        )


@each_op
def test_fakes_stay_on_their_device(op: Op) -> None:
    """On a second GPU, which need not be there for that."""
    case = op.cases()[0]
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        args, kwargs = moved(map_tensors((case.args, case.kwargs), mode.from_tensor), "cuda:1")
        assert {str(fake.device) for fake in op(*args, **kwargs)} == {"cuda:1"}


@each_case
def test_outputs_keep_the_layout_of_the_first_input(op: Op, case: Case) -> None:
    first = next(tensors_of(case.args))
    for result in plain(op, case.name):
        if result.shape == first.shape and result.numel():
            assert result.stride() == torch.empty_like(first).stride(), f"{op} {case}"


# ---- outputs ---------------------------------------------------------------------------------------------------


@each_case
def test_out_writes_its_elements_and_nothing_else(op: Op, case: Case) -> None:
    for layout in (lambda t: t, with_gaps, transposed):
        canaries = [Canary(layout(t)) for t in plain(op, case.name)]
        op(*case.args, **case.kwargs, out=[c.tensor for c in canaries])
        assert_same_bits([c.tensor for c in canaries], plain(op, case.name), f"{op} {case}, out=")
        assert all(c.is_alive() for c in canaries), f"{op} {case}: wrote outside an output"


@pytest.mark.parametrize(("op", "case"), [pair for pair in CASES if pair[0].works_in_place], ids=case_id)
def test_out_may_be_an_input(op: Op, case: Case) -> None:
    args, kwargs = map_tensors((case.args, case.kwargs), torch.clone)
    candidates = op.inputs(Case(case.name, args, kwargs))
    out = []
    for result in plain(op, case.name):
        fit = (t for t in candidates if t.shape == result.shape and t.dtype == result.dtype)
        chosen = next(fit, None)
        candidates = [t for t in candidates if t is not chosen]
        out.append(torch.empty_like(result) if chosen is None else chosen)
    op(*args, **kwargs, out=out)
    assert_same_bits(out, plain(op, case.name), f"{op} {case}, in place")


@pytest.mark.parametrize("op", [op for op in OPS if not op.works_in_place], ids=case_id)
def test_out_must_not_be_an_input(op: Op) -> None:
    """Where the result is no tensor like an input, memory in common is a mistake of the caller's."""
    case = max(op.cases(), key=lambda c: _fitting(op, c))
    assert _fitting(op, case) > 0
    for x in op.inputs(case):
        for n, result in enumerate(plain(op, case.name)):
            if not _fits(result, x):
                continue
            out = [torch.empty_like(t) for t in plain(op, case.name)]
            out[n] = x.flatten().view(torch.uint8)[: result.nbytes].view(result.dtype).view(result.shape)
            before = x.clone()
            with pytest.raises(
                RuntimeError, match=rf"fastdiff::{op.name}: [\w\[\]]+ must not share memory with"
            ):
                op(*case.args, **case.kwargs, out=out)
            assert_same_bits([x], [before], f"{op}: an input changed")


def _fits(result: Tensor, x: Tensor) -> bool:
    return 0 < result.nbytes <= x.nbytes and x.is_contiguous()


def _fitting(op: Op, case: Case) -> int:
    """The number of inputs into whose memory some result fits."""
    return sum(any(_fits(t, x) for t in plain(op, case.name)) for x in op.inputs(case))


# ---- torch -----------------------------------------------------------------------------------------------------


def raw_arguments(op: Op, case: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that the public function hands to the operator itself."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is op.raw():
                seen.append((args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Spy():
        op(*case.args, **case.kwargs)
    return seen[0]


def finite_arguments(op: Op, case: Case) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Without NaN in the inputs: opcheck compares two runs with an equality that NaN fails."""
    args, kwargs = raw_arguments(op, case)
    return map_tensors(args, lambda t: t.nan_to_num(0.5) if t.is_floating_point() else t), kwargs


@each_structure
def test_opcheck(op: Op, case: Case) -> None:
    args, kwargs = finite_arguments(op, case)
    torch.library.opcheck(op.raw(), args, kwargs)


@each_structure
def test_opcheck_of_the_out_variant(op: Op, case: Case) -> None:
    args, kwargs = finite_arguments(op, case)
    out = [torch.zeros_like(t) for t in plain(op, case.name)]
    torch.library.opcheck(op.raw("out"), args, kwargs | op.out_arguments(out))


@each_structure
def test_compiles_without_graph_breaks(op: Op, case: Case) -> None:
    compiled = torch.compile(lambda *a, **k: op.function(*a, **k), backend="aot_eager", fullgraph=True)
    got = as_tuple(compiled(*case.args, **case.kwargs))
    assert_same_bits(got, plain(op, case.name), f"{op} {case} compiled")
    torch._dynamo.reset()


@each_op
def test_exports(op: Op) -> None:
    case = op.cases()[0]

    class Module(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return op.function(*args, **case.kwargs)

    program = torch.export.export(Module(), case.args)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    got = as_tuple(torch.export.load(file).module()(*case.args))
    assert_same_bits(got, plain(op, case.name), f"{op} exported")


DIFFERENTIABLE = [
    (op, case)
    for op, case in CASES
    if op.is_differentiable and not any(t.is_complex() for t in tensors_of(case.args))
]


# NOTE: kernels have no complex128, which finite differences need; complex64 gradients are in the ops' own tests.
SMOOTH = [pair for pair in DIFFERENTIABLE if pair[0].straight_through is None and pair[0].has_doubles]
STAIRCASES = [pair for pair in DIFFERENTIABLE if pair[0].straight_through is not None]


@pytest.mark.parametrize(("op", "case"), STAIRCASES, ids=case_id)
def test_gradients_are_straight_through(op: Op, case: Case) -> None:
    """A staircase has no differences to compare with: its gradient is that of another function."""
    first, *rest = case.args
    g = torch.Generator().manual_seed(0)
    gradient = torch.randn(first.shape, generator=g, dtype=torch.float64).to(first.dtype)
    found = []
    for function in (op.function, op.straight_through):
        x = first.clone().requires_grad_()
        (dx,) = torch.autograd.grad(function(x, *rest, **case.kwargs), x, gradient)
        found.append(dx)
    assert_same_bits(found[:1], found[1:], f"{op} {case}: gradient")


@pytest.mark.parametrize(("op", "case"), SMOOTH, ids=case_id)
def test_gradients(op: Op, case: Case) -> None:
    """Against finite differences in float64, in every order that the operator has."""
    first, *rest = case.args
    leaves = [t.double().nan_to_num(0.5, 0.5, 0.5).requires_grad_() for t in as_tuple(first)]
    rest, kwargs = map_tensors(
        (rest, dict(case.kwargs)), lambda t: t.double() if t.is_floating_point() else t
    )
    if "dtypes" in kwargs:
        kwargs["dtypes"] = [None if dtype is None else torch.float64 for dtype in kwargs["dtypes"]]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        results = op(inputs[0] if isinstance(first, Tensor) else list(inputs), *rest, **kwargs)
        return tuple(y.masked_fill(y.isinf(), 0) for y in results)  # which have no differences

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-6)
    if op.gradient_orders > 1:
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("op", [op for op in OPS if not op.is_differentiable], ids=case_id)
def test_refuses_to_record_gradients(op: Op) -> None:
    """An operator without gradients says so, for each of its inputs, unless none are recorded."""
    case = op.cases()[0]
    for n, t in enumerate(op.inputs(case)):
        if not (t.is_floating_point() or t.is_complex()):
            continue  # has none to record
        args, kwargs = map_tensors((case.args, case.kwargs), torch.clone)
        op.inputs(Case(case.name, args, kwargs))[n].requires_grad_()
        with pytest.raises(NotImplementedError, match=rf"fastdiff\.{op.name}: "):
            op(*args, **kwargs)
        with torch.no_grad():
            assert_same_bits(op(*args, **kwargs), plain(op, case.name), f"{op} without gradients")


@pytest.fixture(scope="module")
def _only_new_objects() -> Iterator[None]:
    """What other tests have left is not looked at again and again: with a large heap that takes seconds a time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@each_case
@pytest.mark.usefixtures("_only_new_objects")
def test_no_memory_is_lost(op: Op, case: Case) -> None:
    """A tensor that a call keeps alive shows as a growing count."""

    def count() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    for _ in range(2):
        op(*case.args, **case.kwargs)
    before = count()
    for _ in range(3):
        op(*case.args, **case.kwargs)
    assert count() <= before
