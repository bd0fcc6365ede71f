# SPDX-License-Identifier: Apache-2.0
"""Schedules: float64 tables, diffusers' placement of timesteps, limits and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import schedules
from fastdiff.schedules import Placement

from tests.kit import oracles

SPACINGS = ("leading", "linspace", "trailing")


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_tables_are_float64(name: str) -> None:
    schedule = getattr(schedules, name)()
    expected = torch.from_numpy(oracles.alphas_cumprod(name))
    torch.testing.assert_close(schedule.alphas_cumprod, expected, rtol=1e-12, atol=1e-18)
    torch.testing.assert_close(schedule.alphas**2 + schedule.sigmas**2, torch.ones_like(expected))


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_of_every_step_count(spacing: Any, endpoint: bool) -> None:
    """All of diffusers' rounding; "trailing" without the surplus timestep -1 that it has for some S."""
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler if endpoint else diffusers.DPMSolverMultistepScheduler
    scheduler = peer(timestep_spacing=spacing, steps_offset=1)
    for steps in range(1, 1000):
        scheduler.set_timesteps(steps)
        expected = [t for t in scheduler.timesteps.tolist() if t >= 0]
        assert list(Placement(spacing, 1, endpoint).timesteps(steps, 1000)) == expected, steps


def test_unrounded_timesteps_end_at_the_last_level() -> None:
    """(S - 1) ((T - 1)/(S - 1)) is above T - 1 for some S."""
    for steps in range(2, 1001):
        assert Placement(rounded=False).timesteps(steps, 1000)[0] == pytest.approx(999, rel=1e-15)
        assert Placement(rounded=False).timesteps(steps, 1000)[0] <= 999


def test_levels_between_timesteps() -> None:
    schedule = schedules.linear()
    alpha, sigma = schedule.level(10.25)
    below, above = (float(schedule.sigmas[t] / schedule.alphas[t]) for t in (10, 11))
    assert sigma / alpha == pytest.approx(0.75 * below + 0.25 * above, rel=1e-14)
    assert alpha**2 + sigma**2 == pytest.approx(1, rel=1e-15)
    assert schedule.level(999) == (float(schedule.alphas[-1]), float(schedule.sigmas[-1]))


@pytest.mark.parametrize("make", [schedules.karras, schedules.exponential])
def test_spaced_levels_keep_the_ends_of_their_base(make: Any) -> None:
    base = schedules.cosine()
    grid = make(base=base).grid(7)
    assert (grid.times[0], grid.times[-1]) == (999, 0)
    assert grid.sigmas[0] / grid.alphas[0] == pytest.approx(
        float(base.sigmas[-1] / base.alphas[-1]), rel=1e-12
    )
    assert (grid.alphas[-1], grid.sigmas[-1]) == (1.0, 0.0)


def test_variance_exploding_levels() -> None:
    grid = schedules.karras().grid(5)
    assert grid.alphas == (1.0,) * 6
    assert (grid.sigmas[0], grid.sigmas[-2], grid.sigmas[-1]) == (80.0, 0.002, 0.0)
    assert grid.times == grid.sigmas[:-1]
    uniform = schedules.exponential(0.01, 10.0).grid(4)
    steps = [math.log(a / b) for a, b in zip(uniform.sigmas, uniform.sigmas[1:-1], strict=False)]
    assert steps == pytest.approx([math.log(10.0)] * 3)


def test_flow_levels() -> None:
    grid = schedules.flow(3.0).grid(4)
    assert (grid.sigmas[0], grid.alphas[0], grid.sigmas[-1]) == (1.0, 0.0, 0.0)
    assert (grid.lambdas[0], grid.lambdas[-1]) == (-math.inf, math.inf)
    assert schedules.flow(mu=math.log(3.0)).shifted(0.5) == pytest.approx(0.75)
    assert schedules.flow(shift_terminal=0.1).grid(5).sigmas[-2] == pytest.approx(0.1)
    # explicit timesteps are T sigma before the shift
    assert schedules.flow(3.0).grid([1000, 500]).sigmas == pytest.approx((1.0, 0.75, 0.0))


PEERS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
    "laplace": "laplace",
}


@pytest.mark.parametrize("name", list(PEERS))
def test_tables_are_those_of_diffusers_before_rounding(name: str) -> None:
    """Theirs is a float32 product of float32 betas: 1e-6, and 1e-3 where the cosine schedule has lost all digits."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(beta_schedule=PEERS[name]).alphas_cumprod.double()
    ours = getattr(schedules, name)().alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=3e-4, atol=1e-7)
    assert float((ours / theirs - 1)[:900].abs().max()) < 1e-4


def test_zero_terminal_snr() -> None:
    schedule = schedules.scaled_linear(beta_start=0.00085, beta_end=0.012)
    rescaled = schedules.zero_terminal_snr(schedule)
    assert float(rescaled.alphas_cumprod[-1]) == 0
    assert float(rescaled.alphas_cumprod[0]) == pytest.approx(float(schedule.alphas_cumprod[0]), rel=1e-15)
    root = schedule.alphas
    linear = (root - root[-1]) / (
        root[0] - root[-1]
    )  # Lin et al. 2023: an affine map of sqrt(alphas_cumprod)
    torch.testing.assert_close(rescaled.alphas / rescaled.alphas[0], linear, rtol=1e-12, atol=1e-12)
    assert float(schedules.zero_terminal_snr(schedule, terminal=2.0**-24).alphas_cumprod[-1]) == 2.0**-24


def test_betas_make_a_schedule() -> None:
    linear = schedules.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    torch.testing.assert_close(linear.alphas_cumprod, schedules.linear().alphas_cumprod, rtol=1e-14, atol=0)
    assert schedules.from_betas([0.5, 0.5]).alphas_cumprod.tolist() == [0.5, 0.25]


def test_beta_spacing_is_the_quantile_function() -> None:
    special = pytest.importorskip("scipy.special")
    grid = schedules.beta(0.1, 10.0, 0.6, 0.8).grid(5)
    assert (grid.sigmas[0], grid.sigmas[-2]) == (10.0, 0.1)
    for k, sigma in enumerate(grid.sigmas[:-1]):
        share = (sigma - 0.1) / 9.9
        assert special.betainc(0.6, 0.8, share) == pytest.approx(1 - k / 4, abs=1e-12)


def test_lu_is_exponential_with_rounded_times() -> None:
    base = schedules.linear()
    lu, exponential = schedules.lu(base=base), schedules.exponential(base=base)
    assert lu.grid(7).sigmas == exponential.grid(7).sigmas
    times = lu.grid(7).times
    assert lu.solver_times(times) == tuple(float(round(t)) for t in times)
    assert exponential.solver_times(times) == tuple(float(math.trunc(t)) for t in times)


def test_edm_levels_are_the_inputs_of_the_network() -> None:
    """Karras et al. 2022, table 1: c_in = 1/sqrt(sigma^2 + sigma_data^2), c_noise = ln(sigma)/4."""
    grid = schedules.edm(sigma_data=0.5).grid(4)
    for time, alpha, sigma in zip(grid.times, grid.alphas, grid.sigmas, strict=False):
        noise = sigma / alpha
        assert alpha == pytest.approx(1 / math.hypot(noise, 0.5), rel=1e-14)
        assert time == pytest.approx(math.log(noise) / 4, abs=1e-12)
    assert (grid.alphas[-1], grid.sigmas[-1]) == (1.0, 0.0)


def test_given_levels() -> None:
    schedule = schedules.from_levels([900, 20.5], [0.1, 0.8, 1.0], [0.9, 0.6, 0.0])
    grid = schedule.grid(2)
    assert (grid.times, grid.alphas, grid.sigmas) == ((900.0, 20.5), (0.1, 0.8, 1.0), (0.9, 0.6, 0.0))
    assert schedule.solver_times(grid.times) == grid.times


def test_given_levels_may_ascend() -> None:
    levels = [20.5, 900], [0.8, 0.1, 0.1], [0.6, 0.9, 0.9]
    grid = schedules.from_levels(*levels, ascending=True).grid(2)
    assert grid.ascending
    assert grid.lambdas[0] > grid.lambdas[1] == grid.lambdas[2]
    with pytest.raises(ValueError, match="must decrease"):
        schedules.from_levels(*levels)
    with pytest.raises(ValueError, match="must increase"):
        schedules.from_levels([900, 20.5], [0.1, 0.8, 1.0], [0.9, 0.6, 0.0], ascending=True)


def test_lambda_min_clipped() -> None:
    cosine = schedules.cosine()
    clipped = schedules.DiscreteSchedule("clipped", cosine.alphas_cumprod, -5.1)
    first = clipped.grid(10, Placement("linspace", endpoint=False)).lambdas[0]
    assert -5.1 <= first < -4.9
    assert clipped.usable < cosine.usable == 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.linear().grid(0), "steps: expected 1 to 1000, got 0"),
        (lambda: schedules.linear().grid(1001), "steps: expected 1 to 1000"),
        (lambda: schedules.linear().grid(5, Placement("evenly")), "timestep_spacing"),  # type: ignore[arg-type]
        (lambda: schedules.linear().grid([10, 20]), "noise levels must decrease"),
        (lambda: schedules.linear().grid([]), "steps"),
        (lambda: schedules.linear().grid([1000.0]), "outside"),
        (lambda: schedules.linear().grid(5, final="none"), "final_sigmas_type"),  # type: ignore[arg-type]
        (lambda: schedules.karras().grid([3.0, 1.0]), "pass a number of steps"),
        (lambda: schedules.karras(2.0, 1.0), "0 < sigma_min < sigma_max"),
        (lambda: schedules.karras(rho=0.0), "rho"),
        (lambda: schedules.flow(0.0), "positive shift"),
        (lambda: schedules.flow(mu=1.0, time_shift_type="cubic"), "time_shift_type"),  # type: ignore[arg-type]
        (lambda: schedules.flow(shift_terminal=0.1).grid(1), "shift_terminal"),
        (lambda: schedules.from_levels([1.0], [0.5], [0.5, 0.0]), "expected S times and S \\+ 1 alphas"),
        (lambda: schedules.from_levels([1.0], [0.5, 1.0], [0.5, 0.0]).grid(3), "pass steps=1, got 3"),
        (lambda: schedules.from_betas([0.5, -0.5]), "strictly decrease"),
        (lambda: schedules.from_alphas_cumprod(torch.tensor([0.5])), r"shape \[T\]"),
        (lambda: schedules.from_alphas_cumprod(torch.tensor([0.5, 0.7])), "strictly decrease"),
        (lambda: schedules.from_alphas_cumprod(torch.tensor([1.5, 0.7])), "strictly decrease"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.linear(),
        schedules.karras(base=schedules.linear()),
        schedules.karras(0.02, 50),
        schedules.edm(),
        schedules.flow(3.0),
    ],
    ids=["discrete", "karras-vp", "karras-ve", "edm", "flow"],
)
def test_a_level_at_a_ratio_is_the_grid_s_own(schedule: schedules.Schedule) -> None:
    grid = schedule.grid(5, Placement(rounded=False))
    assert grid.alphas[0] > 0 or schedule.at(math.inf) == (1000, (0, 1))
    for time, alpha, sigma in zip(grid.times[1:], grid.alphas[1:-1], grid.sigmas[1:-1], strict=True):
        told, level = schedule.at(sigma / alpha)
        # In a discrete schedule sigma/alpha is interpolated linearly, its inverse in the logarithm.
        assert told == pytest.approx(
            time, abs=0.2 if isinstance(schedule, schedules.DiscreteSchedule) else 1e-9
        )
        assert level == pytest.approx((alpha, sigma), rel=1e-12)
    given = schedules.from_levels(grid.times[1:], grid.alphas[1:], grid.sigmas[1:], base=schedule)
    assert given.at(0.5) == schedule.at(0.5)
    with pytest.raises(ValueError, match="none between them; pass base="):
        schedules.from_levels(grid.times, grid.alphas, grid.sigmas).at(0.5)
