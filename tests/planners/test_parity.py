# SPDX-License-Identifier: Apache-2.0
"""The planners and the diffusers schedulers of the same name, both against a float64 recomputation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import AnalyticModel, relative_error

diffusers = pytest.importorskip("diffusers")

STEPS = (5, 10, 20, 50)
SPACINGS = ("leading", "linspace", "trailing")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PEER_NAME = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction", "flow": "flow_prediction"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
FP32_LIMIT = 1e-5
FP32_ROUNDING = 4 * 2.0**-24  # of the state: two results this close to float64 are equally good

Reference = Callable[[Tensor], Tensor]


@functools.cache
def table(name: str) -> Any:
    return oracles.alphas_cumprod(name)


def vp_model(kind: str, name: str = "linear") -> AnalyticModel:
    return AnalyticModel(oracles.BIMODAL, kind, lambda t: oracles.vp_level(table(name), t))


def flow_model(kind: str = "flow") -> AnalyticModel:
    return AnalyticModel(oracles.BIMODAL, kind, oracles.flow_level)


def start(dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(dtype)


def peer(scheduler: Any, model: AnalyticModel, x: Tensor, **step: Any) -> Tensor:
    """diffusers' sampling loop."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # or it starts at the second step when the first two timesteps are equal
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        x = scheduler.step(model(scale(x, t), t), t, x, **step).prev_sample
    return x


def check(ours: Tensor, theirs: Tensor, reference: Tensor) -> None:
    """Closer to float64 than 1e-5 in fp32, and never further from it than diffusers is."""
    own, other = relative_error(ours, reference), relative_error(theirs, reference)
    assert ours.dtype == theirs.dtype
    if ours.dtype == torch.float32:
        assert own <= FP32_LIMIT, f"{own:.2e}"
        other = max(other, FP32_ROUNDING)
    assert own <= other, f"ours {own:.3e}, diffusers {other:.3e}"


# ---- DDIM --------------------------------------------------------------------------------------------------


def ddim_levels(times: list[int], steps: int, name: str, *, to_one: bool = True) -> list[Any]:
    """(level, next level) of each step; diffusers goes from t to t - T//S, and ends at ab = 1 or at ab_0."""
    last = (1.0, 0.0) if to_one else oracles.vp_level(table(name), 0)
    following = [t - 1000 // steps for t in times]
    return [
        (oracles.vp_level(table(name), t), oracles.vp_level(table(name), n) if n >= 0 else last)
        for t, n in zip(times, following, strict=True)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("steps", STEPS)
def test_ddim(steps: int, kind: str, spacing: Any, dtype: torch.dtype) -> None:
    model, x = vp_model(kind), start(dtype)
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type=PEER_NAME[kind], timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    plan = planners.ddim(schedules.linear(), steps, prediction=kind, timestep_spacing=spacing)
    times = scheduler.timesteps.tolist()

    assert plan.timesteps.tolist() == times
    reference = oracles.ddim(model, x, times, ddim_levels(times, steps, "linear"))
    check(plan.run(model, x), peer(scheduler, model, x), reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", list(BETAS))
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_with_noise_clipping_and_offset(eta: float, name: str, dtype: torch.dtype) -> None:
    steps, model, x = 10, vp_model("epsilon", name), start(dtype)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule=BETAS[name],
        clip_sample=True,
        clip_sample_range=0.9,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(steps)
    plan = planners.ddim(
        getattr(schedules, name)(), steps, eta=eta, clip_sample=0.9, steps_offset=1, set_alpha_to_one=False
    )
    noise = [start(dtype, seed=i + 1) for i in range(steps)]
    times = scheduler.timesteps.tolist()
    levels = ddim_levels(times, steps, name, to_one=False)
    reference = oracles.ddim(model, x, times, levels, eta=eta, noise=noise, clip=0.9)

    y, z = x, iter(noise)
    for t in scheduler.timesteps:
        y = scheduler.step(model(y, t), t, y, eta=eta, variance_noise=next(z) if eta else None).prev_sample
    check(plan.run(model, x, noise=noise if eta else None), y, reference)


def test_ddim_clipped_model_output() -> None:
    model, x = vp_model("v"), start(torch.float64)
    scheduler = diffusers.DDIMScheduler(
        clip_sample=True, clip_sample_range=0.5, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(10)
    plan = planners.ddim(
        schedules.linear(), 10, prediction="v", clip_sample=0.5, use_clipped_model_output=True
    )
    theirs = peer(scheduler, model, x, use_clipped_model_output=True)
    assert relative_error(plan.run(model, x), theirs) < 1e-5
