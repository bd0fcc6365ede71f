# SPDX-License-Identifier: Apache-2.0
"""Plan: what a step does with its slots, guidance, noise, dtypes, compilation, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import planners, schedules
from fastdiff.planners import Plan
from fastdiff.planners._tables import Table, phi, x0_and_eps
from torch import Tensor

from tests.kit import oracles

LINEAR = schedules.linear()


def model(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x) * (1 - t.to(x.dtype) / 2000)


def pair(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(x), torch.sin(x) * (1 - t.to(x.dtype) / 2000)


def sample(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape or (2, 3, 5), generator=torch.Generator().manual_seed(0)).to(dtype)


def ring_plan() -> Plan:
    """Four steps of a made-up solver: a ring of three, x carried on as "base"; the last step reads all."""
    inputs, rows = ("x", "prediction", "base", "m1", "m2", "m3"), ("m0", "x'")
    history = {"base": 0.1, "m1": 0.2, "m2": 0.3, "m3": 0.4}
    table = Table(4, inputs, rows)
    for i in range(4):
        table.set(i, "m0", {"x": 0.5, "prediction": -0.25 - i})
        table.set(i, "x'", {"x": 0.3, "m0": 0.7} | (history if i == 3 else {}))
    return Plan(
        solver="ring",
        table=table.data,
        timesteps=torch.arange(4),
        alphas=torch.ones(5, dtype=torch.float64),
        sigmas=torch.linspace(1, 0, 5, dtype=torch.float64),
        inputs=inputs,
        rows=rows,
        carry={"x": "x'", "base": "x", "m1": "m0", "m2": "m1", "m3": "m2"},
        prediction="epsilon",
        order=3,
    )


# ---- what a plan shows -------------------------------------------------------------------------------------


def test_print_is_readable() -> None:
    assert str(planners.dpm_solver_pp(LINEAR, 4)).splitlines() == [
        "dpm_solver_pp: 4 steps, order 2, prediction epsilon",
        "step 0  t=999  d = x − 0.99998 ε;  x0 = 157.41 d;  dx = −0.0016565 x + 0.051542 x0;  x ← x + dx",
        "step 1  t=749  d = x − 0.99832 ε;  x0 = 17.276 d;  dx = −0.038073 x + 0.30458 x0 − 0.081338 m1;  x ← x + dx",
        "step 2  t=500  d = x − 0.96031 ε;  x0 = 3.5853 d;  dx = −0.27962 x + 0.72804 x0 − 0.20688 m1;  x ← x + dx",
        "step 3  t=250  d = x − 0.69179 ε;  x0 = 1.3849 d;  dx = 0;  x ← x0",
    ]
    assert str(planners.ddim(LINEAR, 2, eta=1.0, clip_sample=1.0).guided(7.5)).splitlines()[1] == (
        "step 0  t=500  d = x + 6.242 ε_u − 7.2024 ε_c;  x0 = clamp(3.5853 d, −1, 1);  cut = 3.5853 d − x0;  dx = 0;  "
        "x ← 3.0247e−05 x + 0.99994 x0 − 8.4364e−06 cut + 0.01 z"
    )
    assert str(planners.euler(schedules.flow(3.0), 3)).splitlines()[1:] == [
        "step 0  t=1000     x ← x − 0.24888 u",
        "step 1  t=751.121  x ← x − 0.74219 u",
        "step 2  t=8.92857  x ← x − 0.0089286 u",
    ]
    assert (
        repr(planners.ddim(LINEAR, 2))
        == "Plan(ddim, 2 steps, inputs ('x', 'prediction'), rows ('d', 'x0', 'dx', \"x'\"))"
    )


# ---- exactness ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize("make", [planners.ddim, planners.dpm_solver_pp])
def test_the_end_is_x0_exactly(make: Any, kind: str) -> None:
    """At sigma = 0 the last row is 1 x0 and nothing else: no expm1 of infinity, no rounding."""
    for steps in (1, 2, 7):
        plan = make(LINEAR, steps, prediction=kind)
        last = dict(zip((*plan.inputs, *plan.rows), plan.table[-1, -1].tolist(), strict=False))
        assert {name: c for name, c in last.items() if c} == {"x0": 1.0}


def test_one_flow_step() -> None:
    x = sample()
    y = planners.euler(schedules.flow(), 1).run(lambda x, t: torch.full_like(x, 0.25), x)
    assert torch.equal(y, x - 0.25)


def test_phi_matches_its_taylor_series() -> None:
    for k in (1, 2, 3, 4):
        for z in (-3.0, -0.999, -1e-3, -1e-9, 0.0, 1e-5, 0.7, 2.5):
            series = math.fsum(z**n / math.factorial(n + k) for n in range(60))
            assert phi(k, z) == pytest.approx(series, rel=1e-13)


@pytest.mark.parametrize("kind", ["epsilon", "x0", "v", "flow"])
@pytest.mark.parametrize("level", [(0.3, 0.95), (1.0, 4.0), (0.4, 0.6)])
def test_predictions_invert(kind: str, level: tuple[float, float]) -> None:
    x0, eps = torch.tensor(0.7, dtype=torch.float64), torch.tensor(-1.1, dtype=torch.float64)
    x = level[0] * x0 + level[1] * eps
    p = oracles.predict(kind, x, x0, *level)
    found = [a * x + b * p for a, b in x0_and_eps(kind, *level)]
    torch.testing.assert_close(torch.stack(found), torch.stack((x0, eps)), rtol=1e-13, atol=1e-13)


# ---- slots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_history_ring(inplace: bool) -> None:
    """Chains of slots hold what their definition says, whether steps are functional or write in place."""
    plan, x = ring_plan(), sample(dtype=torch.float64)
    expected = oracles.execute(plan, lambda x, i: model(x, torch.tensor(i)), x)
    state, history = x.clone(), None
    for i in range(4):
        state, history = plan.step(i, state, model(state, torch.tensor(i)), history, inplace=inplace)
    torch.testing.assert_close(state, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(plan.run(model, x), expected, rtol=1e-14, atol=1e-14)


def test_unset_history_is_not_read() -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 5), sample()
    y, history = plan.step(0, x, model(x, torch.tensor(999)), (torch.full_like(x, math.nan),))
    assert y.isfinite().all()
    assert history[0].isfinite().all()


def test_in_place_steps_reuse_their_buffers() -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 5), sample()
    history: Any = (torch.empty_like(x),)
    before = {x.data_ptr(), history[0].data_ptr()}
    for i in range(5):
        x, history = plan.step(i, x, model(x, torch.tensor(i)), history, inplace=True)
        assert {x.data_ptr(), history[0].data_ptr()} == before


def test_run_leaves_x_alone_and_shows_the_model_plain_scalars() -> None:
    x, seen = sample(), []
    kept = x.clone()

    def spy(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return model(x, t)

    plan = planners.dpm_solver_pp(LINEAR, 6)
    plan.run(spy, x)
    assert torch.equal(x, kept)
    assert [int(t) for t in seen] == plan.timesteps.tolist()
    assert all(t.shape == () and t.dtype == torch.int64 for t in seen)
    seen.clear()
    planners.euler(schedules.flow(), 3).run(spy, x)
    assert all(t.dtype == torch.float32 for t in seen)


# ---- guidance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [7.5, 1.0, 0.0, [1.0, 3.0, 5.0, 7.0, 9.0, 2.0]], ids=str)
def test_guidance_is_the_blend_then_the_step(scale: Any) -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 6), sample(dtype=torch.float64)
    scales = iter(scale if isinstance(scale, list) else [scale] * 6)

    def blended(x: Tensor, t: Tensor) -> Tensor:
        u, c = pair(x, t)
        return u + next(scales) * (c - u)

    expected = plan.run(blended, x)
    torch.testing.assert_close(plan.run(pair, x, guidance_scale=scale), expected, rtol=1e-11, atol=1e-11)


def test_guidance_of_one_does_not_read_uncond() -> None:
    plan, x = planners.ddim(LINEAR, 3), sample()

    def half_broken(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(x, math.nan), model(x, t)

    assert torch.equal(plan.run(half_broken, x, guidance_scale=1.0), plan.run(model, x))


# ---- noise -------------------------------------------------------------------------------------------------


def test_seeds() -> None:
    plan, x = planners.ddim(LINEAR, 8, eta=1.0), sample(4, 6)
    assert plan.noisy == (True,) * 7 + (False,)
    assert torch.equal(plan.run(model, x, seed=3), plan.run(model, x, seed=3))
    assert not torch.equal(plan.run(model, x, seed=3), plan.run(model, x, seed=4))
    torch.manual_seed(5)
    drawn = plan.run(model, x)
    torch.manual_seed(5)
    assert torch.equal(drawn, plan.run(model, x))
    # one seed per sample: a sample does not depend on its batch
    batch = plan.run(model, x, seed=[1, 2, 3, 4])
    assert torch.equal(batch[2:3], plan.run(model, x[2:3], seed=[3]))
    # a deterministic plan draws nothing
    state = torch.get_rng_state()
    planners.ddim(LINEAR, 3).run(model, x)
    assert torch.equal(state, torch.get_rng_state())


def test_explicit_noise_takes_the_place_of_z() -> None:
    plan, x = planners.ddim(LINEAR, 6, eta=0.7), sample(dtype=torch.float64)
    noise = [sample(*x.shape, dtype=torch.float64) * (i + 1) for i in range(sum(plan.noisy))]
    expected = oracles.execute(plan, lambda x, i: model(x, plan.timesteps[i]), x, noise)
    torch.testing.assert_close(plan.run(model, x, noise=noise), expected, rtol=1e-12, atol=1e-12)


def test_generated_noise_is_standard_normal() -> None:
    plan = planners.ddim(LINEAR, 2, eta=1.0)
    x = torch.zeros(100_000)
    y, _ = plan.step(0, x, x, seed=0)
    std = float(plan.table[0, -1, -3])
    assert float(y.std()) == pytest.approx(std, rel=0.02)
    assert float(y.mean()) == pytest.approx(0, abs=0.02)


# ---- dtypes, modes, devices --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 6), sample(dtype=dtype)
    y = plan.run(lambda x, t: model(x.float(), t), x)  # a prediction of another dtype
    assert y.dtype == dtype
    assert y.isfinite().all()
    state, history = plan.step(0, x, x)
    assert (state.dtype, history[0].dtype) == (dtype, dtype)
    wide = plan.keep_history_in(torch.float32).step(0, x, x)[1]
    assert wide[0].dtype == torch.float32


def test_half_precision_keeps_a_float32_state() -> None:
    plan, x, seen = planners.dpm_solver_pp(LINEAR, 50), sample(4, 64, dtype=torch.bfloat16), []

    def spy(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.dtype)
        return model(x, t)

    exact = plan.run(model, x.double())
    wide = oracles.relative_error(plan.run(spy, x), exact)
    lean = oracles.relative_error(plan.run(spy, x, state_dtype=torch.bfloat16), exact)
    assert set(seen) == {torch.bfloat16}
    assert wide < lean


def test_inference_mode_first_then_gradients() -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 3), sample(2, 3, dtype=torch.float64)
    with torch.inference_mode():
        inferred = plan.run(model, x)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    y = plan.run(lambda x, t: model(x, t) * scale, x)
    torch.testing.assert_close(y.detach(), inferred.clone())
    assert torch.autograd.gradcheck(lambda s: plan.run(lambda x, t: model(x, t) * s, x), (scale,))


def test_one_graph_for_all_steps() -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 6).guided(4.0), sample()
    graphs = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    step = torch.compile(lambda i, x, p, h: plan.step(i, x, p, h), fullgraph=True, backend=count)
    expected = plan.run(pair, x)
    history = (torch.empty_like(x),)
    with torch.no_grad():
        for i, t in enumerate(plan.timesteps):
            x, history = step(torch.tensor(i), x, pair(x, t), history)
    assert torch.equal(x, expected)
    assert len(graphs) == 1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("inplace", [False, True])
def test_compiles_from_the_first_step_on(inplace: bool, layout: torch.memory_format) -> None:
    """No history yet, an index that is a number, any layout: one graph without breaks, the same bits."""
    plan = planners.dpm_solver_pp(schedules.linear(), 5).guided(3.0)
    x = torch.randn(2, 3, 4, 4).to(memory_format=layout)
    pair_of = [torch.randn_like(x) for _ in range(2)]

    def two_steps(x: torch.Tensor) -> torch.Tensor:
        y, history = plan.step(0, x.clone(), pair_of, inplace=inplace)
        return plan.step(1, y, pair_of, history, inplace=inplace)[0]

    with torch.no_grad():
        expected = two_steps(x)
        assert torch.equal(torch.compile(two_steps, fullgraph=True)(x), expected)


def test_a_whole_run_compiles() -> None:
    plan = planners.dpm_solver_pp(schedules.linear(), 4)
    x = torch.randn(2, 3, 4, 4)
    run = torch.compile(lambda x: plan.run(lambda x, t: 0.5 * x, x), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(run(x), plan.run(lambda x, t: 0.5 * x, x))


def test_autograd_notices_a_step_in_place() -> None:
    plan = planners.euler(schedules.flow(), 4)
    weight, x = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    loss = (weight * x).sum()
    plan.step(0, x, torch.randn(2, 3), inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_guidance_scales_of_any_number_type() -> None:
    plan = planners.dpm_solver_pp(schedules.linear(), 3)
    want = plan.guided(3.0).table
    for scale in (3, np.float32(3), torch.tensor(3.0), [3.0, 3, np.float64(3)]):
        assert torch.equal(plan.guided(scale).table, want)


def test_plans_copy_and_pickle_after_use() -> None:
    plan, x = planners.dpm_solver_pp(LINEAR, 3), sample()
    y = plan.run(pair, x, guidance_scale=2.0)
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert torch.equal(other.run(pair, x, guidance_scale=2.0), y)


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: planners.dpm_solver_pp(LINEAR, 5, order=4), "order: expected 1, 2 or 3, got 4"),
        (lambda: planners.dpm_solver_pp(LINEAR, 5, solver_type="bh1"), "solver_type"),  # type: ignore[arg-type]
        (lambda: planners.ddim(LINEAR, 5, prediction="noise"), "prediction: expected one of epsilon"),
        (lambda: planners.ddim(LINEAR, 5, eta=1.5), "eta"),
        (lambda: planners.ddim(LINEAR, 5, clip_sample=-1.0), "clip_sample"),
        (lambda: planners.ddim(LINEAR, 0), "steps"),
        (lambda: planners.dpm_solver_pp(LINEAR, 1000), "noise levels must decrease"),
        (lambda: planners.euler(schedules.flow(), 5, prediction="epsilon"), "undetermined where alpha = 0"),
        (lambda: planners.ddim(LINEAR, 5).guided([1.0, 2.0]), "expected one number or 5"),
        (lambda: planners.ddim(LINEAR, 5).guided(2.0).guided(2.0), "guided already"),
        (lambda: planners.ddim(LINEAR, 5).run(pair, sample()), "got 2 predictions"),
        (lambda: planners.ddim(LINEAR, 5).run(model, sample(), guidance_scale=2.0), "got 1 predictions"),
        (lambda: planners.ddim(LINEAR, 5).run(model, sample(), noise=[sample()]), "noise: expected 0"),
        (
            lambda: planners.ddim(LINEAR, 5, eta=1.0).run(model, sample(), noise=[], seed=1),
            "one or the other",
        ),
        (lambda: planners.ddim(LINEAR, 5, eta=1.0).step(0, sample(), sample()), "pass seed or noise"),
    ],
)
def test_refused_values(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_refused_indices_and_types() -> None:
    plan, x = planners.ddim(LINEAR, 5), sample()
    for i in (-1, 5):
        with pytest.raises(IndexError, match="outside 0"):
            plan.step(i, x, x)
    with pytest.raises(TypeError, match="int32"):
        plan.step(0, x.int(), x)
    with pytest.raises(TypeError, match="seed"):
        planners.ddim(LINEAR, 5, eta=1.0).step(0, x, x, seed=torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carry": {"x": "x'"}}, "every history slot"),
        ({"carry": {"x": "x'", "m1": "prediction"}}, "rows and state slots"),
        ({"carry": {"x": "x'", "m1": "x'"}}, "each once"),
        ({"inputs": ("x", "prediction", "x0")}, "distinct"),
        ({"table": torch.zeros(3, 2, 7)}, "float64 table"),
        ({"table": torch.full((3, 4, 10), math.nan, dtype=torch.float64)}, "finite"),
        ({"alphas": torch.zeros(3)}, r"\[S\+1\]"),
    ],
)
def test_plans_that_do_not_fit_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(planners.dpm_solver_pp(LINEAR, 3), **change)
