# SPDX-License-Identifier: Apache-2.0
"""Euler with a noise level per token: parity with diffusers' step, what stays, what the pipelines do, order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from fastdiff import planners, schedules
from fastdiff.planners import TokenPlan
from torch import Tensor

from tests.kit.oracles import BIMODAL, measured_order, relative_error
from tests.kit.peers import _in_double, _randn, float64_class

FLOW = schedules.flow(3.0)
STEPS = 8
LEVELS = torch.tensor([[0.0, 0.15, 0.6, 1.0, 1.0], [1.0, 0.97, 0.0, 0.4, 1.0]])[..., None]  # [B, N, 1]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_diffusers(cls: Any, plan: TokenPlan, i: int, x: Tensor, v: Tensor, z: Tensor) -> Tensor:
    """One step of tokens at their own levels. Euler expects the other sign of v, stochastic sampling does not."""
    scheduler = cls(shift=3.0, stochastic_sampling=plan.stochastic)
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(i)
    sign = 1 if plan.stochastic else -1
    told = (1000 * plan.sigmas[i]).to(x.dtype)[..., 0]
    with _randn(type(scheduler), lambda: z, x.dtype):
        result: Tensor = scheduler.step(
            sign * v, scheduler.timesteps[i], x, per_token_timesteps=told
        ).prev_sample
    return result


@pytest.mark.parametrize("stochastic", [False, True], ids=["euler", "stochastic"])
def test_a_step_is_that_of_diffusers_where_a_token_moves(stochastic: bool) -> None:
    plan = planners.euler_per_token(FLOW, STEPS, LEVELS, stochastic_sampling=stochastic)
    seen = 0
    for i in range(STEPS):
        x, v, z = (normal(2, 5, 6, seed=10 * i + n) for n in range(3))
        ours = plan.step(i, x, v, noise=z if stochastic else None)
        theirs = by_diffusers(FlowMatchEulerDiscreteScheduler, plan, i, x, v, z)
        with _in_double():
            exact = by_diffusers(
                float64_class(FlowMatchEulerDiscreteScheduler), plan, i, x.double(), v.double(), z.double()
            )
        moves = (plan.sigmas[i + 1] < plan.sigmas[i]).expand_as(x)
        assert torch.equal(ours[~moves], x[~moves])
        own, other = (relative_error(y[moves], exact[moves]) for y in (ours, theirs))
        assert own <= max(other, 4 * 2.0**-24) <= 1e-5, (own, other)
        seen += int(moves.sum())
    assert seen > 0


def test_levels_0_and_1() -> None:
    """A clean token stays, bit for bit; a noisy one follows the schedule like `euler`, given the same predictions."""
    plan = planners.euler_per_token(FLOW, STEPS, LEVELS)
    x, told = normal(2, 5, 6), []

    def model(x: Tensor, t: Tensor) -> Tensor:
        told.append(t)
        return torch.sin(3 * x)

    y = plan.run(model, x)
    clean, noisy = ((level == LEVELS).expand_as(x) for level in (0, 1))
    assert torch.equal(y[clean], x[clean])
    whole = planners.euler(FLOW, STEPS)
    torch.testing.assert_close(
        y[noisy], whole.run(lambda x, t: torch.sin(3 * x), x)[noisy], rtol=1e-6, atol=1e-6
    )
    assert len(told) == plan.steps == STEPS
    for t, schedule in zip(told, whole.timesteps.tolist(), strict=True):
        torch.testing.assert_close(t, (1000 * LEVELS).clamp(max=schedule))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_video_from_its_first_frame(dtype: torch.dtype) -> None:
    """Wan 2.2 TI2V pastes the clean frame before each step and tells it t = 0: that is level 0, without pasting."""
    video = normal(2, 3, 4, 2, 2).to(dtype)
    first = torch.ones(1, 1, 4, 1, 1)
    first[:, :, 0] = 0
    plan = planners.euler_per_token(FLOW, STEPS, first)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return (torch.sin(2 * x.float()) + t / 1000).to(x.dtype)

    state, condition = video.float(), video[:, :, :1].clone()
    for i, t in enumerate(planners.euler(FLOW, STEPS).timesteps.float()):
        state[:, :, :1] = condition.float()
        v = model(state.to(dtype), first * t)
        state, _ = planners.euler(FLOW, STEPS).step(i, state, v)
    state[:, :, :1] = condition.float()
    torch.testing.assert_close(
        plan.run(model, video), state.to(dtype), rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5
    )


def test_order() -> None:
    """Every token ends where the exact flow from its own level ends."""
    levels = torch.tensor([1.0, 0.8, 0.35, 0.0], dtype=torch.float64).reshape(1, 4, 1)
    x = normal(1, 4, 64).double()
    exact = torch.stack(
        [
            BIMODAL.transport(x[0, n], (1 - s, s), (1.0, 0.0)) if s else x[0, n]
            for n, s in enumerate(levels.flatten().tolist())
        ]
    )

    def model(x: Tensor, t: Tensor) -> Tensor:
        rows = []
        for n, sigma in enumerate((t.double() / 1000).flatten().tolist()):
            x0 = BIMODAL.denoise(x[0, n], 1 - sigma, sigma)
            rows.append((x[0, n] - x0) / sigma if sigma else torch.zeros_like(x0))
        return torch.stack(rows)[None]

    counts = (40, 80, 160)
    errors = [
        relative_error(planners.euler_per_token(FLOW, n, levels).run(model, x)[0], exact) for n in counts
    ]
    assert abs(measured_order(counts, errors) - 1) <= 0.15


def test_guidance_noise_and_the_index_as_a_tensor() -> None:
    x, uncond, cond, z = (normal(2, 5, 6, seed=n) for n in range(4))
    for stochastic in (False, True):
        plan = planners.euler_per_token(FLOW, STEPS, LEVELS, stochastic_sampling=stochastic)
        noise: dict[str, Any] = {"noise": z} if stochastic else {}
        guided = plan.step(5, x, (uncond, cond), guidance_scale=4.0, **noise)
        blended = plan.step(5, x, -3 * uncond + 4 * cond, **noise)
        torch.testing.assert_close(guided, blended, rtol=1e-5, atol=1e-6)
        assert torch.equal(plan.step(torch.tensor(5), x, cond, **noise), plan.step(5, x, cond, **noise))
    runs = [plan.run(lambda x, t: 0 * x, x, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    large, moved = normal(2, 5, 4096), 3  # the noise of a step: x' = (1 - sigma') x + sigma' z for v = 0
    after = float(plan.sigmas[moved + 1, 0, 3])
    drawn = (plan.step(moved, large, 0 * large, seed=7)[0, 3] - (1 - after) * large[0, 3]) / after
    assert float(drawn.mean()) == pytest.approx(0, abs=0.06)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    explicit = plan.run(lambda x, t: 0 * x, x, noise=[z] * STEPS)
    torch.testing.assert_close(explicit[0, 3], (1 - plan.sigmas[-1, 0, 3]).float() * explicit[0, 3])


def test_gradients_reach_the_prediction() -> None:
    plan = planners.euler_per_token(FLOW, STEPS, LEVELS)
    v = normal(2, 5, 6).requires_grad_()
    plan.step(2, normal(2, 5, 6, seed=1), v).sum().backward()
    torch.testing.assert_close(v.grad, (plan.sigmas[3] - plan.sigmas[2]).float().expand(2, 5, 6))


def test_refusals() -> None:
    plan = planners.euler_per_token(FLOW, STEPS, LEVELS, stochastic_sampling=True)
    x = normal(2, 5, 6)
    with pytest.raises(TypeError, match=r"schedule: expected fastdiff.schedules.flow, got DiscreteSchedule"):
        planners.euler_per_token(schedules.linear(), 4, LEVELS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels: expected sigma, 0 to 1"):
        planners.euler_per_token(FLOW, 4, 1000 * LEVELS)
    with pytest.raises(ValueError, match="seed, noise: a stochastic step needs one of them"):
        plan.step(0, x, x)
    with pytest.raises(ValueError, match=r"guidance_scale: got None with 2 prediction"):
        plan.step(0, x, (x, x), seed=1)
    with pytest.raises(ValueError, match=r"guidance_scale: got 2.0 with 1 prediction"):
        plan.step(0, x, x, guidance_scale=2.0, seed=1)
