# SPDX-License-Identifier: Apache-2.0
"""What every guidance is: a recipe that applies to predictions at once, or to a whole plan."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.guiders._recipe import (
    COND,
    DIFFERENCE,
    UNCOND,
    UPDATE,
    Course,
    Program,
    Recipe,
    active,
    expand,
    parameters,
    where,
)
from fastdiff.guiders._rows import Rows, rows_source
from fastdiff.planners._execution import launch
from fastdiff.planners._reductions import Adaptive, Reductions, coefficients_of, numel_of, stats_of
from fastdiff.planners.plan import Plan
from fastdiff.solver.linear_step import CODE, NOT_STORED, linear_step

Predictions = tuple[Tensor, ...]
# (step, x, t, history) -> predictions
Source = Callable[[int, Tensor, Tensor, Predictions], Any]

_ALONE = torch.tensor([[[1.0, 0.0, 0.0, -math.inf, math.inf]]], dtype=torch.float64)  # guided = prediction


class Guidance(ABC):
    """A way to make one prediction of several.

    A guidance is called on predictions, ``g(cond, uncond, ...) -> guided``, or handed to a plan,
    ``plan.run(model, x, guidance=g)``: the blend is then part of the solver's launch. One without reductions costs no
    launch of its own, one with reductions two. What it is made of is fixed at its first use; make another to change it.

    Attributes:
        branches: names of the predictions, in the order in which a model returns them: uncond first.
    """

    branches: tuple[str, ...] = (UNCOND, COND)

    def __init__(self) -> None:
        self._calls: dict[Any, Call] = {}
        self._state: dict[str, Tensor] = {}

    @abstractmethod
    def recipe(self, course: Course) -> Recipe:
        """The guidance of a run, step by step."""

    def __call__(
        self,
        cond: Tensor,
        uncond: Tensor,
        *others: Tensor,
        step: int | None = None,
        steps: int = 1,
        t: float | None = None,
    ) -> Tensor:
        """The guided prediction.

        Args:
            cond: c ``[B, *sample]``, float32, float16, bfloat16 or float64.
            uncond: u, the same shape.
            *others: the rest of `branches`.
            step, steps: where in a run of how many steps, for what depends on it. Step 0 forgets what was kept of
                earlier calls (momentum, latch), as `reset` does.
            t: the timestep, for what depends on it.

        Returns:
            ``[B, *sample]``, dtype and layout of cond. Differentiable where there are no reductions.

        Raises:
            ValueError: a wrong number of predictions, or a step that is not one of `steps`.
            RuntimeError: dtypes, shapes or devices that do not fit.
        """
        self._check_call(len(others) + 2, step, steps)
        if step == 0:
            self.reset()
        call = self._call(steps, t, cond.device, _real(cond, uncond))
        rest = dict(zip(self.branches[2:], others, strict=True))
        guided: Tensor = run_call(call, step or 0, {UNCOND: uncond, COND: cond, **rest}, self._state)
        return guided

    def _check_call(self, predictions: int, step: int | None, steps: int) -> None:
        if predictions != len(self.branches):
            raise ValueError(
                f"{type(self).__name__}: expected {len(self.branches)} predictions "
                f"({', '.join((COND, UNCOND, *self.branches[2:]))}), got {predictions}"
            )
        if step is not None and not 0 <= step < steps:
            raise ValueError(f"{type(self).__name__}: step {step} is outside 0 ... {steps - 1}")

    def reset(self) -> None:
        """Forget what was kept of earlier calls. A run of a plan keeps its own and needs no reset."""
        self._state.clear()

    def fresh(self) -> Guidance:
        """The same guidance with nothing kept."""
        new = copy.copy(self)
        new._state = {}
        return new

    def apply(self, plan: Plan) -> Plan:
        """The plan with this guidance in its tables; its step takes the tuple of `branches` as prediction.

        Raises:
            ValueError: the plan is guided already, or too long with the rows that the guidance adds.
        """
        return expanded(self.recipe(course_of(plan)), plan)

    def source(self, plan: Plan, model: Any) -> Source:
        """What gives a run its predictions: the model, as often as the guidance needs it."""
        if isinstance(model, Rows):
            return rows_source(plan, model)
        return lambda _i, x, t, _history: model(x, t)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _call(self, steps: int, t: float | None, device: torch.device, dtype: torch.dtype) -> Call:
        key = (steps, t, device, dtype)
        call = self._calls.get(key)
        if call is None:
            if len(self._calls) > 64:  # t is a number: an endless loop must not collect calls
                self._calls.clear()
            course = Course(steps, None if t is None else (t,) * steps)
            recipe = self.recipe(course)
            table = _ALONE.expand(steps, -1, -1)
            program = expand(recipe, ("prediction",), ("guided",), table)
            call = self._calls[key] = Call(recipe, program, device, dtype)
        return call


class Scaled(Guidance):
    """What methods with one scale have in common: rescaling, the form from c, and the part of the run that they guide.

    Args:
        scale: s.
        rescale, from_cond, start, stop: as for `CFG`.

    Raises:
        ValueError: a rescale outside 0 ... 1.
    """

    def __init__(
        self,
        scale: float,
        *,
        rescale: float = 0.0,
        from_cond: bool = False,
        start: float = 0.0,
        stop: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= rescale <= 1:
            raise ValueError(f"{type(self).__name__}: rescale must be in 0 ... 1, got {rescale}")
        self.scale, self.rescale, self.from_cond = scale, rescale, from_cond
        self.start, self.stop = start, stop

    def guided(self, course: Course) -> Tensor:
        """[S] bool: the steps that are guided, and not by a scale that changes nothing."""
        return active(self.start, self.stop, course.steps) & (self.scale != (0 if self.from_cond else 1))

    def parameters(self, course: Course, **more: float) -> Tensor:
        """float64 [S, 10]."""
        return parameters(
            course.steps, scale=self.scale, rescale=self.rescale, from_cond=float(self.from_cond), **more
        )


def _real(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def expanded(recipe: Recipe, plan: Plan) -> Plan:
    """The plan with a recipe in its tables."""
    return plan.with_program(expand(recipe, plan.inputs, plan.rows, plan.table), recipe)


def course_of(plan: Plan) -> Course:
    """What a guidance may ask about this plan."""
    return Course(
        plan.steps,
        tuple(map(float, plan.timesteps.tolist())),
        tuple(plan.alphas.tolist()),
        tuple(plan.sigmas.tolist()),
        plan.prediction,
    )


def is_single(plan: Plan) -> bool:
    """Whether a step is x' = a x + p prediction + noise z: no history, nothing clipped, not guided."""
    clips = bool(torch.isfinite(plan.table[..., -2:]).any()) or plan.threshold is not None
    return plan.inputs == ("x", "prediction") and plan.carry["x"] in plan.rows and not clips


def collapsed(plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """(a, p, noise) of each step of such a plan, float64 [S]."""
    k, m = len(plan.inputs), len(plan.rows)
    totals = torch.zeros(plan.steps, m, 3, dtype=torch.float64)
    for i in range(m):
        row = plan.table[:, i]
        totals[:, i, :2], totals[:, i, 2] = row[:, :2], row[:, k + m]
        for j in range(i):
            totals[:, i] += row[:, k + j, None] * totals[:, j]
    a, p, noise = totals[:, plan.rows.index(plan.carry["x"])].unbind(-1)
    return a, p, noise


class Call:
    """A recipe made ready to be called on predictions: device tensors, one program per step."""

    def __init__(self, recipe: Recipe, program: Program, device: torch.device, dtype: torch.dtype) -> None:
        # NOTE: no inference tensors, whatever mode the first call is in: autograd may save them later
        with torch.inference_mode(False):
            self.tables = program.table.to(device, dtype).unbind()
            gate = None if program.gate is None else program.gate[..., :-2]
            self.gates = [None] * len(self.tables) if gate is None else list(gate.to(device, dtype).unbind())
            self.reductions = None
            if program.adaptive is not None:
                names = (program.inputs, program.rows)
                self.reductions = Reductions(program.adaptive, *names, program.table, device, dtype)
        self.inputs, self.rows = program.inputs, program.rows
        self.carry, self.channels = list(recipe.carry), recipe.channels
        kept = sorted(self.rows.index(row) for row in recipe.carry.values())
        self.kept = [(slot, kept.index(self.rows.index(row))) for slot, row in recipe.carry.items()]
        self.dtypes = [dtype if i in kept else None for i in range(len(self.rows) - 1)]
        self.store = [NOT_STORED if d is None else CODE[d] for d in self.dtypes]
        self.mask = None if recipe.region is None else recipe.region.mask.to(device)


# NOTE: no methods, because torch.compile cannot call one of a constant


def run_call(call: Call, step: int, values: dict[str, Tensor], state: dict[str, Tensor]) -> Tensor:
    """One launch, or three; values: the predictions by name, state: what the call before left."""
    cond = values[COND]
    for slot in call.carry:
        values[slot] = state[slot] if slot in state else torch.zeros_like(cond, dtype=call.tables[0].dtype)
    inputs = [values[name] for name in call.inputs]
    table = call.tables[step]
    if call.reductions is not None and call.reductions.is_active[step]:
        table = resolved(call.reductions, step, inputs, cond, state)
    gate = call.gates[step]
    if torch.is_grad_enabled() and any([x.requires_grad for x in inputs]):  # noqa: C419  (a generator costs 0.3 us)
        results = list(linear_step(inputs, table, dtypes=[*call.dtypes, cond.dtype], gate_table=gate, mask=call.mask,
                                   channels=call.channels))  # fmt: skip
    else:
        store = [*call.store, CODE.get(cond.dtype, CODE[torch.float32])]
        results = launch(inputs, table, None, store, None, gate, call.mask, call.channels, None, None)
    # NOTE: laid out like inputs[0], which is uncond
    *stored, guided = results
    for slot, n in call.kept:
        state[slot] = stored[n]
    return guided


def resolved(
    reductions: Reductions, step: int, inputs: list[Tensor], cond: Tensor, state: dict[str, Tensor]
) -> Tensor:
    """The step's table [B, M, K+M+3], and the latch in `state`."""
    latch = None
    if reductions.adaptive.latched:
        latch = state.get("latch")
        latch = cond.new_zeros(len(cond), dtype=torch.uint8) if latch is None else latch
    stats = state["scores"].double() if reductions.adaptive.given else stats_of(reductions, inputs)
    table, latch = coefficients_of(reductions, stats, numel_of(cond), step, latch)
    if latch is not None:
        state["latch"] = latch
    return table


def difference(active: Tensor, plus: str = COND, minus: str = UNCOND) -> dict[str, Tensor]:
    """The row plus - minus in the steps that need it; in the others nothing is read."""
    on = active.double()
    return {plus: on, minus: -on}


def classifier_free(active: Tensor, scale: Tensor) -> Recipe:
    """u + s (c - u) = c + (s - 1) (c - u) where it is active and s is not 1, else c. scale: float64 [S]."""
    on = active & (scale != 1)
    weights = {COND: torch.ones_like(scale), DIFFERENCE: where(on, scale - 1)}
    return Recipe((UNCOND, COND), weights, {DIFFERENCE: difference(on)})


def adaptive_recipe(
    active: Tensor, method: str, table: Tensor, *, extras: Sequence[str] = (), extra_columns: Sequence[str] = (),
    mix: Sequence[tuple[float, float, float]] = (), rows: dict[str, dict[str, Tensor]] | None = None,
    branches: tuple[str, ...] = (UNCOND, COND), carry: dict[str, str] | None = None, latched: bool = False,
) -> Recipe:  # fmt: skip
    """c plus, in active steps, an update whose coefficients the device finds.

    Args:
        table: the parameters [S, 10].
        extras: inputs that are extras of the statistics; extra_columns: the columns of their features.
        rows: more rows than c - u, which are formed before the update.
    """
    adaptive = Adaptive(
        method, table, active, UPDATE, (UNCOND, DIFFERENCE, *extra_columns), (UNCOND, COND), tuple(extras),
        tuple(mix), latched,
    )  # fmt: skip
    all_rows = {DIFFERENCE: difference(active), **(rows or {}), UPDATE: {}}
    weights = {COND: torch.ones(len(active), dtype=torch.float64), UPDATE: active.double()}
    return Recipe(branches, weights, all_rows, carry or {}, adaptive)
