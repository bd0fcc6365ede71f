# SPDX-License-Identifier: Apache-2.0
"""FrequencyDecoupled against the paper's algorithm in float64, and against diffusers' guider with kornia."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastdiff import guidance as G
from fastdiff import laplacian_merge, laplacian_split, planners, schedules
from fastdiff.wavelet.laplacian_merge import reference as merge_reference
from fastdiff.wavelet.laplacian_split import reference as split_reference
from torch import Tensor

from tests.kit import guidance as want
from tests.kit.compare import ROUNDOFF, assert_close

F64 = torch.float64
DTYPES = [torch.float32, torch.float16, torch.bfloat16, F64]


def predictions(
    *shape: int, dtype: torch.dtype = F64, spread: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(c, u)"""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(shape, generator=g, dtype=F64)
    return (u + spread * torch.randn(shape, generator=g, dtype=F64)).to(dtype), u.to(dtype)


def definition(
    c: Tensor,
    u: Tensor,
    scales: tuple[float, ...],
    *,
    etas: tuple[float, ...] | None = None,
    phis: tuple[float, ...] | None = None,
    phi: float = 0.0,
    from_cond: bool = False,
    on: tuple[bool, ...] | None = None,
) -> Tensor:
    """Algorithm 2 of the paper, with diffusers' options; float64."""
    count = len(scales)
    guided = []
    for n, (cl, ul) in enumerate(zip(split_reference(c, count), split_reference(u, count), strict=True)):
        if on is not None and not on[n]:
            guided.append(cl)
            continue
        band = want.apg(cl, ul, scales[n], 1.0 if etas is None else etas[n], 0.0, from_cond=from_cond)
        guided.append(want.rescale(band, cl, phis[n]) if phis is not None and phis[n] else band)
    image = merge_reference(guided)
    return want.rescale(image, c, phi) if phi else image


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # ours, the definition's, diffusers'
    "two bands": ({}, {}, {}),
    "from c": ({"from_cond": True}, {"from_cond": True}, {"use_original_formulation": True}),
    "rescaled": ({"rescale": 0.7}, {"phi": 0.7}, {"guidance_rescale": 0.7}),
    "projected": (
        {"parallel_weights": 0.3}, {"etas": (0.3, 0.3, 0.3)}, {"parallel_weights": 0.3}),
    "projected in one band, from c": (
        {"parallel_weights": (0.4, 1.0, 1.0), "from_cond": True}, {"etas": (0.4, 1.0, 1.0), "from_cond": True},
        {"parallel_weights": (0.4, 1.0, 1.0), "use_original_formulation": True}),
    "projected and rescaled": (
        {"parallel_weights": 0.5, "rescale": 0.4}, {"etas": (0.5, 0.5, 0.5), "phi": 0.4},
        {"parallel_weights": 0.5, "guidance_rescale": 0.4}),
    "rescaled in each band": (
        {"rescale": (0.7, 0.0, 0.3), "rescale_space": "freq"}, {"phis": (0.7, 0.0, 0.3)},
        {"guidance_rescale": (0.7, 0.0, 0.3), "guidance_rescale_space": "freq"}),
    "projected and rescaled in each band": (
        {"parallel_weights": (0.5, 1.0, 0.0), "rescale": 0.6, "rescale_space": "freq"},
        {"etas": (0.5, 1.0, 0.0), "phis": (0.6, 0.6, 0.6)},
        {"parallel_weights": (0.5, 1.0, 0.0), "guidance_rescale": 0.6, "guidance_rescale_space": "freq"}),
}  # fmt: skip
each_method = pytest.mark.parametrize("name", METHODS)
SCALES = (10.0, 5.0, 2.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 16, 32), (2, 3, 13, 18)], ids=["even", "odd"])
@each_method
def test_equals_the_definition(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ours, theirs, _ = METHODS[name]
    c, u = predictions(*shape, dtype=dtype)
    expected = definition(c.double(), u.double(), SCALES, **theirs)
    magnitude = 4 * float(expected.abs().max())
    got = G.FrequencyDecoupled(SCALES, **ours)(c, u)
    assert_close(got, expected.to(dtype), scale=magnitude, terms=24, what=f"{name}, {dtype}")


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_split_of_the_difference_is_two_splits(count: int) -> None:
    """What is linear, computed as it is defined: both predictions split, each band guided, one merge."""
    c, u = predictions(2, 3, 32, 32)
    scales = (9.0, 1.0, 5.5, 2.0, 0.5)[:count]
    guidance = G.FrequencyDecoupled(scales)
    assert guidance.is_linear
    bands = zip(laplacian_split(c, count), laplacian_split(u, count), scales, strict=True)
    expected = laplacian_merge([want.cfg(cl, ul, s) for cl, ul, s in bands])
    torch.testing.assert_close(guidance(c, u), expected, rtol=1e-13, atol=1e-13)
    by_bands = G.Banded(lambda x: laplacian_split(x, count), laplacian_merge, guidance.guidances)
    torch.testing.assert_close(guidance(c, u), by_bands(c, u), rtol=1e-13, atol=1e-13)


def test_equal_scales_are_cfg() -> None:
    c, u = predictions(2, 4, 24, 20)
    torch.testing.assert_close(
        G.FrequencyDecoupled((7.5, 7.5))(c, u), want.cfg(c, u, 7.5), rtol=1e-13, atol=1e-13
    )


def test_the_first_scale_is_that_of_the_finest_band() -> None:
    """A constant is in the coarsest band alone, a checkerboard in the finest one alone."""
    u = torch.zeros(1, 1, 16, 16, dtype=F64)
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    guidance = G.FrequencyDecoupled((10.0, 5.0))
    torch.testing.assert_close(guidance(u + 1, u), 5 * (u + 1))
    torch.testing.assert_close(guidance(u + checks, u)[..., 4:12, 4:12], 10 * (u + checks)[..., 4:12, 4:12])


@each_method
def test_any_layout(name: str) -> None:
    c, u = predictions(2, 4, 12, 16)
    guidance = G.FrequencyDecoupled(SCALES, **METHODS[name][0])
    expected = guidance(c, u)
    for change in (
        lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT,
        lambda x: x.repeat_interleave(2, 3)[..., ::2],
    ):  # fmt: skip
        before = change(c).clone(), change(u).clone()
        given = change(c), change(u)
        torch.testing.assert_close(guidance(*given), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(given[0], before[0]) and torch.equal(given[1], before[1])


# ---- diffusers -------------------------------------------------------------------------------------------------


def diffusers_guider(**options: Any) -> Any:
    pytest.importorskip("kornia")
    guiders = pytest.importorskip("diffusers").guiders
    guider = guiders.FrequencyDecoupledGuidance(guidance_scales=list(SCALES), **options)
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(0))
    return guider


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 3, 32, 8), (2, 2, 64, 12)], ids=str)
@each_method
def test_equals_diffusers(name: str, shape: tuple[int, ...]) -> None:
    """Sizes that kornia does not pad: one side is a power of two, both are multiples of 4."""
    c, u = predictions(*shape)
    expected = diffusers_guider(**METHODS[name][2]).forward(c, u).pred
    got = G.FrequencyDecoupled(SCALES, **METHODS[name][0])(c, u)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spread", [0.5, 0.05, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_method
def test_is_at_least_as_close_as_diffusers(name: str, dtype: torch.dtype, spread: float) -> None:
    ours, theirs, options = METHODS[name]
    guidance, guider = G.FrequencyDecoupled(SCALES, **ours), diffusers_guider(**options)
    our_error, their_error, size = 0.0, 0.0, 0.0
    for seed in range(3):
        c, u = predictions(2, 4, 32, 32, dtype=dtype, spread=spread, seed=seed)
        expected = definition(c.double(), u.double(), SCALES, **theirs)
        our_error += float((guidance(c, u).double() - expected).square().sum())
        their_error += float((guider.forward(c, u).pred.double() - expected).square().sum())
        size += float(expected.square().sum())
    limit = 1.05 * math.sqrt(their_error) + 1e-3 * ROUNDOFF[dtype] * math.sqrt(size)
    assert math.sqrt(our_error) <= limit, (
        f"{name}: {math.sqrt(our_error / size):.3g}, diffusers {math.sqrt(their_error / size):.3g}"
    )


def test_sizes_that_diffusers_pads_keep_their_size() -> None:
    c, u = predictions(1, 4, 26, 38)
    assert diffusers_guider().forward(c, u).pred.shape == (1, 4, 32, 64)
    assert G.FrequencyDecoupled(SCALES)(c, u).shape == c.shape


@pytest.mark.parametrize("options", [{}, {"rescale": 0.5}, {"parallel_weights": 0.5}], ids=str)
def test_intervals_are_those_of_diffusers(options: dict[str, Any]) -> None:
    c, u = predictions(2, 3, 8, 8)
    renamed = {{"rescale": "guidance_rescale"}.get(k, k): v for k, v in options.items()}
    guider = diffusers_guider(start=0.2, stop=0.7, **renamed)
    guidance = G.FrequencyDecoupled(SCALES, start=0.2, stop=0.7, **options)
    for steps in (7, 10):
        for step in range(steps):
            guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(0))
            torch.testing.assert_close(
                guidance(c, u, step=step, steps=steps), guider.forward(c, u).pred, rtol=1e-12, atol=1e-12
            )


# ---- intervals and what is off ---------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_an_interval_per_band(eta: float) -> None:
    c, u = predictions(2, 3, 16, 8)
    guidance = G.FrequencyDecoupled(
        SCALES, parallel_weights=eta, start=(0.0, 0.25, 0.5), stop=(1.0, 0.5, 0.75)
    )
    for step, on in enumerate(
        [(True, False, False), (True, True, False), (True, False, True), (True, False, False)]
    ):
        expected = definition(c, u, SCALES, etas=(eta,) * 3, on=on)
        torch.testing.assert_close(guidance(c, u, step=step, steps=4), expected, rtol=1e-12, atol=1e-12)


def test_what_is_off_is_not_read() -> None:
    c, u = predictions(2, 3, 8, 8, dtype=torch.float32)
    unset = torch.full_like(u, math.nan)
    for options in ({}, {"rescale": 0.5}, {"parallel_weights": 0.5}):
        for guidance in (
            G.FrequencyDecoupled(start=0.5, **options), G.FrequencyDecoupled((1.0, 1.0), **options),
            G.FrequencyDecoupled((0.0, 0.0), from_cond=True, **options),
        ):  # fmt: skip
            result = guidance(c, unset, step=0, steps=2)
            assert torch.equal(result, c)
            assert result.data_ptr() != c.data_ptr()


def test_mixed_dtypes() -> None:
    c, u = predictions(2, 3, 8, 8)
    for a, b in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, F64)):
        for options, reference in (({}, {}), ({"parallel_weights": 0.5}, {"etas": (0.5,) * 3})):
            expected = definition(c.to(a).double(), u.to(b).double(), SCALES, **reference)
            got = G.FrequencyDecoupled(SCALES, **options)(c.to(a), u.to(b))
            assert_close(got, expected.to(a), scale=4 * float(expected.abs().max()), terms=24)


# ---- runs ------------------------------------------------------------------------------------------------------


def network(x: Tensor, t: Tensor, branch: Tensor, _: Tensor) -> Tensor:
    return 0.8 * torch.tanh((1 + 0.3 * branch.reshape(-1, 1, 1, 1)) * x)


def model(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    everyone = torch.zeros(len(x), dtype=torch.int64)
    return network(x, t, everyone, everyone), network(x, t, everyone + 1, everyone)


@pytest.mark.parametrize("options", [{}, {"parallel_weights": 0.5, "rescale": 0.3}], ids=str)
def test_a_run_of_a_plan(options: dict[str, Any]) -> None:
    guidance = G.FrequencyDecoupled((6.0, 3.0), stop=(1.0, 0.6), **options)
    plan = planners.dpm_solver_pp(schedules.scaled_linear(), 6)
    x = predictions(2, 3, 10, 8)[0]
    calls = iter(range(plan.steps))

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u, c = model(x, t)
        return guidance(c, u, step=next(calls), steps=plan.steps)

    expected = plan.run(guided, x)
    torch.testing.assert_close(plan.run(model, x, guidance=guidance), expected, rtol=0, atol=0)
    torch.testing.assert_close(plan.run(G.Rows(network), x, guidance=guidance), expected, rtol=0, atol=0)


def test_compiles_in_one_graph() -> None:
    c, u = predictions(2, 2, 8, 8, dtype=torch.float32)
    for options in ({}, {"rescale": 0.5}, {"parallel_weights": 0.5}):
        guidance = G.FrequencyDecoupled(SCALES, **options)
        compiled = torch.compile(lambda c, u, g=guidance: g(c, u), backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(c, u), guidance(c, u))
    torch._dynamo.reset()


REFUSALS: list[tuple[str, Callable[[], Any], str]] = [
    ("one scale", lambda: G.FrequencyDecoupled((3.0,)), "at least two scales, got 1"),
    ("weights", lambda: G.FrequencyDecoupled(parallel_weights=(1.0,)),
     "parallel_weights must be one number or 2 of them, got 1"),
    ("start", lambda: G.FrequencyDecoupled(start=(0.0, 0.1, 0.2)), "start must be one number or 2 of them, got 3"),
    ("rescale per band", lambda: G.FrequencyDecoupled(rescale=(0.5, 0.5)), "rescale must be one number unless"),
    ("rescale", lambda: G.FrequencyDecoupled(rescale=1.5), r"rescale must be in 0 \.\.\. 1, got 1\.5"),
    ("space", lambda: G.FrequencyDecoupled(rescale_space="image"), 'must be "data" or "freq", got \'image\''),
    ("mode", lambda: G.FrequencyDecoupled(mode="zero"), "options of wavelets"),
    ("too many", lambda: G.FrequencyDecoupled()(*predictions(1, 4, 4), predictions(1, 4, 4)[0]),
     "expected 2 predictions"),
    ("step", lambda: G.FrequencyDecoupled()(*predictions(1, 4, 4), step=4, steps=4), r"step 4 is outside 0 \.\.\. 3"),
    ("no image", lambda: G.FrequencyDecoupled()(*predictions(4)), "must have at least 2 dimensions"),
    ("gradients", lambda: G.FrequencyDecoupled()(*(x.requires_grad_() for x in predictions(1, 4, 4))),
     "no gradient is defined"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
