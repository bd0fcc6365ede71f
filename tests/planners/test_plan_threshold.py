# SPDX-License-Identifier: Apache-2.0
"""Plans of more than one launch: dynamic thresholding of x0, and noise whose deviation the model predicts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.planners import Plan, Threshold
from torch import Tensor

from tests.kit import oracles
from tests.kit.compare import assert_same_bits
from tests.kit.oracles import relative_error

THRESHOLD = Threshold(ratio=0.9, max_value=3.0)


def thresholded(threshold: Threshold = THRESHOLD, steps: int = 5) -> Plan:
    plan = planners.dpm_solver_pp(schedules.linear(), steps)
    return dataclasses.replace(plan, threshold=threshold)


def learned(steps: int = 4) -> Plan:
    plan = planners.ddim(schedules.linear(), steps, eta=1.0)
    z = plan.rows.index("x'"), len(plan.inputs) + len(plan.rows)
    table = plan.table.clone()
    deviation = table[:, z[0], z[1]].clone()
    table[:, z[0], z[1]] = (deviation != 0).double()
    log = deviation.clamp(min=1e-30).log()
    return dataclasses.replace(plan, table=table, learned_variance=torch.stack((log, 0.3 + 0 * log), -1))


def sample(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def model(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(2 * x) * (1 - t.to(x.dtype) / 2000)


def with_variance(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat((model(x, t), torch.sin(3 * x)), 1)


# ---- threshold -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threshold_is_its_definition(dtype: torch.dtype, scale: float | None) -> None:
    plan, x = thresholded(), sample(3, 2, 7, 5).to(dtype)
    pair = (lambda x, t: (model(x, t), torch.cos(x))) if scale else model
    got = plan.run(pair, x, guidance_scale=scale)
    reference = plan if scale is None else plan.guided(scale)
    want = oracles.execute(reference, lambda x, i: pair(x, plan.timesteps[i]), x.double())
    plain = planners.dpm_solver_pp(schedules.linear(), 5)
    assert relative_error(got, want) < (1e-12 if dtype == torch.float64 else 1e-5)
    assert relative_error(plain.run(pair, x, guidance_scale=scale), want) > 1e-2, (
        "the threshold does nothing here"
    )


def test_threshold_keeps_history_and_steps_in_place() -> None:
    plan, x = thresholded(), sample(2, 3, 4)
    history: tuple[Tensor, ...] | None = None
    state, other = x.clone(), x.clone()
    again: tuple[Tensor, ...] | None = None
    for i in range(plan.steps):
        state, history = plan.step(i, state, model(state, plan.timesteps[i]), history)
        other, again = plan.step(i, other, model(other, plan.timesteps[i]), again, inplace=True)
    assert history is not None and again is not None
    assert_same_bits([state, *history], [other, *again])
    s = history[0].flatten(1).abs().amax(1)
    assert bool((s <= 1 + 1e-6).all()), "the history keeps the thresholded x0"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_threshold_of_half_precision(dtype: torch.dtype) -> None:
    plan, x = thresholded(), sample(2, 3, 8, 8).to(dtype)
    got = plan.run(model, x)
    want = oracles.execute(plan, lambda x, i: model(x.to(dtype), plan.timesteps[i]), x.double())
    assert got.dtype == dtype
    assert relative_error(got, want) < 8 * torch.finfo(dtype).eps


def test_threshold_is_shown() -> None:
    assert "x0 = threshold(157.41 d, 0.9);" in str(thresholded())


def test_threshold_compiles() -> None:
    plan, x = thresholded(), sample(2, 3, 4)
    (want, _) = plan.step(0, x, model(x, plan.timesteps[0]))
    compiled = torch.compile(lambda x, p: plan.step(0, x, p)[0], backend="aot_eager", fullgraph=True)
    assert_same_bits([compiled(x, model(x, plan.timesteps[0]))], [want])
    torch._dynamo.reset()


def test_threshold_refuses_gradients() -> None:
    plan, x = thresholded(), sample(2, 3, 4)
    with pytest.raises(NotImplementedError, match="a threshold has no gradient"):
        plan.step(0, x, x.clone().requires_grad_())


def test_threshold_needs_x0() -> None:
    plan = planners.euler(schedules.flow(), 3)
    with pytest.raises(ValueError, match="a row x0 where there is a threshold"):
        dataclasses.replace(plan, threshold=THRESHOLD)


# ---- learned variance ------------------------------------------------------------------------------------------


def test_learned_deviation_is_its_definition() -> None:
    plan, x = learned(), sample(2, 3, 4, 4)
    noise = [sample(2, 3, 4, 4) + i for i in range(sum(plan.noisy))]
    got = plan.run(with_variance, x, noise=noise)
    want = oracles.execute(plan, lambda x, i: with_variance(x, plan.timesteps[i]), x.double(), noise)
    assert relative_error(got, want) < 1e-6
    fixed = planners.ddim(schedules.linear(), 4, eta=1.0).run(model, x, noise=noise)
    assert relative_error(fixed, want) > 1e-3, "the deviation does nothing here"


def test_learned_deviation_scales_generated_noise() -> None:
    """With v = 0 it is the fixed deviation."""
    plan, x = learned(), sample(2, 3, 4, 4)
    got = plan.run(lambda x, t: torch.cat((model(x, t), torch.zeros_like(x)), 1), x, seed=3)
    want = planners.ddim(schedules.linear(), 4, eta=1.0).run(model, x, seed=3)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_learned_deviation_under_guidance_is_that_of_cond() -> None:
    plan, x = learned().guided(2.0), sample(2, 3, 4, 4)
    uncond, cond = with_variance(x, plan.timesteps[0]), with_variance(0.5 * x, plan.timesteps[0])
    z = sample(2, 3, 4, 4)
    got, _ = plan.step(0, x, (uncond, cond), noise=z)
    mean, _ = plan.step(0, x, (uncond, cond), noise=torch.zeros_like(z))
    a, b = plan.learned_variance[0].tolist()  # type: ignore[index]
    torch.testing.assert_close(got - mean, (a + b * cond[:, 3:]).exp() * z, rtol=1e-4, atol=1e-5)


def test_learned_deviation_fits() -> None:
    with pytest.raises(ValueError, match=r"learned_variance \[S, 2\]"):
        dataclasses.replace(learned(), learned_variance=torch.zeros(3, 2))
    assert math.isclose(learned().init_noise_sigma, 1.0)
