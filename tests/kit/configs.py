# SPDX-License-Identifier: Apache-2.0
"""Configurations of diffusers' schedulers for parity tests: each option in some combination, 1 to 50 steps."""

from __future__ import annotations

from typing import Any

Case = tuple[int, dict[str, Any]]

# What HeunDiscrete, KDPM2Discrete, KDPM2AncestralDiscrete and LMSDiscrete have in common.
SIGMA_SPACE: list[Case] = [
    (20, {}),
    (1, {"timestep_spacing": "trailing"}),
    (1, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    (2, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
    (3, {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "scaled_linear"}),
    (50, {"prediction_type": "v_prediction", "timestep_spacing": "leading"}),
    (10, {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}),
    (8, {"beta_start": 0.0001, "beta_end": 0.02}),
    (7, {"trained_betas": [1e-4 + 6e-5 * t for t in range(500)], "num_train_timesteps": 500}),
    (15, {"use_karras_sigmas": True}),
    (12, {"use_exponential_sigmas": True, "timestep_spacing": "trailing"}),
    (9, {"use_beta_sigmas": True, "prediction_type": "v_prediction"}),
]


def ids(cases: list[Case]) -> list[str]:
    """Readable names of test cases."""
    return ["-".join([str(s), *(f"{k}={v}" for k, v in c.items() if k != "trained_betas")]) for s, c in cases]
