# SPDX-License-Identifier: Apache-2.0
"""DDIM inversion against diffusers and the exact flow, and there and back with DDIM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.integrations.diffusers import plan_from
from fastdiff.planners import Plan
from torch import Tensor

from tests.kit import oracles
from tests.kit.oracles import BIMODAL, GAUSSIAN, Level, Mixture, measured_order, relative_error
from tests.kit.peers import check_parity

diffusers = pytest.importorskip("diffusers")

LINEAR = schedules.linear()
VP = schedules.exponential(base=LINEAR)  # uniform in lambda
STEPS = (1, 2, 3, 7, 20, 50)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

CONFIGS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"set_alpha_to_one": False, "prediction_type": "sample", "clip_sample": False},
    {"set_alpha_to_one": False, "prediction_type": "sample", "timestep_spacing": "trailing"},
    {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "steps_offset": 1},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1},
    {
        "trained_betas": [1e-3 * 1.05**i for i in range(80)],
        "num_train_timesteps": 80,
        "clip_sample_range": 2.0,
    },
]


# ---- parity ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("index", range(len(CONFIGS)))
def test_parity(index: int, dtype: torch.dtype) -> None:
    for steps in STEPS if dtype == torch.float32 else STEPS[index % 3 :: 3]:
        check_parity(diffusers.DDIMInverseScheduler, CONFIGS[index], steps, dtype=dtype, told_next=True)


def test_the_deprecated_name_of_set_alpha_to_one() -> None:
    config = {"set_alpha_to_zero": False, "clip_sample": False}
    plan = check_parity(diffusers.DDIMInverseScheduler, config, 10, told_next=True)
    assert float(plan.sigmas[0]) == LINEAR.level(0)[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"timestep_spacing": "linspace"}, "cannot reproduce timestep_spacing='linspace'"),
        ({"prediction_type": "sample"}, "prediction x0: eps is undetermined where sigma = 0"),
    ],
)
def test_what_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_from(diffusers.DDIMInverseScheduler(**config), 10)


def test_levels_are_given_as_to_ddim() -> None:
    rising = schedules.from_levels([1, 2], [0.9, 0.5, 0.1], [0.1, 0.5, 0.9], ascending=True)
    with pytest.raises(ValueError, match="expected levels that decrease"):
        planners.ddim_inversion(rising, 2)


# ---- there and back ----------------------------------------------------------------------------------------


def levels(plan: Plan) -> list[Level]:
    return list(zip(plan.alphas.tolist(), plan.sigmas.tolist(), strict=True))


def model(plan: Plan, data: Mixture, answered: list[Level]) -> Any:
    return lambda x, i: oracles.predict(plan.prediction, x, data.denoise(x, *answered[i]), *answered[i])


def samples(data: Mixture) -> Tensor:
    """Data at its quantiles."""
    normal = torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return data.transport(normal, (0.0, 1.0), (1.0, 0.0))


def test_it_goes_back_over_the_levels_of_ddim() -> None:
    for options in ({}, {"steps_offset": 1, "set_alpha_to_one": False}, {"timestep_spacing": "trailing"}):
        forward = planners.ddim(LINEAR, 20, **options)
        back = planners.ddim_inversion(LINEAR, 20, **options)
        assert levels(back) == levels(forward)[::-1]
        assert back.timesteps.tolist() == forward.timesteps.tolist()[::-1]


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("data", [GAUSSIAN, BIMODAL], ids=["gaussian", "bimodal"])
def test_order(data: Mixture, kind: str) -> None:
    """It ends where the exact flow does, and DDIM comes back to where it began: both with order 1."""
    counts, x, ends, returns = (40, 80, 160, 320), samples(data), [], []
    for n in counts:
        back = planners.ddim_inversion(VP, n, prediction=kind, set_alpha_to_one=False)
        forward = planners.ddim(VP, n, prediction=kind, set_alpha_to_one=False)
        start = data.transport(x, (1.0, 0.0), levels(back)[0])
        noise = oracles.execute(back, model(back, data, levels(back)[1:]), start)
        again = oracles.execute(forward, model(forward, data, levels(forward)), noise)
        ends.append(relative_error(noise, data.transport(start, levels(back)[0], levels(back)[-1])))
        returns.append(relative_error(again, start))
    assert abs(measured_order(counts, ends) - 1) <= oracles.ORDER_WITHIN, ends
    assert abs(measured_order(counts, returns) - 1) <= oracles.ORDER_WITHIN, returns


def test_the_same_prediction_comes_back_exactly() -> None:
    """A step of DDIM and its inverse, given one eps: what the two tables must be to each other."""
    back, forward = planners.ddim_inversion(LINEAR, 10), planners.ddim(LINEAR, 10)
    x, eps = samples(GAUSSIAN), torch.sin(samples(BIMODAL))
    noise = oracles.execute(back, lambda x, i: eps, x)
    assert relative_error(oracles.execute(forward, lambda x, i: eps, noise), x) < 1e-12


def test_told_the_level_it_goes_to_it_returns_closer() -> None:
    """Why the model is told t and not s: the way back asks at t."""
    back, forward, x = planners.ddim_inversion(VP, 50), planners.ddim(VP, 50), samples(BIMODAL)
    errors = []
    for answered in (levels(back)[1:], [levels(back)[1], *levels(back)[1:]]):
        noise = oracles.execute(back, model(back, BIMODAL, answered), x)
        errors.append(
            relative_error(oracles.execute(forward, model(forward, BIMODAL, levels(forward)), noise), x)
        )
    assert errors[0] < errors[1], errors
