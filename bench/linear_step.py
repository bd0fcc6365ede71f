# SPDX-License-Identifier: Apache-2.0
"""Cases of linear_step: solver steps with and without guidance, against the same arithmetic in PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from fastdiff import planners, schedules
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench import linear_step_solvers
from fastdiff.bench.kit import COPY, OURS, Case, Check, Contender, Target, close_to, normal_around
from fastdiff.planners import Plan
from fastdiff.solver.linear_step import CODE, NOT_STORED, reference
from torch import Tensor

OP = "linear_step"
EAGER, FLOATS, COMPILED = "eager", "eager, floats", "torch.compile"
SCHEDULER, PLAN_STEP = "diffusers step", "plan.step"

TINY = (1, 1, 4, 4)  # 16 elements: nothing but overhead
SMALL = (1, 4, 64, 64)  # Stable Diffusion, 512 x 512
MEDIUM = (1, 4, 128, 128)  # SDXL, 1024 x 1024
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
VIDEO = (1, 16, 21, 60, 104)  # Wan 2.1, 81 frames of 480 x 832
BEYOND_CACHE = {torch.float32: (4, 16, 512, 512), torch.bfloat16: (8, 16, 512, 512)}  # 64 MiB per tensor
DTYPES = (torch.float32, torch.bfloat16)

STEPS = 20
MIDDLE = 10  # the step that single-step cases take
SCALE = 7.5
BETA_START, BETA_END = 0.00085, 0.012  # of Stable Diffusion

# Allowed roundoffs. One step makes a handful, which guidance and the division by alpha magnify (measured: 3.3, and
# 1.9 in one launch); along a loop they add up, and with them the error of diffusers' fp32 tables (measured: 13).
ONE_STEP, LOOP = 8.0, 24.0

EAGER_FACTORS: dict[tuple[tuple[int, ...], torch.dtype], float] = {
    (SMALL, torch.float32): 6.0,
    (MEDIUM, torch.float32): 6.0,
    (LARGE, torch.float32): 10.0,
    (LARGE, torch.bfloat16): 10.0,
}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    headline = [
        _case("cfg_dpmpp_2m", shape, dtype, _targets(shape, dtype))
        for dtype in DTYPES
        for shape in (TINY, SMALL, MEDIUM, LARGE, VIDEO, BEYOND_CACHE[dtype])
    ]
    others = [
        _case(name, shape, dtype)
        for name in ("cfg", "flow_euler", "ddim_noise")
        for dtype in DTYPES
        for shape in (SMALL, LARGE)
    ]
    return [*headline, *others, *linear_step_solvers.cases()]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype, targets: tuple[Target, ...] = ()) -> Case:
    work = WORKS[name]
    return Case(
        op=OP,
        name=name,
        title=work.title,
        shape=shape,
        dtype=dtype,
        tensors=work.tensors,
        build=lambda device: work.build(Inputs(shape, dtype, device)),
        targets=targets,
    )


def _targets(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Target, ...]:
    """What is promised for guidance and a solver step in one launch, on two threads."""
    found = [Target(COMPILED, factor=2.0 if shape == SMALL else 1.0)]
    if factor := EAGER_FACTORS.get((shape, dtype)):
        found.append(Target(EAGER, factor=factor))
    if shape == SMALL:
        found.append(Target(SCHEDULER, factor=15.0))
    if shape == BEYOND_CACHE[dtype]:
        found.append(Target(COPY, factor=1.0))
    if shape == TINY:
        found.append(Target(PLAN_STEP, seconds=15e-6))
    return tuple(found)


# ---- inputs and contenders -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Makes tensors of one shape, the same ones whenever it is asked."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def normals(self, count: int) -> list[Tensor]:
        g = torch.Generator().manual_seed(0)
        return [torch.randn(self.shape, generator=g).to(self.device, self.dtype) for _ in range(count)]

    @property
    def loop_steps(self) -> int:
        """Steps of a loop that is timed as a whole: all that have second order, or few where each takes long."""
        elements = math.prod(self.shape)
        return STEPS - 2 if elements <= 1 << 18 else 4 if elements <= 1 << 22 else 2


def _expressions(
    expression: peers.Expression, tensors: Sequence[Tensor], numbers: Sequence[float], check: Check
) -> list[Contender]:
    """One expression in the ways in which people run it. Without coefficients two of them are the same."""
    ways = {EAGER: peers.with_tensors, FLOATS: peers.with_floats, COMPILED: peers.compiled}
    if not numbers:
        del ways[FLOATS]
    return [Contender(name, way(expression, tensors, numbers), check) for name, way in ways.items()]


def _launch(
    plan_table: Tensor,
    inputs: Sequence[Tensor],
    stored: Sequence[bool],
    check: Check,
    rng: Tensor | None = None,
) -> Contender:
    """The op itself on its own output tensors: what `Plan.step` runs."""
    device, dtype = inputs[0].device, inputs[0].dtype
    table, step = plan_table.to(device, torch.float32), torch.tensor(MIDDLE, device=device)
    store = [CODE[dtype] if is_stored else NOT_STORED for is_stored in stored]
    out = [torch.empty_like(inputs[0]) for is_stored in stored if is_stored]
    op, arguments = torch.ops.fastdiff.linear_step.out, [*inputs]

    def call() -> Sequence[Tensor]:
        op(arguments, table, step, store, rng, None, None, None, None, None, results=out)
        return out

    return Contender(OURS, call, check, rival=None)


def _loops(
    plan: Plan, scheduler: Callable[[], object], x: Tensor, predictions: Sequence[Tensor], count: int
) -> list[Contender]:
    """Real steps 1 ... count, by the scheduler and by the plan; checked at the end."""
    check = close_to([_loop_reference(plan, x, predictions, count)], roundoffs=LOOP)
    theirs = peers.SchedulerLoop(scheduler(), STEPS, x, predictions, SCALE, count)
    ours = peers.PlanLoop(plan, x, predictions, count)
    return [
        Contender(SCHEDULER, theirs, check, rival=PLAN_STEP, steps=count, reset=theirs.reset),
        Contender(PLAN_STEP, ours, check, rival=None, steps=count, reset=ours.reset),
    ]


def _loop_reference(plan: Plan, x: Tensor, predictions: Sequence[Tensor], count: int) -> Tensor:
    """x after steps 0 ... count in float64."""
    state = x.double()
    history = [torch.zeros_like(state) for _ in plan.history]
    for i in range(1 + count):
        rows = reference(
            [state, *predictions, *history], plan.table[i], dtypes=[torch.float64] * len(plan.rows)
        )
        values = dict(zip(plan.rows, rows, strict=True))
        state, history = values[plan.carry["x"]], [values[plan.carry[slot]] for slot in plan.history]
    return state


# ---- the cases -----------------------------------------------------------------------------------------------


def stable_diffusion() -> schedules.DiscreteSchedule:
    return schedules.scaled_linear(beta_start=BETA_START, beta_end=BETA_END)


def _cfg_dpmpp_2m(inputs: Inputs) -> list[Contender]:
    """Guidance, epsilon -> x0, DPM-Solver++ 2M, and x0 kept for the next step."""
    plan = planners.dpm_solver_pp(stable_diffusion(), STEPS).guided(SCALE)
    x, uncond, cond, _ = tensors = inputs.normals(4)
    stored = [row in plan.carry.values() for row in plan.rows]
    dtypes = [torch.float64 if is_stored else None for is_stored in stored]
    x0, x_next = reference(tensors, plan.table[MIDDLE], dtypes=dtypes)
    numbers = peers.solver_2m_coefficients(plan, MIDDLE)
    return [
        *_expressions(
            peers.cfg_solver_2m(SCALE), tensors, numbers, close_to([x_next, x0], roundoffs=ONE_STEP)
        ),
        *_loops(
            plan,
            partial(
                DPMSolverMultistepScheduler,
                beta_schedule="scaled_linear",
                beta_start=BETA_START,
                beta_end=BETA_END,
            ),
            x,
            (uncond, cond),
            inputs.loop_steps,
        ),
        _launch(plan.table, tensors, stored, close_to([x0, x_next], roundoffs=ONE_STEP)),
    ]


def _cfg(inputs: Inputs) -> list[Contender]:
    """Guidance alone: two tensors read, one written."""
    row = [1 - SCALE, SCALE, 0.0, 0.0, -torch.inf, torch.inf]
    table = torch.tensor([[row]] * STEPS, dtype=torch.float64)
    tensors = inputs.normals(2)
    check = close_to(reference(tensors, table[MIDDLE], dtypes=[torch.float64]), roundoffs=ONE_STEP)
    return [*_expressions(peers.cfg_only(SCALE), tensors, [], check), _launch(table, tensors, (True,), check)]


def _flow_euler(inputs: Inputs) -> list[Contender]:
    """x' = x + (sigma' - sigma) v: nothing but bytes."""
    plan = planners.euler(schedules.flow(), STEPS)
    x, velocity = tensors = inputs.normals(2)
    check = close_to(reference(tensors, plan.table[MIDDLE], dtypes=[torch.float64]), roundoffs=ONE_STEP)
    dt = float(plan.sigmas[MIDDLE + 1] - plan.sigmas[MIDDLE])
    return [
        *_expressions(peers.flow_euler, tensors, [dt], check),
        *_loops(plan, FlowMatchEulerDiscreteScheduler, x, (velocity,), inputs.loop_steps),
        _launch(plan.table, tensors, (True,), check),
    ]


def _ddim_noise(inputs: Inputs) -> list[Contender]:
    """DDIM with eta = 1: the noise is drawn within the step, by each contender from its own generator."""
    plan = planners.ddim(stable_diffusion(), STEPS, eta=1.0)
    tensors = inputs.normals(2)
    rng = torch.tensor([0, 0], device=inputs.device)
    step = torch.tensor(MIDDLE, device=inputs.device)
    stored = [row == plan.carry["x"] for row in plan.rows]
    dtypes = [torch.float64 if is_stored else None for is_stored in stored]
    (ours,) = reference(tensors, plan.table, step=step, rng=rng, dtypes=dtypes)
    noiseless = plan.table[MIDDLE].clone()
    noiseless[:, -3] = 0
    (mean,) = reference(tensors, noiseless, dtypes=dtypes)
    numbers = peers.ddim_coefficients(plan, MIDDLE)
    theirs = normal_around(mean, deviation=numbers[-1])
    return [
        *_expressions(peers.ddim, tensors, numbers, theirs),
        _launch(plan.table, tensors, stored, close_to([ours], roundoffs=ONE_STEP), rng),
    ]


@dataclass(frozen=True)
class Work:
    """What a case does, on whatever shape."""

    title: str
    tensors: int
    build: Callable[[Inputs], list[Contender]]


WORKS = {
    "cfg_dpmpp_2m": Work("CFG, ε → x0, DPM-Solver++ 2M and its history", 6, _cfg_dpmpp_2m),
    "cfg": Work("CFG alone", 3, _cfg),
    "flow_euler": Work("flow-matching Euler", 3, _flow_euler),
    "ddim_noise": Work("DDIM with η = 1, noise drawn within the step", 3, _ddim_noise),
}
