# SPDX-License-Identifier: Apache-2.0
"""The short way to the kernel that steps in place take: the operator's bits, and the operator where it must be."""

from __future__ import annotations

from typing import Any

import fastdiff
import pytest
import torch
from fastdiff import _C, planners, schedules
from fastdiff.planners import _execution
from fastdiff.planners.plan import Plan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_same_bits

PLAN = planners.dpm_solver_pp(schedules.linear(), 4).guided(2.0)
NOISY = planners.ddim(schedules.linear(), 4, eta=1.0).guided(2.0)


def tensors(shape: tuple[int, ...] = (2, 3, 5), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(dtype) for _ in range(4)]


def step(plan: Plan, values: list[Tensor], **options: Any) -> list[Tensor]:
    x, uncond, cond, m1 = (t.clone() for t in values)
    history = (m1,)[: len(plan.history)]
    x, history = plan.step(2, x, (uncond, cond), history, inplace=True, **options)
    return [x, *history]


class Operators(TorchDispatchMode):
    """Names of the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def by_the_operator(plan: Plan, values: list[Tensor], **options: Any) -> list[Tensor]:
    with Operators() as seen:
        result = step(plan, values, **options)
    assert "fastdiff.linear_step.out" in seen.names
    return result


@pytest.fixture
def declined(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the short way answered."""
    answers: list[bool] = []

    def spy(*args: Any) -> bool:
        answers.append(_C.linear_step_into(*args))
        return answers[-1]

    monkeypatch.setattr(_execution, "_kernel_into", spy)
    return answers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 4, 64, 64), (3,), (0, 4)], ids=str)
def test_same_bits_as_the_operator(shape: tuple[int, ...], dtype: torch.dtype, declined: list[bool]) -> None:
    values = tensors(shape, dtype)
    for plan, options in ((PLAN, {}), (NOISY, {"seed": torch.tensor([7, 3])})):
        short = step(plan, values, **options)
        assert_same_bits(short, by_the_operator(plan, values, **options), f"{plan} {shape} {dtype}")
    assert declined == [True, True]


def test_any_layout() -> None:
    values = [t.to(memory_format=torch.channels_last) for t in tensors((2, 3, 4, 5))]
    values[3] = values[3].contiguous()
    assert_same_bits(step(PLAN, values), by_the_operator(PLAN, values))


@pytest.mark.parametrize("isa", usable_isas())
def test_forced_instruction_set(isa: str) -> None:
    with instruction_set(isa):
        assert fastdiff.isa() == _C.facts()["isa_used"] == isa
        assert_same_bits(step(PLAN, tensors()), by_the_operator(PLAN, tensors()))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda t: torch.nn.Parameter(t, requires_grad=False), id="parameter"),
        pytest.param(lambda t: t.as_subclass(type("Mine", (Tensor,), {})), id="subclass"),
    ],
)
def test_other_tensor_types_go_to_the_operator(change: Any, declined: list[bool]) -> None:
    x, uncond, cond, m1 = tensors()
    expected = by_the_operator(PLAN, [x, uncond, cond, m1])
    got, (history,) = PLAN.step(2, x, (change(uncond), cond), (m1,), inplace=True)
    assert declined == [False]
    assert_same_bits([got, history], expected)


def test_large_tensors_get_their_threads(declined: list[bool]) -> None:
    values = tensors((1, 4, 128, 128))
    assert_same_bits(step(PLAN, values), by_the_operator(PLAN, values))
    assert declined == [False]


def test_profilers_see_the_operator() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(PLAN, tensors())
    assert "fastdiff::linear_step" in {event.name for event in profile.events()}


def test_autograd_notices() -> None:
    x, uncond, cond, m1 = tensors()
    before = x._version
    PLAN.step(2, x, (uncond, cond), (m1,), inplace=True)
    assert x._version == before + 1


def test_refuses_as_the_operator_does() -> None:
    x, uncond, cond, m1 = tensors()
    message = r"fastdiff::linear_step: inputs\[2\] must have shape \[2, 3, 5\].*, got \[2, 3, 4\]"
    before = x.clone()
    for context in (torch.no_grad(), Operators()):
        with context, pytest.raises(RuntimeError, match=message):
            PLAN.step(2, x, (uncond, cond[..., :4]), (m1,), inplace=True)
    assert_same_bits([x], [before], "nothing is written")


def test_needs_its_arguments() -> None:
    with pytest.raises(TypeError, match="8 arguments"):
        _C.linear_step_into([], None)
    assert _C.linear_step_into((), None, None, [], None, None, None, []) is False
