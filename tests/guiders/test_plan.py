# SPDX-License-Identifier: Apache-2.0
"""Guidance inside a plan: the same samples as guiding first and stepping then, in three launches and without a sync."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastdiff import guidance as G
from fastdiff import planners, schedules
from fastdiff.planners.plan import Plan
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.guiders.test_definitions import METHODS
from tests.kit import guidance as want

F64 = torch.float64
STEPS = 6
SCHEDULE = schedules.scaled_linear()
FLOW = schedules.flow()
PLANS: dict[str, Plan] = {
    "ddim": planners.ddim(SCHEDULE, STEPS),
    "ddim, clipped": planners.ddim(SCHEDULE, STEPS, clip_sample=1.0),
    "ddim, v": planners.ddim(SCHEDULE, STEPS, prediction="v"),
    "ddpm": planners.ddpm(SCHEDULE, STEPS),
    "dpm_solver_pp": planners.dpm_solver_pp(SCHEDULE, STEPS),
    "unipc": planners.unipc(SCHEDULE, STEPS, order=3),
    "heun": planners.heun(SCHEDULE, STEPS),
    "euler, flow": planners.euler(FLOW, STEPS, prediction="flow"),
    "threshold": planners.ddim(SCHEDULE, STEPS, threshold=planners.Threshold(0.9, 2.0)),
}


def predict(x: Tensor, t: Tensor) -> list[Tensor]:
    """Five predictions that depend on x and t: u, c, and others."""
    n = torch.arange(x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    wave = 0.02 * t.to(x.dtype).reshape(()) / 10
    return [torch.tanh((0.3 + 0.1 * k) * x + torch.sin(n * (0.7 + 0.3 * k) + wave)) for k in range(5)]


def start(dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(3), dtype=F64).to(dtype)


def ordered(guidance: G.Guidance, predictions: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(predictions[: len(guidance.branches)])


IN_PLANS = {name: method for name, method in METHODS.items() if name not in ("CFGPlusPlus", "CFG, channels")}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", [name for name in IN_PLANS if "AdaptiveGuidance" not in name])
def test_a_run_is_guiding_and_stepping(name: str, plan: str) -> None:
    guidance, count, definition = IN_PLANS[name]
    solver, x = PLANS[plan], start()
    seed = {"seed": 5} if solver.stochastic else {}

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u, c, *rest = predict(x, t)[:count]
        return definition(c, u, *rest)

    def run() -> Tensor:
        return solver.run(lambda x, t: ordered(guidance, predict(x, t)), x, guidance=guidance, **seed)

    if name == "PerpNeg of two" and plan in ("ddim, clipped", "threshold"):
        with pytest.raises(ValueError, match="9 rows; at most 40 and 8 can be run"):
            run()
        return
    expected = solver.run(guided, x, **seed)
    tolerance = (1e-9 if "TCFG" in name else 1e-11) * float(expected.abs().max())
    torch.testing.assert_close(run(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["CFG", "RescaledCFG", "APG", "NormBalanced", "TCFG", "CFGZeroStar"])
def test_a_run_in_lower_precision_is_close(name: str, dtype: torch.dtype) -> None:
    guidance, _, _ = METHODS[name]
    plan = planners.dpm_solver_pp(SCHEDULE, STEPS)

    def model(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return tuple(p.to(x.dtype) for p in ordered(guidance, predict(x.double(), t)))

    wide = plan.run(model, start(dtype).double(), guidance=guidance)
    got = plan.run(model, start(dtype), guidance=guidance)
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.2}[dtype]
    assert got.dtype == dtype
    assert float((got.double() - wide).abs().max()) < bound * float(wide.abs().max())


class Calls(TorchDispatchMode):
    """Counts fastdiff's operators, and whatever reads a number back from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if name.startswith("fastdiff"):
            self.launches.append(name.split(".")[1])
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero")):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", IN_PLANS)
def test_at_most_three_launches_per_step_and_no_sync(name: str) -> None:
    guidance = IN_PLANS[name][0]
    plan = PLANS["dpm_solver_pp"]
    plan.guided(guidance)  # planning is the host's; a plan keeps the latest that was derived from it
    with Calls() as calls:
        plan.run(lambda x, t: ordered(guidance, predict(x, t)), start(torch.float32), guidance=guidance)
    per_step = len(calls.launches) / plan.steps
    assert per_step <= 3
    assert set(calls.launches) <= {"guidance_stats", "guidance_coefficients", "linear_step"}
    assert calls.reads == []


def test_intervals_and_momentum_in_a_run() -> None:
    plan, x = PLANS["ddim"], start()
    guidance = G.APG(4.0, eta=0.2, norm_threshold=3.0, momentum=-0.5, start=0.2, stop=0.8)
    average, i = torch.zeros_like(x), 0

    def guided(x: Tensor, t: Tensor) -> Tensor:
        nonlocal average, i
        u, c, *_ = predict(x, t)
        on = int(0.2 * STEPS) <= i < int(0.8 * STEPS)
        i += 1
        if not on:
            return c
        average = c - u - 0.5 * average
        return want.apg(c, u, 4.0, 0.2, 3.0, average)

    expected = plan.run(guided, x)
    for _ in range(2):  # a run keeps its own momentum
        got = plan.run(lambda x, t: ordered(guidance, predict(x, t)), x, guidance=guidance)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_power_cosine_in_a_run() -> None:
    plan, x = PLANS["dpm_solver_pp"], start()

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u, c, *_ = predict(x, t)
        return want.cfg(c, u, want.power_cosine(3.8, 4.0, float(t)))

    got = plan.run(lambda x, t: predict(x, t)[:2], x, guidance=G.PowerCosine(3.8))
    torch.testing.assert_close(got, plan.run(guided, x), rtol=0, atol=1e-11)


def test_zero_init_in_a_run() -> None:
    plan, x = PLANS["euler, flow"], start()
    i = 0

    def guided(x: Tensor, t: Tensor) -> Tensor:
        nonlocal i
        u, c, *_ = predict(x, t)
        i += 1
        return torch.zeros_like(c) if i <= 2 else want.zero_star(c, u, 3.0)

    got = plan.run(lambda x, t: predict(x, t)[:2], x, guidance=G.CFGZeroStar(3.0, zero_init_steps=2))
    torch.testing.assert_close(got, plan.run(guided, x), rtol=0, atol=1e-11)


# ---- CFG++ -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_cfg_plus_plus_is_algorithm_2(prediction: str) -> None:
    plan = planners.ddim(SCHEDULE, STEPS, prediction=prediction)
    x = start()
    got = plan.run(lambda x, t: predict(x, t)[:2], x, guidance=G.CFGPlusPlus(0.6))
    for i, t in enumerate(plan.timesteps):
        alpha, sigma = float(plan.alphas[i]), float(plan.sigmas[i])
        after, noise = float(plan.alphas[i + 1]), float(plan.sigmas[i + 1])
        u, c = (_x0_and_eps(prediction, x, p, alpha, sigma) for p in predict(x, t)[:2])
        x0 = want.cfg(c[0], u[0], 0.6)
        x = after * x0 + noise * u[1]
    torch.testing.assert_close(got, x, rtol=0, atol=1e-11)


def _x0_and_eps(kind: str, x: Tensor, p: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
    if kind == "epsilon":
        return (x - sigma * p) / alpha, p
    x0 = p if kind == "x0" else alpha * x - sigma * p
    return x0, (x - alpha * x0) / sigma


def test_cfg_plus_plus_for_euler_and_without_guidance() -> None:
    for plan in (PLANS["euler, flow"], planners.ddim(SCHEDULE, STEPS, eta=0.7)):
        x = start()
        seed = {"seed": 1} if plan.stochastic else {}
        # with c = u nothing is guided, and the split must be invisible
        same = plan.run(lambda x, t: predict(x, t)[:1] * 2, x, guidance=G.CFGPlusPlus(0.6), **seed)
        torch.testing.assert_close(
            same, plan.run(lambda x, t: predict(x, t)[0], x, **seed), rtol=0, atol=1e-11
        )
    for plan in (
        PLANS["dpm_solver_pp"],
        PLANS["ddim, clipped"],
        PLANS["threshold"],
        PLANS["ddim"].guided(3.0),
    ):
        with pytest.raises(
            ValueError, match=r"CFGPlusPlus: expected a plan of one evaluation|is guided already"
        ):
            plan.guided(G.CFGPlusPlus(0.6))


# ---- regions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_regional_guidance_blends_results(soft: bool) -> None:
    mask = torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    mask = mask if soft else (mask > 0.5).double()
    for plan in (PLANS["dpm_solver_pp"], PLANS["ddpm"]):
        seed = {"seed": 1} if plan.stochastic else {}

        def guided(x: Tensor, t: Tensor) -> Tensor:
            u, c, e, *_ = predict(x, t)
            return (1 - mask) * want.cfg(c, u, 3.0) + mask * (u + 2.0 * (c - u) + 1.5 * (e - u))

        guidance = G.Regional(mask, G.Compose([2.0, 1.5]), G.CFG(3.0))
        got = plan.run(lambda x, t: predict(x, t)[:3], start(), guidance=guidance, **seed)
        torch.testing.assert_close(got, plan.run(guided, start(), **seed), rtol=0, atol=1e-11)


def test_regions_of_different_intervals() -> None:
    mask = (torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    plan, i = PLANS["ddim"], 0

    def guided(x: Tensor, t: Tensor) -> Tensor:
        nonlocal i
        u, c, *_ = predict(x, t)
        early, late = want.cfg(c, u, 3.0 if i < 3 else 1.0), want.cfg(c, u, 5.0 if i >= 3 else 1.0)
        i += 1
        return (1 - mask) * early + mask * late

    guidance = G.Regional(mask, G.CFG(5.0, start=0.5), G.CFG(3.0, stop=0.5))
    got = plan.run(lambda x, t: predict(x, t)[:2], start(), guidance=guidance)
    torch.testing.assert_close(got, plan.run(guided, start()), rtol=0, atol=1e-11)


def test_cyclic_one_way_diffusion() -> None:
    mask = (torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.5).double()
    u, c, sup, div = predict(start(), torch.tensor(500))[:4]
    minus = mask * u + (1 - mask) * (u + sup - div)
    guidance = G.Regional.cyclic_one_way(mask, 7.5)
    assert guidance.branches == ("uncond", "cond", "sup", "div")
    torch.testing.assert_close(guidance(c, u, sup, div), minus + 7.5 * (c - minus), rtol=0, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_diffeditor_blends_outcomes(soft: bool) -> None:
    """x' = (1 - m) x'(eta_out) + m x'(eta_in), one noise for both; for a binary mask that is an eta per pixel."""
    mask = torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    mask = mask if soft else (mask > 0.5).double()
    outside, inside = (planners.ddim(SCHEDULE, STEPS, eta=eta) for eta in (0.0, 0.4))
    noise = [
        torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(i), dtype=F64) for i in range(STEPS)
    ]
    guidance = G.Regional(mask, G.CFG(4.0), G.CFG(2.0), inside_plan=inside)
    plan = outside.guided(guidance)
    x, expected, history = start(), start(), None
    for i, t in enumerate(outside.timesteps):
        x, history = plan.step(i, x, predict(x, t)[:2], history, noise=noise[i])
        u, c, *_ = predict(expected, t)
        both = [p.step(i, expected, want.cfg(c, u, s), None, **({"noise": noise[i]} if p is inside else {}))[0]
                for p, s in ((outside, 2.0), (inside, 4.0))]  # fmt: skip
        expected = (1 - mask) * both[0] + mask * both[1]
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-11)


def test_regional_refuses_plans_that_do_not_fit() -> None:
    mask, inside = torch.ones(1, 1, 5, 4), planners.ddim(SCHEDULE, STEPS + 1)
    guidance = G.Regional(mask, G.CFG(4.0), G.CFG(2.0), inside_plan=inside)
    with pytest.raises(ValueError, match="must have the slots and timesteps"):
        PLANS["ddim"].guided(guidance)
    clipped = PLANS["ddim, clipped"]
    with pytest.raises(ValueError, match="without history, clipping"):
        clipped.guided(G.Regional(mask, G.CFG(4.0), G.CFG(2.0), inside_plan=clipped))


# ---- bands -----------------------------------------------------------------------------------------------------


def test_banded_guidance() -> None:
    def split(x: Tensor) -> list[Tensor]:
        low = torch.nn.functional.avg_pool2d(x, 2)
        return [x - torch.nn.functional.interpolate(low, scale_factor=2.0), low]

    def merge(bands: list[Tensor]) -> Tensor:
        return bands[0] + torch.nn.functional.interpolate(bands[1], scale_factor=2.0)

    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=F64)
    u, c, *_ = predict(x, torch.tensor(300))
    guidance = G.Banded(split, merge, [G.CFG(10.0), G.RescaledCFG(5.0)])
    low_u, low_c = split(u)[1], split(c)[1]
    low = want.rescale(want.cfg(low_c, low_u, 5.0), low_c, 0.7)
    expected = merge([want.cfg(split(c)[0], split(u)[0], 10.0), low])
    torch.testing.assert_close(guidance(c, u), expected)
    plan = PLANS["ddim"]
    got = plan.run(lambda x, t: predict(x, t)[:2], x, guidance=guidance)
    same = plan.run(lambda x, t: guidance(*predict(x, t)[1::-1]), x)
    torch.testing.assert_close(got, same)
    with pytest.raises(ValueError, match="split must give 1 bands, got"):
        G.Banded(split, merge, [G.CFG()])(c, u)


def test_a_run_in_bands_keeps_its_own_momentum() -> None:
    guidance = G.Banded(lambda x: [x], lambda bands: bands[0], [G.APG(3.0, momentum=-0.5)])
    plan, calls = PLANS["ddim"], 0

    def nested(x: Tensor, t: Tensor) -> list[Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            plan.run(lambda x, t: predict(x, t)[:2], 2 * start(), guidance=guidance)
        return predict(x, t)[:2]

    alone = plan.run(lambda x, t: predict(x, t)[:2], start(), guidance=guidance)
    assert torch.equal(plan.run(nested, start(), guidance=guidance), alone)


# ---- one graph, one table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CFG", "RescaledCFG", "APG", "AdaptiveGuidance below"])
def test_one_compiled_graph_serves_all_steps(name: str) -> None:
    plan = PLANS["dpm_solver_pp"].guided(METHODS[name][0])
    x = start(torch.float32)
    compiles = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal compiles
        compiles += 1
        return graph.forward

    step = torch.compile(lambda i, x, p, h: plan.step(i, x, p, h), backend=counting, fullgraph=True)
    a = b = x
    _, h = plan.step(0, x, predict(x, plan.timesteps[0])[:2])
    g = h
    for i, t in enumerate(plan.timesteps):
        a, h = plan.step(i, a, predict(a, t)[:2], h)
        b, g = step(torch.tensor(i), b, predict(b, t)[:2], g)
        assert torch.equal(a, b)
    assert compiles == 1
    torch._dynamo.reset()


def test_derived_plans_keep_the_guidance() -> None:
    plan, x = PLANS["ddpm"], start(torch.float32)
    guidance = G.RescaledCFG(3.0)
    noise = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)) for i in range(sum(plan.noisy))]

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u, c, *_ = predict(x, t)
        return want.rescale(want.cfg(c, u, 3.0), c, 0.7)

    got = plan.run(lambda x, t: predict(x, t)[:2], x, guidance=guidance, noise=noise)
    expected = plan.run(guided, x.double(), noise=[z.double() for z in noise])
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4)
    half = plan.run(lambda x, t: [p.bfloat16() for p in predict(x.float(), t)[:2]], x.bfloat16(), guidance=guidance,
                    noise=noise)  # fmt: skip
    assert float((half.double() - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_refusals() -> None:
    plan, x = PLANS["ddim"], start()

    def model(x: Tensor, t: Tensor) -> list[Tensor]:
        return predict(x, t)[:2]

    with pytest.raises(ValueError, match="guidance, guidance_scale: pass one or the other"):
        plan.run(model, x, guidance=G.CFG(3.0), guidance_scale=3.0)
    with pytest.raises(ValueError, match="it is guided already"):
        plan.guided(3.0).run(model, x, guidance=G.CFG(3.0))
    with pytest.raises(ValueError, match="got 2 predictions"):
        plan.run(model, x, guidance=G.NormBalanced())
    with pytest.raises(NotImplementedError, match="no gradient is defined"):
        plan.run(lambda x, t: [p.requires_grad_() for p in model(x, t)], x, guidance=G.RescaledCFG(3.0))
    with pytest.raises(ValueError, match="rows; at most 40 and 8 can be run"):
        PLANS["ddim, clipped"].guided(G.PerpNeg(7.0, (1.0, 1.0)))


def test_modes_are_seen() -> None:
    seen: list[str] = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    plan: Plan = PLANS["ddim"]
    x = start()
    step: Callable[..., Any] = plan.guided(G.RescaledCFG(3.0)).step
    with Spy():
        step(0, x, predict(x, plan.timesteps[0])[:2], inplace=True)
    assert sum("fastdiff" in name for name in seen) == 3
