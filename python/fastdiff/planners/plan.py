# SPDX-License-Identifier: Apache-2.0
"""A solver as a table: what every planner returns."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsFloat

import torch

from fastdiff.planners import _show
from fastdiff.planners._execution import (
    Dtypes,
    Execution,
    Seed,
    Threshold,
    Wiring,
    launch,
    launch_into,
    learned_deviation,
    new_history,
    noise_key,
    program_of,
    thresholded,
)
from fastdiff.planners._reductions import Adaptive, coefficients_of, numel_of, stats_of
from fastdiff.solver.linear_step import MAX_INPUTS, MAX_ROWS, linear_step

if TYPE_CHECKING:
    from fastdiff.guiders._guidance import Guidance
    from fastdiff.guiders._recipe import Program, Recipe

Prediction = torch.Tensor | Sequence[torch.Tensor]
Model = Callable[[torch.Tensor, torch.Tensor], Prediction]
History = tuple[torch.Tensor, ...]

_PAIR = ("uncond", "cond")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """S steps of a solver; each is one evaluation of the model and one launch of `fastdiff.linear_step`.

    A step computes its rows in order, from the input slots and the rows above:

        y_i = clamp( sum_k C[s,i,k] x_k + sum_{j<i} C[s,i,K+j] y_j + C[s,i,K+M] z, lo, hi )
        lo, hi = C[s,i,K+M+1], C[s,i,K+M+2]

    and `carry` says which values are the state of the next step. A multistep solver carries rows into a
    history ("m1": "x0"), a ring moves slots along ("m2": "m1"), a singlestep solver or a corrector carries
    "x" itself ("base": "x"). A solver of two evaluations per step has two entries in `table` for it.

    Under torch.compile make a plan, and the ones derived from it (`guided`, `with_noise_input`, `seen_in`), before
    the graph; `step` is what belongs inside.

    `print(plan)` shows the steps as equations. A plan is immutable; `guided`, `with_noise_input` and
    `keep_history_in` return others.

    Attributes:
        solver: name of the planner.
        table: C, float64 [S, M, K+M+3] on the CPU.
        timesteps: [S], int64 or float64; what the model is told.
        alphas, sigmas: float64 [S+1], the levels at which the model is evaluated, and the end point.
        inputs: names of the K slots: "x", "prediction" (or "uncond", "cond"), history, "noise" if explicit.
            A history slot "seen" is x once more, in the dtype that the model sees.
        rows: names of the M rows; "x'" is the next value of slot "x".
        carry: state slot -> the row or the state slot that it takes its next value from, each source once.
        prediction: what the model predicts: epsilon, x0, v or flow.
        order: convergence order in theory (of the deterministic part).
        init_noise_sigma: x to start from is this times standard normal noise. Default: hypot(alphas[0], sigmas[0]).
        branches: the slots of the predictions, in the order in which the model returns them. Default: "prediction", or
            "uncond" and "cond".
        threshold: of the row x0.
        learned_variance: (a, b) of each step, float64 [S, 2], for a model that predicts C more channels v: the
            noise coefficient of a row is then multiplied by exp(a + b v), element by element.
        adaptive: weights of the predictions that the device finds, step by step.
        gate: float64 [S, M, K+M+3], what is added to the coefficients (zero bounds) where the mask is set and inside
            the channels.
        mask: of the gate, as `fastdiff.linear_step` takes it; None: everywhere.
        channels: (c0, c1) of the gate.
        history_dtype, seen_dtype: dtypes of the history slots and of "seen"; None means that of x.
        history: names of the slots, besides x, that a step receives from the step before.
        noisy: [S], whether a step adds noise; `stochastic`: whether any does.
        steps: S, the number of model evaluations.
        is_guided: whether the model returns several predictions.

    Raises:
        ValueError: fields that do not fit together, or a coefficient that is not finite.
    """

    solver: str
    table: torch.Tensor
    timesteps: torch.Tensor
    alphas: torch.Tensor
    sigmas: torch.Tensor
    inputs: tuple[str, ...]
    rows: tuple[str, ...]
    carry: Mapping[str, str]
    prediction: str
    order: int
    init_noise_sigma: float = math.nan
    branches: tuple[str, ...] = ()
    threshold: Threshold | None = None
    learned_variance: torch.Tensor | None = None
    adaptive: Adaptive | None = None
    gate: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    channels: tuple[int, int] | None = None
    history_dtype: torch.dtype | None = None
    seen_dtype: torch.dtype | None = None

    history: tuple[str, ...] = field(init=False)
    noisy: tuple[bool, ...] = field(init=False)
    stochastic: bool = field(init=False)
    is_guided: bool = field(init=False)
    steps: int = field(init=False)
    _takes_noise: bool = field(init=False)
    _draws: bool = field(init=False)
    _wiring: Wiring = field(init=False)
    _derived: dict[Any, Plan] = field(init=False)
    _executions: dict[tuple[torch.device, torch.dtype], Execution] = field(init=False)

    def __post_init__(self) -> None:
        if not self.branches:
            self._set("branches", _PAIR if "cond" in self.inputs else ("prediction",))
        not_history = ("x", *self.branches, "noise")
        self._set("history", tuple(name for name in self.inputs if name not in not_history))
        self._check()
        k, takes_noise = len(self.inputs), self.inputs[-1] == "noise"
        column = self.table[..., k - 1 if takes_noise else k + len(self.rows)]
        self._set("noisy", tuple((column != 0).any(-1).tolist()))
        self._set("stochastic", any(self.noisy))
        self._set("is_guided", len(self.branches) > 1)
        self._set("_takes_noise", takes_noise)
        self._set("_draws", self.stochastic and not takes_noise)
        self._set("steps", self.timesteps.shape[0])
        if math.isnan(self.init_noise_sigma):
            self._set("init_noise_sigma", math.hypot(float(self.alphas[0]), float(self.sigmas[0])))
        more = () if self.threshold is None else ("thresholded",)
        self._set("_wiring", Wiring((*self.inputs, *more), self.rows, self.carry))
        self._set("_derived", {})
        self._set("_executions", {})

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # the dataclass is frozen

    def _check(self) -> None:
        steps, k, m = self.timesteps.shape[0], len(self.inputs), len(self.rows)
        names, sources = (*self.inputs, *self.rows), tuple(self.carry.values())
        allowed = {*self.carry, *self.rows}
        checks = {
            f"at most {MAX_INPUTS} inputs and {MAX_ROWS} rows": 0 < k <= MAX_INPUTS and 0 < m <= MAX_ROWS,
            "distinct names": len(set(names)) == k + m,
            f"a float64 table {[steps, m, k + m + 3]}": list(self.table.shape) == [steps, m, k + m + 3]
            and self.table.dtype == torch.float64,
            "alphas and sigmas [S+1]": self.alphas.shape == self.sigmas.shape == (steps + 1,),
            "finite coefficients": bool(self.table[..., :-2].isfinite().all()),
            "inputs x, prediction(s), then state": self.inputs[: 1 + len(self.branches)]
            == ("x", *self.branches),
            "carry for x and every history slot": set(self.carry) == {"x", *self.history},
            "a row x0 where there is a threshold": self.threshold is None or "x0" in self.rows,
            "learned_variance [S, 2]": self.learned_variance is None
            or self.learned_variance.shape == (steps, 2),
            "a gate like the table": self.gate is None or self.gate.shape == self.table.shape,
            "a gate or a learned variance or a threshold": self.gate is None
            or (self.learned_variance is None and self.threshold is None),
            # A prediction is not a state: guidance splits its slot in two. Carry a row that copies it.
            "carry from rows and state slots, each once": allowed.issuperset(sources)
            and len(set(sources)) == len(sources),
        }
        for expected, holds in checks.items():
            if not holds:
                raise ValueError(
                    f"plan {self.solver}: expected {expected}; got inputs {self.inputs}, rows {self.rows}"
                )

    # ---- what it is ----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Plan({self.solver}, {self.steps} steps, inputs {self.inputs}, rows {self.rows})"

    def __str__(self) -> str:
        columns = _show.symbols((*self.inputs, *self.rows, "z"), self.prediction)
        order = _show.reading_order(self.inputs, self.rows, self.history)
        times = [f"{t:.6g}" for t in self.timesteps.tolist()]
        lines = [f"{self.solver}: {self.steps} steps, order {self.order}, prediction {self.prediction}"]
        for i, rows in enumerate(self.table.tolist()):
            equations = [_show.equation(columns, order, *row) for row in zip(self.rows, rows, strict=True)]
            if self.threshold is not None:
                x0 = self.rows.index("x0")
                equations[x0] = _show.thresholded(equations[x0], self.threshold.ratio)
            head = f"step {i:>{len(str(self.steps - 1))}}  t={times[i]:<{max(map(len, times))}}"
            lines.append(f"{head}  {';  '.join(equations)}")
        return "\n".join(lines)

    # ---- plans made from it --------------------------------------------------------------------------------

    def guided(self, scale: SupportsFloat | Sequence[float] | Guidance) -> Plan:
        """The plan with classifier-free guidance folded in: prediction = (1 - w) uncond + w cond.

        Args:
            scale: w, one for all steps or one per step. At w = 1 uncond is not read, at w = 0 cond is not. Or any
                guidance of `fastdiff.guidance`: a step then takes the tuple of its `branches`.

        Raises:
            ValueError: already guided, or not S scales.
        """
        if self.is_guided:
            raise ValueError(f"plan {self.solver}: it is guided already")
        if hasattr(scale, "apply"):
            derived = self._derived.get(scale)
            if derived is None:
                self._derived.clear()  # NOTE: as below
                derived = self._derived[scale] = scale.apply(self)
            return derived
        many = isinstance(scale, Sequence)
        scales = tuple(map(float, scale)) if many else (float(scale),) * self.steps  # type: ignore[arg-type]
        if len(scales) != self.steps:
            raise ValueError(
                f"guidance_scale: expected one number or {self.steps} of them, got {len(scales)}"
            )
        plan = self._derived.get(scales)
        if plan is None:
            w = torch.tensor(scales, dtype=torch.float64)[:, None]
            p = self.inputs.index("prediction")
            before, column, after = self.table[..., :p], self.table[..., p], self.table[..., p + 1 :]
            pair = torch.stack(((1 - w) * column, w * column), -1)
            inputs = (*self.inputs[:p], "uncond", "cond", *self.inputs[p + 1 :])
            self._derived.clear()  # NOTE: only the latest is kept; a sweep over scales must not collect plans
            plan = self._replace(table=torch.cat((before, pair, after), -1), inputs=inputs, branches=_PAIR)
            self._derived[scales] = plan
        return plan

    def with_noise_input(self) -> Plan:
        """The plan whose noise z is an input tensor in the last slot, "noise", instead of being generated."""
        if self._takes_noise:
            return self
        plan = self._derived.get("noise")
        if plan is None:
            k, z = len(self.inputs), len(self.inputs) + len(self.rows)

            def moved(table: torch.Tensor) -> torch.Tensor:
                after = table[..., k:].clone()
                after[..., z - k] = 0
                return torch.cat((table[..., :k], table[..., z : z + 1], after), -1)

            gate = None if self.gate is None else moved(self.gate)
            plan = self._replace(table=moved(self.table), gate=gate, inputs=(*self.inputs, "noise"))
            self._derived["noise"] = plan
        return plan

    def keep_history_in(self, dtype: torch.dtype) -> Plan:
        """The plan that stores its history in this dtype whatever x has, such as float32 in a bf16 run."""
        return self._replace(history_dtype=dtype)

    def seen_in(self, dtype: torch.dtype) -> Plan:
        """The plan that also stores x in this dtype, for the model: its state may then have a wider one.

        The copy is the last slot of `history` ("seen") and one more row of the same launch. The rest of the
        history has this dtype too, unless another one was asked for.
        """
        plan = self._derived.get(("seen", dtype))
        if plan is None:
            k, m = len(self.inputs), len(self.rows)
            kept = [
                *range(k),
                *range(k + 1, k + 1 + m),
                *range(k + m + 2, k + m + 5),
            ]  # all but seen and seen'

            def widened(narrow: torch.Tensor) -> torch.Tensor:
                wide = torch.zeros(self.steps, m + 1, k + m + 5, dtype=torch.float64)
                wide[:, :m, kept] = narrow
                return wide

            table = widened(self.table)
            table[:, m, kept[[*self.inputs, *self.rows].index(self.carry["x"])]] = 1
            table[:, m, -2], table[:, m, -1] = -math.inf, math.inf
            plan = self._replace(
                table=table,
                gate=None if self.gate is None else widened(self.gate),
                inputs=(*self.inputs, "seen"),
                rows=(*self.rows, "seen'"),
                carry={**self.carry, "seen": "seen'"},
                history_dtype=self.history_dtype or dtype,
                seen_dtype=dtype,
            )
            self._derived["seen", dtype] = plan
        return plan

    # ---- running it ----------------------------------------------------------------------------------------

    def run(
        self,
        model: Model,
        x: torch.Tensor,
        *,
        guidance_scale: SupportsFloat | Sequence[float] | None = None,
        guidance: Guidance | None = None,
        seed: Seed | None = None,
        noise: Sequence[torch.Tensor] | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Sample: S evaluations of the model, S launches.

        Works on copies made before the first step, allocates nothing after it and never waits for the device. (A
        guidance with reductions has two launches more per step, and two small tensors; one that skips evaluations by
        what it sees has to wait for it.)
        The tensor that the model receives is overwritten by the next step. Where the model's prediction
        requires grad, steps are functional instead and the result is differentiable.

        A fp16 or bf16 x is kept in float32 between steps, and the model sees it rounded: rounding the state
        itself is most of the error of a half-precision run, nine tenths of it for 50 steps in bf16.

        Args:
            model: model(x, t) -> prediction, or the pair (uncond, cond) when there is guidance, or the tuple of a
                guidance's `branches`. t is a scalar tensor on x's device, int64 or floating as `timesteps` is. With a
                guidance also `fastdiff.guidance.Rows`, which leaves out what a step does not need.
            x: [B, *sample], fp32, fp16, bf16, fp64 or complex64, at level (alphas[0], sigmas[0]). Kept.
            guidance_scale: w of `guided`.
            guidance: of `fastdiff.guidance`, instead.
            seed: of the generated noise; one per sample makes a sample independent of its batch. Or a tensor
                (seed, offset), int64 [2] or [B, 2], on x's device. Default: drawn from torch's CPU generator.
            noise: the noise itself, standard normal, one tensor like x per step that adds noise (`noisy`).
            state_dtype: of x between steps. Default: float32 for fp16 and bf16, else x's own.

        Returns:
            x at level (alphas[S], sigmas[S]), same shape and dtype.

        Raises:
            ValueError: guidance of a guided plan; wrong number of scales, noise tensors or predictions; noise
                and seed both given.
            TypeError: unsupported dtype, malformed seed.
        """
        if guidance_scale is not None and guidance is not None:
            raise ValueError("guidance, guidance_scale: pass one or the other")
        plan = self if guidance_scale is None else self.guided(guidance_scale)
        plan = plan if guidance is None else plan.guided(guidance)
        noises = plan._noise_of_steps(noise, seed)
        state_dtype = state_dtype or (torch.float32 if x.dtype in _HALF else x.dtype)
        copied = state_dtype != x.dtype
        plan = plan.seen_in(x.dtype) if copied else plan
        plan = plan if noise is None else plan.with_noise_input()
        key = noise_key(seed, x.device) if plan.stochastic and noise is None else None

        on = plan._on(x.device, state_dtype)
        state = x.to(state_dtype, copy=True)
        seen = x if copied else state
        history = new_history(on, state)
        source = None if guidance is None else guidance.source(plan, model)
        for i, t in enumerate(on.times):
            prediction = model(seen, t) if source is None else source(i, seen, t, history)
            state, history = plan.step(i, state, prediction, history, seed=key, noise=noises[i], inplace=True)
            seen = history[len(plan.history) - 1] if copied else state
        return seen

    def step(
        self,
        i: int | torch.Tensor,
        x: torch.Tensor,
        prediction: Prediction,
        history: History | None = None,
        *,
        seed: Seed | None = None,
        noise: torch.Tensor | None = None,
        inplace: bool = False,
    ) -> tuple[torch.Tensor, History]:
        """One step: x, history = plan.step(i, x, prediction, history).

        Args:
            i: index of the step. An int64 scalar tensor on x's device makes one compiled graph, or one CUDA
                graph, serve all steps.
            x: [B, *sample].
            prediction: the model's output at (x, timesteps[i]), or the tuple of `branches` if the plan is guided; any
                floating dtype.
            history: what the step before returned; None at the first step.
            seed: as for `run`; a tensor costs nothing per step.
            noise: the noise itself; only where the step adds noise.
            inplace: write the new values over x and over the oldest history slots, where nothing requires
                grad. The arguments are then used up: go on with what is returned.

        Returns:
            (x, history) for the next step.

        Raises:
            IndexError: i is out of range.
            ValueError: noise is needed and neither seed nor noise is given; wrong number of predictions or of
                history slots.
        """
        plan = self if noise is None else self.with_noise_input()
        on = plan._on(x.device, x.dtype)
        predictions = (prediction,) if isinstance(prediction, torch.Tensor) else prediction
        history = new_history(on, x) if history is None else history
        given = plan.adaptive is not None and plan.adaptive.given
        if len(predictions) != len(plan.branches) + given or len(history) != len(plan.history) + on.latched:
            raise ValueError(
                f"plan {self.solver}: expected tensors for {plan.inputs}, "
                f"got {len(predictions)} predictions and {len(history)} history slots"
            )
        step = i if isinstance(i, torch.Tensor) else on.steps[plan._index(i)]
        stats = predictions[-1] if given else None
        mask, predictions = on.mask, predictions[: len(plan.branches)]
        if plan.learned_variance is not None:
            predictions, mask = learned_deviation(on, predictions, step)
        inputs = [x, *predictions, *history[: len(plan.history)]]
        if plan._takes_noise:
            inputs.append(x if noise is None else noise)
        key = plan._key(i, seed, x.device) if plan._draws else None
        latch = history[-1] if on.latched else None
        table, head, latch = plan._tables(on, i, step, inputs, stats, latch)
        if plan.threshold is not None:
            inputs.append(thresholded(on, plan.threshold, inputs, head, step))

        if torch.is_grad_enabled() and any([v.requires_grad for v in inputs]):  # noqa: C419  (a generator costs 0.3 us)
            options = {"rng": key, "gate_table": on.gate, "mask": mask, "channels": plan.channels}
            stored = list(linear_step(inputs, table, step=step, dtypes=on.dtypes, **options))
        elif inplace:
            stored = [inputs[k] for k in on.wiring.overwritten]
            launch_into(on, inputs, table, step, key, mask, plan.channels, stored)
        else:
            stored = launch(inputs, table, step, on.store, key, on.gate, mask, plan.channels, None, None)
        columns = [*inputs, *stored]
        slots = [columns[k] for k in on.wiring.next_history]
        return columns[on.wiring.next_x], tuple(slots if latch is None else [*slots, latch])

    # ---- inside --------------------------------------------------------------------------------------------

    def with_program(self, program: Program, recipe: Recipe) -> Plan:
        """The plan with its prediction expanded into a guidance's branches."""
        adaptive = program.adaptive
        if len(program.rows) > MAX_ROWS or len(program.inputs) > MAX_INPUTS:
            raise ValueError(
                f"plan {self.solver}: with this guidance a step has {len(program.inputs)} inputs and "
                f"{len(program.rows)} rows; at most {MAX_INPUTS} and {MAX_ROWS} can be run"
            )
        return self._replace(
            table=program.table,
            inputs=program.inputs,
            rows=program.rows,
            branches=recipe.branches,
            carry={**self.carry, **recipe.carry},
            adaptive=adaptive,
            gate=program.gate,
            mask=None if recipe.region is None else recipe.region.mask,
            channels=recipe.channels,
        )

    def _tables(
        self,
        on: Execution,
        i: int | torch.Tensor,
        step: torch.Tensor,
        inputs: Sequence[torch.Tensor],
        stats: torch.Tensor | None,
        latch: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The table of this step, that of its x0 before a threshold, and the latch after it."""
        on_device = on.reductions
        if on_device is None or (isinstance(i, int) and not on_device.is_active[i]):
            return on.table, on.head, latch
        stats = stats_of(on_device, inputs) if stats is None else stats
        numel = numel_of(inputs[0])
        head, before = on.head, latch
        if on.head_reductions is not None:
            head, _ = coefficients_of(on.head_reductions, stats, numel, step, before)
        table, latch = coefficients_of(on_device, stats, numel, step, before)
        return table, head, latch

    def _replace(self, **changes: Any) -> Plan:
        return dataclasses.replace(self, **changes)

    # NOTE: to torch.compile these tensors are constants, whether or not a step has run before.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _on(self, device: torch.device, dtype: torch.dtype) -> Execution:
        ready = self._executions.get((device, dtype))
        if ready is None:
            dtypes = Dtypes(dtype, self.history_dtype or dtype, self.seen_dtype or dtype)
            k = len(self.inputs)
            noise = k - 1 if self._takes_noise else k + len(self.rows)
            x0 = None if self.threshold is None else self.rows.index("x0")
            program = program_of(self.table, k, x0, noise, self.learned_variance)
            if self.gate is not None:
                program = dataclasses.replace(program, gate=self.gate[..., :-2])
            ready = Execution(program, self.timesteps, self._wiring, device, dtypes, self.adaptive, self.mask)
            self._executions[device, dtype] = ready
        return ready

    def _index(self, i: int) -> int:
        if not 0 <= i < self.steps:
            raise IndexError(f"plan {self.solver}: step {i} is outside 0 ... {self.steps - 1}")
        return i

    def _key(self, i: int | torch.Tensor, seed: Seed | None, device: torch.device) -> torch.Tensor | None:
        if seed is None:
            if isinstance(i, torch.Tensor) or self.noisy[self._index(i)]:
                raise ValueError(f"plan {self.solver}: step {i} adds noise; pass seed or noise")
            return None
        return noise_key(seed, device)

    def _noise_of_steps(
        self, noise: Sequence[torch.Tensor] | None, seed: Seed | None
    ) -> Sequence[torch.Tensor | None]:
        """[S]: the explicit noise of each step, None where it adds none."""
        if noise is None:
            return (None,) * self.steps
        if seed is not None:
            raise ValueError("noise, seed: pass one or the other")
        if len(noise) != sum(self.noisy):
            raise ValueError(
                f"noise: expected {sum(self.noisy)} tensors, one per step that adds noise, got {len(noise)}"
            )
        left = iter(noise)
        return [next(left) if noisy else None for noisy in self.noisy]
