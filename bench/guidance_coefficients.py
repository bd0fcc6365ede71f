# SPDX-License-Identifier: Apache-2.0
"""Cases of guidance_coefficients: whole guidance methods, and one inside a solver's step.

A method is one call of its class: two launches that find the weights and one that blends, or the blend alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from fastdiff import guidance, planners, schedules
from fastdiff.bench import guidance_coefficients_peers as peers
from fastdiff.bench import linear_step_peers as solver_peers
from fastdiff.bench.kit import COPY, OURS, Call, Case, Contender, Target, close_to
from fastdiff.bench.linear_step_peers import Expression, Number
from fastdiff.guidance import Guidance
from fastdiff.solver.linear_step import reference
from torch import Tensor

OP = "guidance_coefficients"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (1, 4, 128, 128)  # SDXL, 1024 x 1024
PAIR = (2, 4, 128, 128)  # two of them
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents

RUN = 8  # steps of a method that keeps something from one to the next; the first starts without it
PLAN_STEPS = 20
MIDDLE = 10

# Allowed roundoffs: guidance magnifies those of c - u by the scale, and eager's sums have their own (measured: 21, and
# 2.2 of ours). A float32 decomposition of rows so long keeps two digits (measured: an error of 1.2 %).
ROUNDOFFS = 32.0
SVD_ROUNDOFFS = 2.0**-5 / 2.0**-24


@dataclass(frozen=True)
class Method:
    """A guidance and its rival.

    Attributes:
        title: for readers.
        make: the guidance.
        expression: the rival, see `guidance_coefficients_peers`.
        factor: target over the eager expression.
        copies: target, in copies of one latent: 3 where the predictions are read twice.
        inputs: how many predictions.
        start: what the expression keeps of no step.
        kept: how many latents it keeps.
        waits: the expression waits for the device, so that no CUDA graph can hold it.
        roundoffs: how many the expression is allowed.
    """

    title: str
    make: Callable[[], Guidance]
    expression: Expression
    factor: float | None = None
    copies: float = 3.0
    inputs: int = 2
    start: tuple[float, ...] = ()
    kept: int = 0
    waits: bool = False
    roundoffs: float = ROUNDOFFS

    @property
    def tensors(self) -> int:
        return self.inputs + 2 * self.kept + 1

    @property
    def steps(self) -> int:
        return RUN if self.start else 1

    @property
    def targets(self) -> tuple[Target, ...]:
        # The copy beside every case moves as many bytes as the case must, so it makes tensors / 2 copies of a latent.
        targets = [Target(COMPILED, factor=1.0), Target(COPY, factor=self.tensors / 2 / self.copies)]
        return (*([Target(EAGER, factor=self.factor)] if self.factor else []), *targets)


METHODS = {
    "cfg": Method("CFG", partial(guidance.CFG, peers.SCALE), peers.cfg, copies=1.5),
    "rescaled_cfg": Method(
        "CFG, rescaled", partial(guidance.RescaledCFG, peers.SCALE, peers.RESCALE), peers.rescaled_cfg, 15.0
    ),
    "apg": Method(
        "APG",
        partial(guidance.APG, peers.SCALE, eta=peers.ETA, norm_threshold=peers.NORM_THRESHOLD),
        peers.apg,
        15.0,
    ),
    "apg_momentum": Method(
        "APG with momentum",
        partial(
            guidance.APG,
            peers.SCALE,
            eta=peers.ETA,
            norm_threshold=peers.NORM_THRESHOLD,
            momentum=peers.MOMENTUM,
        ),
        peers.apg_with_momentum,
        15.0,
        start=(0,),
        kept=1,
    ),
    "cfg_zero_star": Method(
        "CFG-Zero*", partial(guidance.CFGZeroStar, peers.SCALE), peers.cfg_zero_star, 6.0
    ),
    "tcfg": Method(
        "TCFG", partial(guidance.TCFG, peers.SCALE), peers.tcfg, 50.0, waits=True, roundoffs=SVD_ROUNDOFFS
    ),
    "adaptive_guidance": Method(
        "Adaptive Guidance",
        partial(guidance.AdaptiveGuidance, peers.SCALE, peers.COSINE),
        peers.adaptive_guidance,
        5.0,
        start=(False,),
    ),
    "norm_balanced": Method(
        "norm-balanced",
        partial(guidance.NormBalanced, peers.SCALE, peers.LOWER, peers.UPPER),
        peers.norm_balanced,
        5.0,
        inputs=3,
    ),
    "magnitude_aware": Method(
        "magnitude-aware",
        partial(guidance.MagnitudeAware, peers.SCALE, alpha=peers.ALPHA),
        peers.magnitude_aware,
    ),
    "perp_neg": Method(
        "Perp-Neg", partial(guidance.PerpNeg, peers.SCALE, peers.NEGATIVE), peers.perp_neg, inputs=3
    ),
}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    single = [_case(name, shape, torch.float32) for shape, name in itertools.product((PAIR, LARGE), METHODS)]
    half = [_case("norm_balanced", shape, torch.bfloat16) for shape in (PAIR, LARGE)]
    return [_step_case(), *single, *half]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    method = METHODS[name]
    return Case(
        op=OP,
        name=name,
        title=method.title,
        panel=f"guidance, {'×'.join(map(str, shape))}",
        shape=shape,
        dtype=dtype,
        tensors=method.tensors,
        build=partial(_contenders, method, shape, dtype),
        targets=method.targets,
    )


# ---- methods -------------------------------------------------------------------------------------------------


def _contenders(
    method: Method, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    inputs = predictions(shape, dtype, device, method.inputs)
    (want,) = _run(method.expression, [x.double() for x in inputs], method)()
    check = close_to([want], roundoffs=method.roundoffs)
    reset = _nothing if method.waits else None  # a call with a reset is timed without a graph
    return [
        *(
            Contender(name, _run(step, inputs, method), check, steps=method.steps, reset=reset)
            for name, step in ((EAGER, method.expression), (COMPILED, compiled(method.expression)))
        ),
        Contender(
            OURS,
            _our_run(method, inputs),
            close_to([want], roundoffs=ROUNDOFFS),
            rival=None,
            steps=method.steps,
        ),
    ]


def predictions(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, count: int) -> list[Tensor]:
    """As similar to each other as a model's are: c, u and more, cosine 0.92."""
    g = torch.Generator().manual_seed(0)
    base, *noise = (torch.randn(shape, generator=g) for _ in range(1 + count))
    return [(base + 0.3 * n).to(device, dtype) for n in noise]


def compiled(expression: Expression) -> Expression:
    """`torch.compile` for exactly these shapes."""
    torch.compiler.reset()  # NOTE: past eight compilations of one function, torch would silently run it eagerly
    step: Expression = torch.compile(expression, dynamic=False, fullgraph=True)
    return step


def _run(expression: Expression, inputs: Sequence[Tensor], method: Method) -> Call:
    """The steps of a method on the same predictions, each with what the one before kept."""

    def call() -> Sequence[Tensor]:
        state: Sequence[Tensor | float] = method.start
        for _ in range(method.steps):
            guided, *state = expression(*inputs, *state)
        return (guided,)

    return call


def _our_run(method: Method, inputs: Sequence[Tensor]) -> Call:
    g = method.make()
    if not method.start:
        return lambda: (g(*inputs),)

    def call() -> Sequence[Tensor]:
        for i in range(RUN):
            guided = g(*inputs, step=i, steps=RUN)
        return (guided,)

    return call


def _nothing() -> None:
    """There is no state."""


# ---- a whole step --------------------------------------------------------------------------------------------


def _step_case() -> Case:
    return Case(
        op=OP,
        name="step_rescaled_cfg",
        title="CFG, rescaled, then DPM-Solver++ 2M",
        shape=SMALL,
        dtype=torch.float32,
        tensors=6,
        build=_step_contenders,
    )


def _step_contenders(device: torch.device) -> list[Contender]:
    """Guidance, epsilon -> x0, DPM-Solver++ 2M, and x0 kept for the next step: `Plan.step` and the expressions."""
    plan = planners.dpm_solver_pp(schedules.scaled_linear(), PLAN_STEPS, order=2)
    x, m1 = predictions(SMALL, torch.float32, device, 2)
    cond, uncond = predictions(SMALL, torch.float32, device, 2)
    (pred,) = peers.rescaled_cfg(cond.double(), uncond.double())
    stored = [torch.float64 if row in plan.carry.values() else None for row in plan.rows]
    want = reference([x.double(), pred, m1.double()], plan.table[MIDDLE], dtypes=stored)
    check = close_to([want[1], want[0]], roundoffs=ROUNDOFFS)  # rows are in the order x0, x'
    numbers = solver_peers.solver_2m_coefficients(plan, MIDDLE)

    def expression(x: Tensor, cond: Tensor, uncond: Tensor, m1: Tensor, *numbers: Number) -> Sequence[Tensor]:
        return solver_peers.solver_2m(x, *peers.rescaled_cfg(cond, uncond), m1, *numbers)

    guided = guidance.RescaledCFG(peers.SCALE, peers.RESCALE).apply(plan)

    def ours() -> Sequence[Tensor]:
        x_next, history = guided.step(MIDDLE, x, (uncond, cond), (m1,))
        return x_next, *history

    tensors = [x, cond, uncond, m1]
    return [
        Contender(EAGER, solver_peers.with_tensors(expression, tensors, numbers), check),
        Contender(COMPILED, solver_peers.compiled(expression, tensors, numbers), check),
        Contender(OURS, ours, check, rival=None),
    ]
