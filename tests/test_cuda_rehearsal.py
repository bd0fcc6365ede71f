# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/cuda as they would run on a GPU, with a CPU in its part: it shows that they are sound, no more."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff._case import Case
from fastdiff.planners import Plan
from torch import Tensor

from tests.cuda import test_cuda as play
from tests.kit.elsewhere import Elsewhere
from tests.kit.ops import Op


class Graph:
    """Of work that is done again at each replay."""

    def __init__(self, work: Callable[[], object]) -> None:
        work()
        self.replay = work


class Stream:
    """One thing after another, as everything on a CPU."""

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture(autouse=True)
def _understudy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    parts: dict[str, Any] = {
        "Stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "mem_get_info": lambda: (1 << 40, 1 << 40),
        "memory_stats": lambda: {"allocation.all.allocated": 0},
        **dict.fromkeys(("synchronize", "set_sync_debug_mode", "_sleep"), lambda *_: None),
    }
    for name, part in parts.items():
        monkeypatch.setattr(torch.cuda, name, part)
    monkeypatch.setattr(play, "capture", Graph)
    monkeypatch.setattr(play, "ROWS", 16)
    with Elsewhere():
        yield


def scenes(parameter: str) -> list[Callable[..., None]]:
    """The tests that take it."""
    return [
        test
        for name, test in inspect.getmembers(play, inspect.isfunction)
        if name.startswith("test_") and parameter in inspect.signature(test).parameters
    ]


def once(test: Callable[..., None], **arguments: Any) -> None:
    """With one value of what else it takes."""
    others = {"elements": 3, "dtype": torch.float32}
    names = inspect.signature(test).parameters
    test(**arguments, **{name: value for name, value in others.items() if name in names})


@play.each_op
def test_of_every_op(op: Op, case: Case) -> None:
    for scene in scenes("op"):
        if scene is not play.test_runs_on_the_device_of_its_inputs and (
            op.works_in_place or scene is not play.test_out_may_be_an_input
        ):
            once(scene, op=op, case=case)


@play.each_case
def test_of_every_case(op: Op, case: Case) -> None:
    play.test_a_captured_call_gives_its_results_at_every_replay(op, case)


@play.each_plan
def test_of_plans(plan: Plan) -> None:
    for scene in scenes("plan"):
        once(scene, plan=plan)


@pytest.mark.parametrize("plan", play.SOLVERS.values(), ids=list(play.SOLVERS))
def test_of_the_solver_family(plan: Plan) -> None:
    once(play.test_run_has_the_same_bits_as_on_the_cpu, plan=plan)
    once(play.test_a_captured_run_follows_its_input, plan=plan)


@pytest.mark.parametrize("skipped", [0, 1])
@pytest.mark.parametrize("work", play.LARGE.values(), ids=list(play.LARGE))
def test_of_sizes(work: Any, skipped: int) -> None:
    play.test_more_than_2_to_the_31_elements(work, skipped)


# ---- what they are for is seen ---------------------------------------------------------------------------------


class DeadGraph(Graph):
    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(work)
        self.replay = lambda: None


@play.each_op
def test_a_replay_that_does_nothing_is_seen(op: Op, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "capture", DeadGraph)
    with pytest.raises(AssertionError):
        play.test_a_captured_call_gives_its_results_at_every_replay(op, case)


@pytest.mark.parametrize("plan", play.PLANS.values(), ids=list(play.PLANS))
def test_a_plan_that_is_not_replayed_is_seen(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "capture", DeadGraph)
    for scene in (
        play.test_one_captured_step_replays_the_whole_plan,
        play.test_a_captured_run_follows_its_input,
    ):
        with pytest.raises(AssertionError):
            scene(plan)


@play.each_op
def test_inputs_that_come_too_late_are_seen(op: Op, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the launch went to another stream: what was queued before it has not run."""
    monkeypatch.setattr(Tensor, "copy_", lambda slot, value: slot)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        play.test_runs_on_the_current_stream(op, case)


def test_tensors_are_where_a_gpu_s_would_be() -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    assert here.to(there).is_cuda
    assert not there.to(here).is_cuda
    assert not here.copy_(there).is_cuda
    assert not here.is_cuda
    assert there.copy_(here).is_cuda
    assert there.cpu().numpy().tolist() == [1, 1, 1]
    for read in (Tensor.numpy, np.asarray):
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            read(there)
