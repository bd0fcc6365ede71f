# SPDX-License-Identifier: Apache-2.0
"""Guidance that decides what a run evaluates: rows that are left out, estimates, and a choice among prompts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from fastdiff import guidance as G
from fastdiff import planners
from torch import Tensor

from tests.guiders.test_plan import F64, PLANS, SCHEDULE, STEPS, Calls, _x0_and_eps, predict, start
from tests.kit import guidance as want

# ---- skipping evaluations --------------------------------------------------------------------------------------


class Network:
    """Records which branch of which sample is evaluated in which call."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[int, int]]] = []

    def __call__(self, x: Tensor, t: Tensor, branch: Tensor, sample: Tensor) -> Tensor:
        self.seen.append(list(zip(branch.tolist(), sample.tolist(), strict=True)))
        everything = torch.stack(predict(x, t))
        # the samples' predictions come together one after the other
        close = torch.tensor([1.0, 0.1, 0.01], dtype=x.dtype)[sample] * t.to(x.dtype) / 999
        close = close.reshape(-1, *[1] * (x.dim() - 1))
        return everything[0] + close * (everything[branch, torch.arange(len(x))] - everything[0])


def test_rows_leave_out_what_a_step_does_not_read() -> None:
    plan, x = PLANS["ddim"], start()
    network = Network()
    rows = G.Rows(network)
    got = plan.run(rows, x, guidance=G.CFG(3.0, start=0.5))
    everyone = [(1, b) for b in range(3)]
    assert network.seen == [everyone] * 3 + [[(0, b) for b in range(3)] + everyone] * 3
    assert rows.evaluations == 3 * 3 + 3 * 6

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        numbers = torch.arange(3)
        return tuple(Network()(x, t, torch.full_like(numbers, b), numbers) for b in range(2))

    torch.testing.assert_close(got, plan.run(both, x, guidance=G.CFG(3.0, start=0.5)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("plan", ["ddim", "dpm_solver_pp", "ddim, v"])
def test_adaptive_guidance_skips_per_sample(plan: str) -> None:
    solver, x = PLANS[plan], start()
    guidance = G.AdaptiveGuidance(3.0, 0.99, prediction="model")
    network = Network()
    got = solver.run(G.Rows(network), x, guidance=guidance)
    skipped = [{b for k, b in seen if k == 0} for seen in network.seen]
    assert all(later <= earlier for earlier, later in itertools.pairwise(skipped)), "a latch came loose"
    counts = [len(s) for s in skipped]
    assert counts[0] == 3 and len(set(counts)) > 1, f"samples should cross one after the other, got {counts}"

    latched = torch.zeros(3, dtype=torch.bool)
    numbers = torch.arange(3)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        nonlocal latched
        u, c = (Network()(x, t, torch.full_like(numbers, b), numbers) for b in range(2))
        latched = latched | (want.cosine(u, c) >= 0.99)
        return torch.where(latched.reshape(3, 1, 1, 1), c, want.cfg(c, u, 3.0))

    torch.testing.assert_close(got, solver.run(guided, x), rtol=0, atol=1e-11)


@pytest.mark.parametrize("quantity", ["epsilon", "x0"])
def test_adaptive_guidance_converts(quantity: str) -> None:
    """The cosine is that of what was asked for, whatever the model predicts."""
    plan, x = PLANS["ddim, v"], start()
    for i, t in enumerate(plan.timesteps[:3]):
        u, c, *_ = predict(x, t)
        alpha, sigma = float(plan.alphas[i]), float(plan.sigmas[i])
        pair = [_x0_and_eps("v", x, p, alpha, sigma)[quantity == "epsilon"] for p in (u, c)]
        cosine = want.cosine(*pair)
        for threshold, crossed in ((float(cosine.min()) - 1e-9, True), (float(cosine.max()) + 1e-9, False)):
            guided = plan.guided(G.AdaptiveGuidance(3.0, threshold, prediction=quantity))
            _, history = guided.step(i, x, (u, c))
            assert history[-1].tolist() == [int(crossed)] * 3


def test_the_cosine_of_x0_keeps_its_digits_at_high_noise() -> None:
    """At alpha = 0.006 x0 is a difference of numbers 150 times as large as itself, in float32."""
    plan = planners.ddim(SCHEDULE, 4, timestep_spacing="trailing")
    alpha, sigma = float(plan.alphas[0]), float(plan.sigmas[0])
    g = torch.Generator().manual_seed(0)
    x0 = torch.randn(2, 4, 64, 64, generator=g, dtype=F64)
    x = torch.randn(2, 4, 64, 64, generator=g, dtype=F64).float()
    u, c = (((x.double() - alpha * (x0 + 0.1 * torch.randn(x0.shape, generator=g, dtype=F64))) / sigma).float()
            for _ in range(2))  # fmt: skip
    cosine = want.cosine(*(((x.double() - sigma * p.double()) / alpha) for p in (u, c)))
    for b in range(2):
        for offset, crossed in ((-1e-5, 1), (1e-5, 0)):
            guided = plan.guided(G.AdaptiveGuidance(3.0, float(cosine[b]) + offset))
            _, history = guided.step(0, x, (u, c))
            assert history[-1][b] == crossed


def test_a_step_that_only_the_device_knows_does_not_latch_outside_of_the_range() -> None:
    plan = PLANS["ddim"].guided(G.AdaptiveGuidance(3.0, 0.5, prediction="model", start=0.5))
    x, near = start(), predict(start(), torch.tensor(5))[0]
    for i in (0, torch.tensor(0)):
        _, history = plan.step(i, x, (near, near), None)
        assert history[-1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "guidance", [G.CFG(3.0), G.AdaptiveGuidance(3.0, 0.5), G.CFGZeroStar(3.0)], ids=lambda g: type(g).__name__
)
def test_rows_with_a_learned_variance(guidance: G.Guidance) -> None:
    plan = planners.ddpm(SCHEDULE, STEPS, variance_type="learned_range")

    def network(x: Tensor, t: Tensor, branch: Tensor, sample: Tensor) -> Tensor:
        both = torch.stack(predict(x, t)[:2])[branch, torch.arange(len(x))]
        return torch.cat((both, 0.1 * both), 1)

    def model(x: Tensor, t: Tensor) -> list[Tensor]:
        numbers = torch.arange(len(x))
        return [network(x, t, torch.full_like(numbers, b), numbers) for b in range(2)]

    got = plan.run(G.Rows(network), start(), guidance=guidance, seed=3)
    torch.testing.assert_close(got, plan.run(model, start(), guidance=guidance, seed=3), rtol=0, atol=1e-11)


# ---- LinearAG --------------------------------------------------------------------------------------------------


def test_linear_ag_finds_what_is_there() -> None:
    g = torch.Generator().manual_seed(0)
    conds = [torch.randn(4, 3, 8, 8, generator=g, dtype=F64) for _ in range(5)]
    unconds = [torch.randn(4, 3, 8, 8, generator=g, dtype=F64) for _ in range(2)]
    unconds.append(0.8 * conds[2] - 0.1 * conds[0] + 0.4 * unconds[1])
    unconds.append(0.9 * conds[3] + 0.2 * unconds[2] - 0.3 * unconds[0])
    unconds.append(conds[4] + 0.01 * torch.randn(4, 3, 8, 8, generator=g, dtype=F64))
    found = G.fit_linear_ag(conds, unconds, 2)
    assert found[:2] == [None, None]
    for regression, cond, uncond in (
        (found[2], (-0.1, 0, 0.8), (0, 0.4)),
        (found[3], (0, 0, 0, 0.9), (-0.3, 0, 0.2)),
    ):
        assert regression is not None
        assert regression.residual < 1e-9
        # u_2 is made of what is there already: any of the equal answers is one
        assert len(regression.cond) == len(cond) and len(regression.uncond) == len(uncond)
    assert found[4] is not None and 0.005 < found[4].residual < 0.02

    guidance = G.LinearAG(3.0, found)
    for _ in range(2):
        for i in range(5):
            given = unconds[i] if i < 2 else None
            got = guidance(conds[i], given, step=i)
            tolerance = 1e-9 if i < 4 else 0.3
            torch.testing.assert_close(got, want.cfg(conds[i], unconds[i], 3.0), rtol=0, atol=tolerance)


def test_linear_ag_in_a_run() -> None:
    plan, x = PLANS["ddim"], start()
    stored: list[list[Tensor]] = []

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        numbers = torch.arange(3)
        stored.append([Network()(x, t, torch.full_like(numbers, b), numbers) for b in range(2)])
        return tuple(stored[-1])

    full = plan.run(both, x, guidance=G.CFG(2.0))
    regressions = G.fit_linear_ag([c for _, c in stored], [u for u, _ in stored], 3)
    network = Network()
    rows = G.Rows(network)
    guidance = G.LinearAG(2.0, regressions)
    with Calls() as calls:
        got = plan.run(rows, x, guidance=guidance)
    assert rows.evaluations == 3 * 6 + 3 * 3
    assert calls.launches.count("linear_step") == STEPS + 3
    assert float((got - full).abs().max()) < 0.05 * float(full.abs().max())
    with pytest.raises(TypeError, match=r"must be a fastdiff\.guidance\.Rows"):
        plan.run(both, x, guidance=guidance)
    with pytest.raises(ValueError, match="regressions are for 6 steps, got a run of 4"):
        planners.ddim(SCHEDULE, 4).run(rows, x, guidance=guidance)


# ---- Black-Scholes ---------------------------------------------------------------------------------------------


def price(spot: float, strike: float, rate: float, sigma: float, tau: float) -> float:
    def phi(d: float) -> float:
        return 0.5 * math.erfc(-d / math.sqrt(2))

    d1 = (math.log(spot / strike) + (rate + sigma**2 / 2) * tau) / (sigma * math.sqrt(tau))
    return spot * phi(d1) - strike * math.exp(-rate * tau) * phi(d1 - sigma * math.sqrt(tau))


def test_call_price_against_the_definition_and_its_limits() -> None:
    spots = torch.linspace(1, 250, 40, dtype=F64)
    for strike, rate, sigma, tau in (
        (100.0, 0.02, 0.1, 20.0),
        (90.0, 0.0, 0.5, 1.0),
        (100.0, 0.01, 0.02, 3.0),
    ):
        want_price = torch.tensor([price(s, strike, rate, sigma, tau) for s in spots.tolist()], dtype=F64)
        torch.testing.assert_close(
            G.call_price(spots, strike, rate, sigma, tau), want_price, rtol=1e-9, atol=1e-12
        )
    payoff = (spots - 100.0 * math.exp(-0.02 * 5)).clamp_min(0)
    torch.testing.assert_close(G.call_price(spots, 100.0, 0.02, 0.0, 5.0), payoff)
    torch.testing.assert_close(G.call_price(spots, 100.0, 0.02, 1e-9, 5.0), payoff)
    assert G.call_price(torch.tensor([0.0, -3.0]), 100.0, 0.02, 0.1, 5.0).tolist() == [0.0, 0.0]


def test_the_released_score_is_zero() -> None:
    """S exp(-d1^2/2) = K e^(-r tau) exp(-d2^2/2): why the price is not compared with the published code."""
    for spot, tau in ((22.0, 30.0), (28.0, 3.0), (150.0, 9.0)):
        sigma, rate, strike = 0.13, 0.02, 100.0
        d1 = (math.log(spot / strike) + (rate + sigma**2 / 2) * tau) / (sigma * math.sqrt(tau))
        d2 = d1 - sigma * math.sqrt(tau)
        first, second = spot * math.exp(-(d1**2) / 2), strike * math.exp(-rate * tau) * math.exp(-(d2**2) / 2)
        assert abs(first - second) < 1e-12 * first


def test_black_scholes_selects_per_sample() -> None:
    u, c, e, f, _ = predict(start(), torch.tensor(300))
    scores = torch.tensor([[20.0, 30.0, 25.0], [30.0, 20.0, 25.0], [25.0, 25.0, 25.0]])
    guidance = G.BlackScholes(4.0, candidates=3, sigma=0.1, rate=0.02)
    got = guidance(c, u, e, f, scores=scores, step=3, steps=10)
    chosen = torch.stack((c[0], e[1], c[2]))
    torch.testing.assert_close(got, want.cfg(chosen, u, 4.0), rtol=0, atol=1e-12)


def test_black_scholes_in_a_run() -> None:
    plan, x = PLANS["ddim"], start()
    choices = []

    def scores(x: Tensor, t: Tensor, predictions: tuple[Tensor, ...]) -> Tensor:
        return 25 + 3 * torch.stack([p.flatten(1).mean(1) for p in predictions[1:]], 1)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u, c, e, *_ = predict(x, t)
        spots = scores(x, t, (u, c, e))
        i = len(choices)
        variance = (plan.sigmas[i + 1] / plan.sigmas[i]) ** 2 * (
            1 - (plan.alphas[i] / plan.alphas[i + 1]) ** 2
        )
        prices = G.call_price(spots, 100.0, 1 / STEPS, float(variance.abs().sqrt()), STEPS - i)
        choices.append(prices.argmin(1))
        chosen = torch.stack([(c, e)[k][b] for b, k in enumerate(choices[-1].tolist())])
        return want.cfg(chosen, u, 4.0)

    expected = plan.run(guided, x)
    assert len(torch.stack(choices).unique()) == 2
    guidance = G.BlackScholes(4.0, scores=scores)
    plan.guided(guidance)
    with Calls() as calls:
        got = plan.run(lambda x, t: predict(x, t)[:3], x, guidance=guidance)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    assert len(calls.launches) == 2 * STEPS
    assert calls.reads == []
