# SPDX-License-Identifier: Apache-2.0
"""plan_from: which schedulers it takes, what it refuses and how. Their numbers are in tests/planners."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler
from fastdiff.integrations.diffusers import plan_from, reproducible

from tests.kit.peers import cosine_dpm_solver

# Their noise, order of evaluations or tokens are no linear program of predictions, or they belong to one model.
NOT_REPRODUCED = {
    "AmusedScheduler": "discrete tokens",
    "BlockRefinementScheduler": "discrete tokens",
    "DiscreteDDIMScheduler": "discrete tokens",
    "EntropyBoundScheduler": "discrete tokens",
    "VQDiffusionScheduler": "discrete tokens",
    "DPMSolverSDEScheduler": "its noise is a Brownian tree",
    "KarrasVeScheduler": "its levels are variances where its steps read standard deviations",
    "RePaintScheduler": "it goes back and forth in time, with an image and a mask",
    "FlowMapEulerDiscreteScheduler": "one model's own",
    "HeliosDMDScheduler": "one model's own",
    "HeliosScheduler": "one model's own",
    "MiniMaxH3Scheduler": "one model's own",
    "PiflowScheduler": "one model's own",
    "RFD4ProteinaScheduler": "one model's own",
    "SCMScheduler": "one model's own",
}


def classes() -> list[str]:
    return sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))


DEPRECATED = {"ScoreSdeVpScheduler": ScoreSdeVpScheduler}
BY_DEFAULT_REFUSED = {"ScoreSdeVeScheduler": {"correct_steps": 0}}  # what makes it a table


def scheduler(name: str = "DPMSolverMultistepScheduler", **config: Any) -> Any:
    cls = DEPRECATED.get(name) or getattr(diffusers, name)
    cls = cosine_dpm_solver() if name == "CosineDPMSolverMultistepScheduler" else cls
    return cls(**BY_DEFAULT_REFUSED.get(name, {}) | config)


@pytest.mark.parametrize("name", classes())
def test_every_class_is_reproduced_or_refused_by_name(name: str) -> None:
    if name in reproducible():
        assert name not in NOT_REPRODUCED
        return
    with pytest.raises(
        TypeError, match=rf"plan_from: {name} is not reproduced by any planner; these are: .*DDIMScheduler"
    ):
        plan_from(object.__new__(getattr(diffusers, name)), 10)


def test_every_class_has_been_looked_at() -> None:
    assert {*reproducible(), *NOT_REPRODUCED} == {*classes(), *DEPRECATED}


@pytest.mark.parametrize("name", reproducible())
def test_the_scheduler_is_read_and_not_changed(name: str) -> None:
    made = scheduler(name)
    before, config = copy.deepcopy(made.__dict__), dict(made.config)
    plan = plan_from(made, 4)
    assert dict(made.config) == config
    assert made.__dict__.keys() == before.keys()
    for key, value in before.items():
        if isinstance(value, torch.Tensor):  # KDPM2's first interpolated sigma is nan
            torch.testing.assert_close(made.__dict__[key], value, rtol=0, atol=0, equal_nan=True, msg=key)
    assert plan.steps >= 4


@pytest.mark.parametrize("name", reproducible())
def test_an_option_that_nobody_reads_is_refused(name: str) -> None:
    """So that an option of a later diffusers cannot be overlooked."""
    made = scheduler(name)
    made.register_to_config(**{**made.config, "brand_new": 3})
    with pytest.raises(
        ValueError, match=rf"plan_from: {name}: cannot reproduce brand_new=3: no planner has this option"
    ):
        plan_from(made, 4)


@pytest.mark.parametrize("name", reproducible())
def test_an_unknown_keyword_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"plan_from: {name}: unknown keyword churn; it takes "):
        plan_from(scheduler(name), 4, churn=0.3)


def test_steps_or_timesteps() -> None:
    for steps, keywords in ((None, {}), (4, {"timesteps": [900, 500, 100]})):
        with pytest.raises(ValueError, match="pass either num_inference_steps or timesteps"):
            plan_from(scheduler(), steps, **keywords)
    assert plan_from(scheduler(), timesteps=[900, 500, 100]).timesteps.tolist() == [900, 500, 100]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"variance_type": "learned_range"}, "cannot reproduce variance_type='learned_range'"),
        ({"trained_betas": [0.5, 0.5], "beta_schedule": "nonsense"}, None),
    ],
)
def test_options_are_refused_by_name(config: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert plan_from(scheduler(**config, num_train_timesteps=2), 1).steps == 1, (
            "trained_betas take its place"
        )
        return
    with pytest.raises(ValueError, match=message):
        plan_from(scheduler(**config), 4)
