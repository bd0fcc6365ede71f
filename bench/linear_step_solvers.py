# SPDX-License-Identifier: Apache-2.0
"""Every solver's step with guidance, by the diffusers scheduler and by the plan that `plan_from` makes of it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import torch
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, close_to, normal_around
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan
from fastdiff.solver.linear_step import reference
from torch import Tensor

OP = "linear_step"
SCHEDULER = "diffusers step"

SMALL = (1, 4, 64, 64)  # Stable Diffusion, 512 x 512
MEDIUM = (1, 4, 128, 128)  # SDXL, 1024 x 1024
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
VIDEO = (1, 16, 21, 60, 104)  # Wan 2.1, 81 frames of 480 x 832
SHAPES = (SMALL, MEDIUM, LARGE, VIDEO)
DTYPES = (torch.float32, torch.bfloat16)

STEPS = 20
SCALE = 7.5
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

# Along a loop roundoffs add up, and with them the error of diffusers' fp32 tables: an end point in fp32 is within
# 1e-4 of float64. A wrong coefficient shows far above that.
LOOP_ERROR = 1e-4

# diffusers rounds every product with a coefficient to bf16: over six steps its variance was off by 1.7 %.
NOISE_ROUNDING = {torch.float32: 0.01, torch.bfloat16: 0.03}

AT_LEAST = 4.0  # times as fast, on every shape


@dataclass(frozen=True)
class Solver:
    """A scheduler as people configure it.

    Attributes:
        title: for readers.
        scheduler: name of the class in diffusers.
        config: its options.
        tensors: that one fused step with guidance must read or write, each once: x, uncond, cond and the history,
            then x and what the history keeps.
        eager_bytes: per element in (bf16, fp32) of the scheduler's step and the guidance line, counted from their
            operations; the traffic bound is their ratio to the fused step's. None: not counted.
        at_small: target on the smallest latent, where it is not 4.
        is_scaled: its sample is x0 + sigma eps, ours alpha (x0 + sigma eps).
    """

    title: str
    scheduler: str
    config: Mapping[str, Any]
    tensors: int
    eager_bytes: tuple[int, int] | None = None
    at_small: float = AT_LEAST
    is_scaled: bool = False
    step: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Any:
        """The scheduler."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that the noise form will go one day
            return getattr(diffusers, self.scheduler)(**self.config)

    def bound(self, dtype: torch.dtype) -> float | None:
        """Bytes of the scheduler's way over bytes of the fused way."""
        if self.eager_bytes is None:
            return None
        return self.eager_bytes[dtype == torch.float32] / (self.tensors * dtype.itemsize)

    def targets(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Target, ...]:
        bound = self.bound(dtype)
        if shape == SMALL:
            return (Target(SCHEDULER, factor=self.at_small),)
        if shape == VIDEO and bound is not None:
            return (Target(SCHEDULER, factor=max(AT_LEAST, 0.9 * bound)),)
        return (Target(SCHEDULER, factor=AT_LEAST),)


SD = STABLE_DIFFUSION
SOLVERS = {
    "ddim": Solver("DDIM", "DDIMScheduler", {**SD, "clip_sample": False}, 4, (48, 96)),
    "ddpm": Solver("DDPM", "DDPMScheduler", {**SD, "clip_sample": False}, 4, (60, 120)),
    "euler": Solver("Euler", "EulerDiscreteScheduler", SD, 4, (82, 92), is_scaled=True),
    "euler_ancestral": Solver(
        "Euler ancestral", "EulerAncestralDiscreteScheduler", SD, 4, (98, 116), is_scaled=True
    ),
    "flow_euler": Solver("flow-matching Euler", "FlowMatchEulerDiscreteScheduler", {}, 4, (42, 52)),
    "heun": Solver("Heun", "HeunDiscreteScheduler", SD, 7, is_scaled=True),
    "kdpm2": Solver("DPM2 (Karras)", "KDPM2DiscreteScheduler", SD, 6, is_scaled=True),
    "lms": Solver("LMS", "LMSDiscreteScheduler", SD, 8, is_scaled=True),
    "dpm_solver_2m": Solver(
        "DPM-Solver 2M (noise)",
        "DPMSolverMultistepScheduler",
        {**SD, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        6,
    ),
    "dpmpp_2m": Solver("DPM-Solver++ 2M", "DPMSolverMultistepScheduler", SD, 6, (88, 128)),
    "dpmpp_3m": Solver(
        "DPM-Solver++ 3M", "DPMSolverMultistepScheduler", {**SD, "solver_order": 3}, 7, (138, 220)
    ),
    "dpmpp_2s": Solver(
        "DPM-Solver++ 2S", "DPMSolverSinglestepScheduler", {**SD, "lower_order_final": True}, 7
    ),
    "sde_dpmpp_2m": Solver(
        "SDE-DPM-Solver++ 2M",
        "DPMSolverMultistepScheduler",
        {**SD, "algorithm_type": "sde-dpmsolver++"},
        6,
        (112, 152),
    ),
    "unipc_2": Solver("UniPC-2", "UniPCMultistepScheduler", SD, 9, (130, 260)),
    "unipc_3": Solver(
        "UniPC-3", "UniPCMultistepScheduler", {**SD, "solver_order": 3}, 10, (162, 324), at_small=30.0
    ),
    "deis_2": Solver("DEIS-2", "DEISMultistepScheduler", SD, 6, (72, 144)),
    "ipndm": Solver("iPNDM", "IPNDMScheduler", {}, 8, (96, 192)),
    "pndm": Solver("PLMS", "PNDMScheduler", {**SD, "skip_prk_steps": True}, 8, (72, 144)),
    "lcm": Solver("LCM", "LCMScheduler", SD, 4, (60, 120)),
    "tcd": Solver("TCD", "TCDScheduler", SD, 4, step={"eta": 0.3}),
    "sa_solver": Solver("SA-Solver", "SASolverScheduler", SD, 9),
}


def cases() -> list[Case]:
    """Each solver on each shape and dtype."""
    settings = itertools.product(SHAPES, SOLVERS.items(), DTYPES)
    return [_case(name, solver, shape, dtype) for shape, (name, solver), dtype in settings]


def _case(name: str, solver: Solver, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=f"step_{name}",
        title=solver.title,
        panel=f"every solver's step with CFG, {'×'.join(map(str, shape))}",
        shape=shape,
        dtype=dtype,
        tensors=solver.tensors,
        build=partial(_contenders, solver, shape, dtype),
        targets=solver.targets(shape, dtype),
    )


# ---- the two contenders --------------------------------------------------------------------------------------


def _contenders(
    solver: Solver, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    """Real steps 1 ... count, by the scheduler and by the plan; checked at the end."""
    g = torch.Generator().manual_seed(0)
    x, *predictions = (torch.randn(shape, generator=g).to(device, dtype) for _ in range(3))
    plan = plan_from(solver.make(), STEPS, **solver.step).guided(SCALE)
    count = _loop_steps(plan, math.prod(shape))
    alphas = plan.alphas.tolist()
    first, last = (1 / alphas[0], 1 / alphas[1 + count]) if solver.is_scaled else (1.0, 1.0)

    theirs = peers.SchedulerLoop(
        solver.make(), STEPS, (x.double() * first).to(dtype), predictions, SCALE, count, solver.step
    )
    ours = peers.PlanLoop(plan, x, predictions, count, seed=torch.tensor([0, 0], device=device))
    return [
        Contender(
            SCHEDULER,
            theirs,
            _check(plan, x, predictions, count, last),
            rival=OURS,
            steps=count,
            reset=theirs.reset,
        ),
        Contender(
            OURS,
            ours,
            _check(plan, x, predictions, count, 1.0),
            rival=None,
            steps=count,
            reset=ours.reset,
        ),
    ]


def _loop_steps(plan: Plan, elements: int) -> int:
    """Evaluations that are timed as a whole: all after the warm-up, or few where each takes long."""
    return plan.steps - 2 if elements <= 1 << 18 else 6


def _check(plan: Plan, x: Tensor, predictions: Sequence[Tensor], count: int, factor: float) -> Check:
    """Of `factor` times x after steps 0 ... count: its value, or with noise its moments."""
    noisy = [i for i in range(1 + count) if plan.noisy[i]]
    mean = factor * run_in_float64(plan, x, predictions, count, lambda i: 0.0)
    if not noisy:
        return close_to([mean], roundoffs=_roundoffs(x.dtype))
    zero = torch.zeros(1, dtype=torch.float64)
    zeros = [zero] * len(predictions)
    responses = (float(run_in_float64(plan, zero, zeros, count, lambda i, k=k: float(i == k))) for k in noisy)
    deviation = abs(factor) * math.hypot(*responses)
    stores = math.sqrt(1 + count) * torch.finfo(x.dtype).eps / 2 * float(mean.square().mean().sqrt())
    return normal_around(mean, deviation, rounding=NOISE_ROUNDING[x.dtype] + (stores / deviation) ** 2)


def _roundoffs(dtype: torch.dtype) -> float:
    """LOOP_ERROR in fp32; in bf16 each of the steps may lose as much as guidance magnifies, 2 SCALE roundoffs."""
    return LOOP_ERROR / 2.0**-24 if dtype == torch.float32 else 4 * SCALE


def run_in_float64(plan: Plan, x: Tensor, predictions: Sequence[Tensor], count: int, noise: Any) -> Tensor:
    """x after steps 0 ... count in float64, the noise of step i being the constant noise(i)."""
    explicit = plan.with_noise_input()
    state = {name: torch.zeros_like(x, dtype=torch.float64) for name in explicit.inputs}
    state |= {
        "x": x.double(),
        **dict(zip(("uncond", "cond"), (p.double() for p in predictions), strict=True)),
    }
    for i in range(1 + count):
        state["noise"] = torch.full_like(state["x"], noise(i))
        rows = reference(
            [state[name] for name in explicit.inputs],
            explicit.table[i],
            dtypes=[torch.float64] * len(plan.rows),
        )
        values = state | dict(zip(plan.rows, rows, strict=True))
        state |= {slot: values[source] for slot, source in plan.carry.items()}
    return state["x"]
