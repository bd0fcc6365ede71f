# SPDX-License-Identifier: Apache-2.0
"""Parity with diffusers: its schedulers as they are, the same programs in float64, and our plans, on one model.

`float64_class` runs a scheduler's own module anew with every float32 in it replaced by float64: its tables, its
casts, its intermediate results. That is what the scheduler would compute if it did not round, option by option,
and so the reference that both it and we are measured against.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, Mixture, relative_error

FP32_LIMIT = 1e-5
FP32_ROUNDING = 4 * 2.0**-24  # of the state: two results this close to float64 are equally good
SHAPE = (2, 4, 8, 8)

# Their sample is x0 + sigma eps, ours alpha (x0 + sigma eps): the variable in which the model was trained.
SCALED = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "CosineDPMSolverMultistepScheduler",
    "CMStochasticIterativeScheduler",
)


def options_id(value: object) -> str:
    """The name of a test's options, the same in every process: without the addresses of functions among them."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


# ---- the same program in float64 -----------------------------------------------------------------------------


class _Wide(types.ModuleType):
    """A module, torch or numpy, in which float32 is float64."""

    def __init__(self, module: Any) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name in ("float32", "float") else name)


class _WideTorch(_Wide):
    """torch, with float64 also where it would make float32 by itself."""

    def linspace(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.linspace(*args, **{"dtype": torch.float64} | kwargs)

    def tensor(self, data: Any, **kwargs: Any) -> Tensor:
        made = torch.tensor(data, **kwargs)
        return (
            torch.tensor(data, **kwargs | {"dtype": torch.float64}) if made.dtype == torch.float32 else made
        )


@functools.cache
def float64_class(cls: type) -> Any:
    """The class, from its module's source executed once more with float32 meaning float64."""
    source = importlib.import_module(cls.__module__)
    name = f"{cls.__module__}_in_float64"
    module = types.ModuleType(name)
    module.__file__, module.__package__ = source.__file__, source.__package__
    text = Path(str(source.__file__)).read_text().replace("torch.FloatTensor", "torch.DoubleTensor")
    sys.modules[name] = module  # dataclasses look their module up
    with _in_double():
        exec(
            compile(_wide_source(text), str(source.__file__), "exec"), module.__dict__
        )  # diffusers' own, installed
    return getattr(module, cls.__name__)


def _wide_source(text: str) -> str:
    """Import the wide modules instead, and .float() is .double()."""
    own = "from tests.kit.peers import wide_numpy as np, wide_torch as torch\n"
    lines = [line for line in text.splitlines() if line.strip() not in ("import torch", "import numpy as np")]
    future = next((n + 1 for n, line in enumerate(lines) if line.startswith("from __future__")), 0)
    return "\n".join([*lines[:future], own, *lines[future:]]).replace(".float()", ".double()")


@contextmanager
def _in_double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


wide_torch, wide_numpy = _WideTorch(torch), _Wide(np)


def cosine_dpm_solver() -> Any:
    """CosineDPMSolverMultistepScheduler, which cannot be imported without torchsde; only its noise needs that."""
    absent = "torchsde" not in sys.modules and importlib.util.find_spec("torchsde") is None
    if absent:
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        module = importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep")
    finally:
        if absent:
            del sys.modules["torchsde"]
    return module.CosineDPMSolverMultistepScheduler


# ---- one run -------------------------------------------------------------------------------------------------


class ByIndex:
    """A model that knows which evaluation it is asked for: exact in float64, rounded as a network's output is.

    Both programs visit the same levels in the same order. The time that they tell the model may differ where it is
    rounded; the level must not. It also serves as the record of the times told.
    """

    def __init__(
        self,
        data: Mixture,
        kind: str,
        levels: Sequence[oracles.Level],
        scale: Sequence[float],
        learned_variance: bool = False,
    ) -> None:
        self.data, self.kind, self.levels, self.scale = data, kind, levels, scale
        self.learned_variance = learned_variance  # C more channels, in [-1, 1]
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        i = len(self.times)
        self.times.append(float(t))
        alpha, sigma = self.levels[i]
        x = x.double() * self.scale[i]
        prediction = oracles.predict(self.kind, x, self.data.denoise(x, alpha, sigma), alpha, sigma)
        return torch.cat((prediction, torch.sin(3 * x)), 1) if self.learned_variance else prediction


@dataclass(frozen=True)
class Problem:
    """A scheduler class with a configuration, and what to run it on."""

    cls: type
    config: Mapping[str, Any]
    steps: int | None
    dtype: torch.dtype = torch.float32
    data: Mixture = BIMODAL
    set_timesteps: Mapping[str, Any] = field(default_factory=dict)
    step: Mapping[str, Any] = field(default_factory=dict)
    predict: Callable[..., Tensor] | None = None  # the model's output instead of oracles.predict's

    def scheduler(self, dtype: torch.dtype) -> Any:
        cls = float64_class(self.cls) if dtype == torch.float64 else self.cls
        context = _in_double if dtype == torch.float64 else _as_it_is
        with context():
            scheduler = cls(**self.config)
            scheduler.set_timesteps(*(() if self.steps is None else (self.steps,)), **self.set_timesteps)
            if hasattr(scheduler, "set_sigmas"):
                scheduler.set_sigmas(self.steps)  # as its pipeline does
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # or it starts at the second step when the first two times are equal
        return scheduler

    def plan(self) -> Plan:
        return plan_from(self.cls(**self.config), self.steps, **self.set_timesteps, **self.step)

    @property
    def is_scaled(self) -> bool:
        return self.cls.__name__ in SCALED

    def start(self, plan: Plan) -> Tensor:
        """x at the plan's first level, in our variable."""
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        return (plan.init_noise_sigma * x.double()).to(self.dtype)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


def noises(count: int, dtype: torch.dtype) -> list[Tensor]:
    """Explicit standard normal noise for so many steps."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=g).to(dtype) for _ in range(count)]


@contextmanager
def _randn(cls: type, draws: Callable[[], Tensor], dtype: torch.dtype) -> Iterator[None]:
    """diffusers draws this noise, in the dtype that it asks for; also where it would come from a Brownian path."""
    module = sys.modules[cls.__module__]
    before = {name: getattr(module, name, None) for name in ("randn_tensor", "BrownianTreeNoiseSampler")}

    def randn_tensor(shape: Any, *_: Any, **options: Any) -> Tensor:
        z = draws()
        return z.to(options.get("dtype") or dtype).reshape(shape)

    module.randn_tensor = randn_tensor  # type: ignore[attr-defined]
    module.BrownianTreeNoiseSampler = lambda *_, **__: lambda *_: draws().to(dtype)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                setattr(module, name, value)


def _calls(scheduler: Any, batch: int) -> list[tuple[Tensor, Mapping[str, Any]]]:
    """The timestep and the further arguments of each `step`, as the pipelines of the class give them."""
    times, name = scheduler.timesteps, type(scheduler).__name__
    if name == "DDPMWuerstchenScheduler":  # the last one is where it ends
        return [(t.expand(batch), {}) for t in times[:-1]]
    if name == "UnCLIPScheduler":
        return [(t, {"prev_timestep": after}) for t, after in zip(times, [*times[1:], None], strict=True)]
    return [(t, {}) for t in times]


def _step_of(scheduler: Any) -> Any:
    """Its step(prediction, t, x); one of them takes the x0 and the timestep of the step before too."""
    if type(scheduler).__name__ != "CogVideoXDPMScheduler":
        return getattr(scheduler, "step", None)
    last: list[Any] = [None, None]

    def step(prediction: Tensor, t: Tensor, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        x, x0 = scheduler.step(prediction, last[0], t, last[1], x, **options)
        last[:] = x0, t
        return x, x0

    return step


def _predicted(scheduler: Any, prediction: Tensor, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A step of the score SDEs and its mean, which is what a run of them ends with."""
    if type(scheduler).__name__ == "ScoreSdeVpScheduler":
        result: tuple[Tensor, Tensor] = scheduler.step_pred(prediction, x, t)
    else:
        result = scheduler.step_pred(prediction, t, x, return_dict=False)
    return result


def run_peer(
    problem: Problem, model: Callable[..., Tensor], x: Tensor, noise: Sequence[Tensor], dtype: torch.dtype
) -> Tensor:
    """diffusers' sampling loop in a dtype, float64 being the reference; noise [S], one for each step."""
    scheduler = problem.scheduler(dtype)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    context = _in_double if dtype == torch.float64 else _as_it_is
    step, stepped = [0], _step_of(scheduler)
    with context(), _randn(type(scheduler), lambda: noise[step[0]], dtype):
        for i, (t, more) in enumerate(_calls(scheduler, len(x))):
            step[0] = i
            told = scheduler.sigmas[i] if hasattr(scheduler, "set_sigmas") else t.flatten()[0]
            prediction = model(scale(x, t), told).to(dtype)
            if hasattr(scheduler, "step"):
                x = stepped(prediction, t, x, **problem.step, **more, return_dict=False)[0]
            else:
                x = _predicted(scheduler, prediction, t, x)[i + 1 == len(scheduler.timesteps)]
    return x


# ---- parity --------------------------------------------------------------------------------------------------


def check_parity(
    cls: type,
    config: Mapping[str, Any],
    steps: int | None,
    *,
    dtype: torch.dtype = torch.float32,
    data: Mixture = BIMODAL,
    set_timesteps: Mapping[str, Any] | None = None,
    step: Mapping[str, Any] | None = None,
    times_within: float = 1e-3,
    limit: float = FP32_LIMIT,
    told_next: bool = False,
) -> Plan:
    """Our end point is closer to float64 than 1e-5 in float32, and never further from it than diffusers' is.

    Where the model's rounded output, or the rounded state that it sees, already carries a larger error, that one is
    the limit: it is measured by giving the float64 program the same rounded values, and nothing can be closer.

    Args:
        times_within: how far the times told to the model may differ; 1 where diffusers derives an integer from
            float32 logarithms.
        limit: of our error in float32, where it is not the usual one.
        told_next: the model answers for the level that the step goes to: its time is the one that it is told.

    Returns:
        Our plan, for further checks.
    """
    problem = Problem(cls, config, steps, dtype, data, set_timesteps or {}, step or {})
    plan = problem.plan()
    x = problem.start(plan)
    levels = list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))
    scale_in, scale_out = (1 / levels[0][0], levels[-1][0]) if problem.is_scaled else (1.0, 1.0)
    draws = noises(plan.steps, dtype)

    def model() -> ByIndex:
        answered = levels[1:] if told_next else levels
        return ByIndex(data, plan.prediction, answered, [1.0] * plan.steps, plan.learned_variance is not None)

    def rounded(m: ByIndex) -> Callable[..., Tensor]:
        return lambda x, t: m(x.to(dtype), t).to(dtype)

    exact, seen, peers, own = model(), model(), model(), model()
    start = x.double() * scale_in
    reference = run_peer(problem, exact, start, draws, torch.float64) * scale_out
    lossy = (run_peer(problem, rounded(seen), start, draws, torch.float64) * scale_out).to(dtype)
    theirs = run_peer(problem, peers, start.to(dtype), draws, dtype).double() * scale_out
    noise = [z for z, noisy in zip(draws, plan.noisy, strict=True) if noisy]
    ours = plan.run(lambda x, t: own(x, t).to(dtype), x, noise=noise if plan.stochastic else None)

    assert len(own.times) == len(exact.times), (
        f"{len(own.times)} evaluations, diffusers makes {len(exact.times)}"
    )
    for i, (a, b) in enumerate(zip(own.times, exact.times, strict=True)):
        assert abs(a - b) <= times_within, f"evaluation {i}: the model is told {a}, by diffusers {b}"
    errors = {"ours": ours, "theirs": theirs, "unavoidable": lossy}
    got = {name: relative_error(value, reference) for name, value in errors.items()}
    text = ", ".join(f"{name} {error:.2e}" for name, error in got.items())
    assert all(map(math.isfinite, (got["ours"], got["unavoidable"]))), text
    allowed = max(
        got["theirs"] if math.isfinite(got["theirs"]) else 0.0,  # theirs may overflow in float16
        _slack(dtype) * got["unavoidable"],
        FP32_ROUNDING if dtype == torch.float32 else 0.0,
    )
    assert got["ours"] <= allowed, text
    if dtype == torch.float32:
        assert got["ours"] <= max(limit, _slack(dtype) * got["unavoidable"]), text
    return plan


def _slack(dtype: torch.dtype) -> float:
    """The same roundings in another order are another draw of the same error: its size varies by this much."""
    return 2.0 if dtype == torch.float32 else 1.25
