# SPDX-License-Identifier: Apache-2.0
"""diffusers' schedulers as plans, `plan_from(pipe.scheduler, 20)`, and faster modules in its models."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from fastdiff.integrations.diffusers._options import MAPPERS, Options
from fastdiff.integrations.diffusers.haar_patch import use_fast_haar_patch
from fastdiff.integrations.diffusers.sparse_attention import use_sparse_attention

if TYPE_CHECKING:
    from fastdiff.planners import Plan

__all__ = ["plan_from", "reproducible", "use_fast_haar_patch", "use_sparse_attention"]

# Each module of this package that is about schedulers registers the classes of one planner.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def plan_from(scheduler: Any, num_inference_steps: int | None = None, **kwargs: Any) -> Plan:
    """The plan that computes what a diffusers scheduler computes, from its config.

    The plan's coefficients are computed in float64, so that its samples are closer to the exact result of the
    same program than the scheduler's own. The scheduler is read, not changed; `set_timesteps` need not have
    been called.

    The state is in the variable in which the model was trained. For the schedulers whose sample is
    x0 + sigma eps (Euler, Heun, KDPM2, LMS and their relatives), x here is `scale_model_input` of theirs, and
    the model's input needs no scaling. In either case start from `plan.init_noise_sigma * torch.randn(...)`.

        plan = plan_from(pipe.scheduler, 20)
        latents = plan.run(lambda x, t: unet(x, t, embeddings).sample, latents)

    Args:
        scheduler: an instance of one of `reproducible()`.
        num_inference_steps: as for its `set_timesteps`; None if `timesteps` or `sigmas` is given.
        **kwargs: further arguments of its `set_timesteps` (timesteps, sigmas, mu) or `step` (eta, s_churn).

    Raises:
        TypeError: a scheduler that no planner reproduces; the message lists those that are.
        ValueError: an option or argument that cannot be reproduced, by name.
    """
    name = type(scheduler).__name__
    entry = MAPPERS.get(name)
    if entry is None:
        raise TypeError(
            f"plan_from: {name} is not reproduced by any planner; these are: {', '.join(reproducible())}"
        )
    if unknown := sorted(set(kwargs) - {*entry.keywords}):
        takes = ", ".join(entry.keywords) or "none"
        raise ValueError(f"plan_from: {name}: unknown keyword {', '.join(unknown)}; it takes {takes}")
    options = Options(scheduler, num_inference_steps, kwargs)
    plan = entry.mapper(options)
    options.check_all_read()
    return plan


def reproducible() -> list[str]:
    """Names of the scheduler classes that `plan_from` takes."""
    return sorted(MAPPERS)
