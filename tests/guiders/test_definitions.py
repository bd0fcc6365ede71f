# SPDX-License-Identifier: Apache-2.0
"""Every method, called on predictions, against the paper's formula in float64; and against diffusers' guiders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastdiff import guidance as G
from torch import Tensor

from tests.kit import guidance as want
from tests.kit.compare import ROUNDOFF, assert_close

F64 = torch.float64
DTYPES = [torch.float32, torch.float16, torch.bfloat16, F64]
Definition = Callable[..., Tensor]


def predictions(
    count: int, *shape: int, dtype: torch.dtype = F64, spread: float = 0.3, seed: int = 0
) -> list[Tensor]:
    """u, c and more around u: c first, as guidances are called."""
    g = torch.Generator().manual_seed(seed)
    u = torch.randn(shape, generator=g, dtype=F64)
    others = [u + spread * torch.randn(shape, generator=g, dtype=F64) for _ in range(count - 1)]
    c, *rest = others
    return [x.to(dtype) for x in (c, u, *rest)]


METHODS: dict[str, tuple[G.Guidance, int, Definition]] = {
    "CFG": (G.CFG(7.3), 2, lambda c, u: want.cfg(c, u, 7.3)),
    "CFG from c": (G.CFG(7.3, from_cond=True), 2, lambda c, u: want.cfg(c, u, 7.3, True)),
    "CFG, channels": (
        G.CFG(4.1, channels=(0, 3)), 2,
        lambda c, u: torch.cat((want.cfg(c, u, 4.1)[:, :3], c[:, 3:]), 1)),
    "RescaledCFG": (G.RescaledCFG(7.3), 2, lambda c, u: want.rescale(want.cfg(c, u, 7.3), c, 0.7)),
    "RescaledCFG from c": (
        G.RescaledCFG(7.3, 1.0, from_cond=True), 2,
        lambda c, u: want.rescale(want.cfg(c, u, 7.3, True), c, 1.0)),
    "APG": (G.APG(7.3, eta=0.3, norm_threshold=5.0), 2, lambda c, u: want.apg(c, u, 7.3, 0.3, 5.0)),
    "APG unlimited": (G.APG(3.1, eta=0.0, norm_threshold=0), 2, lambda c, u: want.apg(c, u, 3.1, 0.0, 0.0)),
    "APG from c, rescaled": (
        G.APG(7.3, eta=-0.5, from_cond=True, rescale=0.4), 2,
        lambda c, u: want.rescale(want.apg(c, u, 7.3, -0.5, 15.0, from_cond=True), c, 0.4)),
    "CFGZeroStar": (G.CFGZeroStar(7.3, zero_init_steps=0), 2, lambda c, u: want.zero_star(c, u, 7.3)),
    "CFGZeroStar from c": (
        G.CFGZeroStar(7.3, zero_init_steps=0, from_cond=True), 2, lambda c, u: want.zero_star(c, u, 7.3, True)),
    "TCFG": (G.TCFG(7.3), 2, lambda c, u: want.tangential(c, u, 7.3)),
    "TCFG from c, rescaled": (
        G.TCFG(7.3, from_cond=True, rescale=0.3), 2,
        lambda c, u: want.rescale(want.tangential(c, u, 7.3, True), c, 0.3)),
    "MagnitudeAware": (G.MagnitudeAware(10.0, alpha=8.0), 2, lambda c, u: want.magnitude_aware(c, u, 10.0, 8.0)),
    "MagnitudeAware from c": (
        G.MagnitudeAware(7.3, alpha=2.0, from_cond=True), 2,
        lambda c, u: want.magnitude_aware(c, u, 7.3, 2.0, True)),
    "NormBalanced": (G.NormBalanced(7.3), 3, lambda c, u, g: want.norm_balanced(c, u, g, 7.3, 0.33, 3.0)),
    "NormBalanced, stylisation": (
        G.NormBalanced.stylisation(7.3), 3, lambda c, u, g: want.norm_balanced(c, u, g, 7.3, 1.5, 1.5)),
    "PerpNeg": (G.PerpNeg(7.3, 1.5), 3, lambda c, u, n: want.perpendicular(c, u, [n], 7.3, [1.5])),
    "PerpNeg of two": (
        G.PerpNeg(7.3, (1.5, 0.4), rescale=0.2), 4,
        lambda c, u, n, m: want.rescale(want.perpendicular(c, u, [n, m], 7.3, [1.5, 0.4]), c, 0.2)),
    "Perturbed": (G.Perturbed(7.3, 2.8), 3, lambda c, u, k: u + 7.3 * (c - u) + 2.8 * (c - k)),
    "Perturbed, rescaled": (
        G.Perturbed(7.3, 2.8, rescale=0.7), 3,
        lambda c, u, k: want.rescale(u + 7.3 * (c - u) + 2.8 * (c - k), c, 0.7)),
    "Perturbed alone": (G.Perturbed(1.0, 2.8), 3, lambda c, u, k: k + 2.8 * (c - k)),
    "Perturbed alone, rescaled": (
        G.Perturbed(1.0, 2.8, rescale=0.7), 3, lambda c, u, k: want.rescale(k + 2.8 * (c - k), c, 0.7)),
    "Compose of two": (G.Compose([7.3, -2.1]), 3, lambda c, u, e: u + 7.3 * (c - u) - 2.1 * (e - u)),
    "Compose of four": (
        G.Compose([3.3, -2.1, 0.4, 1.7]), 5,
        lambda c, u, e, f, h: u + 3.3 * (c - u) - 2.1 * (e - u) + 0.4 * (f - u) + 1.7 * (h - u)),
    "InstructPix2Pix": (
        G.Compose.instruct_pix2pix(7.3, 1.6), 3, lambda c, u, i: u + 1.6 * (i - u) + 7.3 * (c - i)),
    "Guardians of Generation": (
        G.Compose.guardians(3.1, 0.7), 3, lambda c, u, s: (1 - 3.1) * u + 3.1 * 0.7 * c + 3.1 * 0.3 * s),
    "AdaptiveGuidance below": (G.AdaptiveGuidance(7.3, 0.99), 2, lambda c, u: want.cfg(c, u, 7.3)),
    "AdaptiveGuidance above": (G.AdaptiveGuidance(7.3, 0.9), 2, lambda c, u: c),
    "CFGPlusPlus": (G.CFGPlusPlus(0.6), 2, lambda c, u: want.cfg(c, u, 0.6)),
}  # fmt: skip
each_method = pytest.mark.parametrize("name", METHODS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_method
def test_equals_the_definition(name: str, dtype: torch.dtype) -> None:
    guidance, count, definition = METHODS[name]
    given = predictions(count, 3, 4, 9, 11, dtype=dtype)
    guidance.reset()
    expected = definition(*(x.double() for x in given))
    # The oracle of TCFG is a singular value decomposition, good to some hundred roundoffs.
    terms = 1024 if "TCFG" in name and dtype == F64 else 16
    magnitude = max(float(expected.abs().max()), *(float(x.double().abs().max()) for x in given))
    assert_close(guidance(*given), expected.to(dtype), scale=magnitude, terms=terms, what=f"{name}, {dtype}")


@each_method
def test_any_layout_and_rank(name: str) -> None:
    guidance, count, definition = METHODS[name]
    for given in (
        [x.to(memory_format=torch.channels_last) for x in predictions(count, 2, 4, 6, 5)],
        [x[:, :, ::2] for x in predictions(count, 2, 4, 9)],
        predictions(count, 3, 50),
    ):
        guidance.reset()
        if "channels" in name and given[0].dim() == 2:
            continue  # 50 channels, no picture
        got, expected = guidance(*given), definition(*given)
        assert got.stride() == torch.empty_like(given[1]).stride()
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_samples_do_not_see_each_other() -> None:
    given = predictions(3, 4, 3, 40, dtype=torch.float32)
    for name, (guidance, count, _) in METHODS.items():
        if "channels" in name:
            continue
        guidance.reset()
        together = guidance(*given[:count]) if count <= 3 else None
        if together is None:
            continue
        for b in range(4):
            guidance.reset()
            alone = guidance(*(x[b : b + 1] for x in given[:count]))
            assert torch.equal(alone[0], together[b]), name


def test_nearly_parallel_predictions_keep_their_digits() -> None:
    """|c - u|^2 to 1e-6 at a cosine of 0.9999995, where 1 - cos is 8 roundoffs."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(2, 4, 128, 128, generator=g, dtype=F64)
    c = u + 1e-3 * torch.randn(u.shape, generator=g, dtype=F64)
    u, c = u.float(), c.float()
    stats = G.guidance_stats(u, c)
    d = c.double() - u.double()
    cosine = want.cosine(c.double(), u.double())
    assert bool((cosine > 0.9999994).all())
    relative = (stats[:, 4] - want.dot(d, d).flatten()).abs() / want.dot(d, d).flatten()
    assert float(relative.max()) < 1e-6
    assert float((G.cosine(stats) - cosine).abs().max()) < 1e-7
    expected = want.rescale(want.cfg(c.double(), u.double(), 7.5), c.double(), 0.7)
    assert float((G.RescaledCFG()(c, u) - expected).abs().max()) < 1e-6


# ---- diffusers -------------------------------------------------------------------------------------------------

PEERS: dict[str, tuple[str, dict[str, Any], G.Guidance, int, Definition]] = {
    "CFG": ("ClassifierFreeGuidance", {"guidance_scale": 7.3}, *METHODS["CFG"]),
    "CFG from c": (
        "ClassifierFreeGuidance", {"guidance_scale": 7.3, "use_original_formulation": True}, *METHODS["CFG from c"]),
    "rescale": (
        "ClassifierFreeGuidance", {"guidance_scale": 7.3, "guidance_rescale": 0.7}, *METHODS["RescaledCFG"]),
    "APG": (
        "AdaptiveProjectedGuidance",
        {"guidance_scale": 7.3, "eta": 0.3, "adaptive_projected_guidance_rescale": 5.0}, *METHODS["APG"]),
    "APG from c, rescaled": (
        "AdaptiveProjectedGuidance",
        {"guidance_scale": 7.3, "eta": -0.5, "use_original_formulation": True, "guidance_rescale": 0.4},
        *METHODS["APG from c, rescaled"]),
    "CFGZeroStar": (
        "ClassifierFreeZeroStarGuidance", {"guidance_scale": 7.3, "zero_init_steps": 0}, *METHODS["CFGZeroStar"]),
    "TCFG": ("TangentialClassifierFreeGuidance", {"guidance_scale": 7.3}, *METHODS["TCFG"]),
    "MagnitudeAware": ("MagnitudeAwareGuidance", {"guidance_scale": 10.0, "alpha": 8.0}, *METHODS["MagnitudeAware"]),
    "Perturbed": (
        "SkipLayerGuidance",
        {"guidance_scale": 7.3, "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0,
         "skip_layer_guidance_layers": [0]}, *METHODS["Perturbed"]),
}  # fmt: skip


@pytest.mark.parametrize("spread", [0.5, 0.05, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PEERS)
def test_is_at_least_as_close_as_diffusers(name: str, dtype: torch.dtype, spread: float) -> None:
    """Root mean square error against float64, over several draws; diffusers 0.42's guiders as they are."""
    guiders = pytest.importorskip("diffusers").guiders
    peer, options, guidance, count, definition = PEERS[name]
    theirs, ours, scale = 0.0, 0.0, 0.0
    for seed in range(3):
        # MagnitudeAwareGuidance takes a matrix norm, which torch has for two dimensions
        shape = (2, 64, 64) if name == "MagnitudeAware" else (2, 4, 32, 32)
        given = predictions(count, *shape, dtype=dtype, spread=spread, seed=seed)
        expected = definition(*(x.double() for x in given))
        guider = getattr(guiders, peer)(**options)
        guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(0))
        theirs += float((guider.forward(*given).pred.double() - expected).square().sum())
        guidance.reset()
        ours += float((guidance(*given).double() - expected).square().sum())
        scale += float(expected.square().sum())
    # NOTE: where both do the same few roundings they are equally far off, one or the other by chance
    tie = 1.05
    assert math.sqrt(ours) <= tie * math.sqrt(theirs) + 1e-3 * ROUNDOFF[dtype] * math.sqrt(scale), (
        f"{name}: {math.sqrt(ours / scale):.3g}, diffusers {math.sqrt(theirs / scale):.3g}"
    )


def test_momentum_is_that_of_diffusers() -> None:
    guiders = pytest.importorskip("diffusers").guiders
    options = {"guidance_scale": 5.5, "eta": 0.2, "adaptive_projected_guidance_momentum": -0.5,
               "adaptive_projected_guidance_rescale": 4.0}  # fmt: skip
    guider = guiders.AdaptiveProjectedGuidance(**options)
    guidance = G.APG(5.5, eta=0.2, norm_threshold=4.0, momentum=-0.5)
    for generation in range(2):
        average = torch.zeros(2, 4, 8, 8, dtype=F64)
        for step in range(4):
            c, u = predictions(2, 2, 4, 8, 8, seed=10 * generation + step)
            guider.set_state(step=step, num_inference_steps=4, timestep=torch.tensor(0))
            guider.prepare_inputs({})
            average = c - u - 0.5 * average
            expected = want.apg(c, u, 5.5, 0.2, 4.0, average)
            got = guidance(c, u, step=step, steps=4)
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(guider.forward(c, u).pred, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_intervals_are_those_of_diffusers(start: float) -> None:
    guiders = pytest.importorskip("diffusers").guiders
    c, u = predictions(2, 2, 3, 5)
    for steps in (7, 10, 20):
        guider = guiders.ClassifierFreeGuidance(guidance_scale=3.0, start=start, stop=0.7)
        for guidance in (G.CFG(3.0, start=start, stop=0.7), G.RescaledCFG(3.0, 0.5, start=start, stop=0.7)):
            guider.guidance_rescale = getattr(guidance, "rescale", 0.0)
            for step in range(steps):
                guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(0))
                torch.testing.assert_close(guidance(c, u, step=step, steps=steps), guider.forward(c, u).pred,
                                           rtol=1e-12, atol=1e-12)  # fmt: skip


# ---- what a call promises --------------------------------------------------------------------------------------


def test_what_is_off_is_not_read() -> None:
    c, u = predictions(2, 2, 30, dtype=torch.float32)
    unset = torch.full_like(u, math.nan)
    off: list[G.Guidance] = [
        G.CFG(1.0), G.CFG(0.0, from_cond=True), G.CFG(5.0, start=0.5), G.RescaledCFG(5.0, start=0.5),
        G.APG(5.0, start=0.5), G.CFGZeroStar(5.0, start=0.5, zero_init_steps=0), G.TCFG(5.0, start=0.5),
        G.MagnitudeAware(start=0.5), G.AdaptiveGuidance(start=0.5), G.APG(1.0), G.TCFG(1.0),
        G.APG(5.0, momentum=-0.5, start=0.5),
    ]  # fmt: skip
    for guidance in off:
        assert torch.equal(guidance(c, unset, step=0, steps=2), c), guidance


def test_an_interval_of_no_run_is_no_interval() -> None:
    c, u = predictions(2, 2, 30)
    for guidance in (G.CFG(7.5, stop=0.8), G.Compose([7.5], stop=0.8), G.CFG(7.5, start=0.5)):
        torch.testing.assert_close(guidance(c, u), want.cfg(c, u, 7.5))


def test_tcfg_of_nothing_is_nothing() -> None:
    zero = torch.zeros(2, 30)
    assert torch.equal(G.TCFG()(zero, zero), zero)


def test_zero_init() -> None:
    c, u = predictions(2, 2, 30)
    guidance = G.CFGZeroStar(4.0, zero_init_steps=2)
    unset = torch.full_like(u, math.nan)
    assert all(bool((guidance(unset, unset, step=i, steps=5) == 0).all()) for i in range(2))
    torch.testing.assert_close(guidance(c, u, step=2, steps=5), want.zero_star(c, u, 4.0))


def test_power_cosine_follows_the_timestep() -> None:
    c, u = predictions(2, 2, 30)
    guidance = G.PowerCosine(3.8, 4.0)
    for t in (0.0, 1.0, 250.0, 999.0, 1000.0):
        expected = want.cfg(c, u, want.power_cosine(3.8, 4.0, t))
        torch.testing.assert_close(guidance(c, u, t=t), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(guidance(c, torch.full_like(u, math.nan), t=1000.0), c)
    with pytest.raises(ValueError, match="depends on the timestep; pass t"):
        guidance(c, u)


def test_the_latch_is_per_sample_and_stays() -> None:
    c, u = predictions(2, 3, 60)
    near = u + 1e-3 * (c - u)
    guidance = G.AdaptiveGuidance(4.0, 0.999)
    mixed = torch.stack((c[0], near[1], c[2]))
    first = guidance(mixed, u, step=0, steps=3)
    torch.testing.assert_close(first[[0, 2]], want.cfg(c, u, 4.0)[[0, 2]])
    assert torch.equal(first[1], near[1])
    u[1] = math.nan  # never read again
    mixed = torch.stack((near[0], c[1], c[2]))
    second = guidance(mixed, u, step=1, steps=3)
    assert torch.equal(second[:2], mixed[:2])
    torch.testing.assert_close(second[2], want.cfg(c, u, 4.0)[2])
    third = guidance(c, u, step=2, steps=3)
    assert torch.equal(third[:2], c[:2])
    fresh = predictions(2, 3, 60)
    torch.testing.assert_close(guidance(*fresh, step=0, steps=3), want.cfg(*fresh, 4.0))


def test_static_guidance_is_differentiable() -> None:
    c, u, e = (x.requires_grad_() for x in predictions(3, 2, 3, 4))
    for guidance in (G.Perturbed(4.0, 2.0), G.Compose([2.0, 3.0])):
        assert torch.autograd.gradcheck(lambda *x, g=guidance: g(*x), (c, u, e))
    with pytest.raises(NotImplementedError, match="no gradient is defined"):
        G.RescaledCFG()(c, u)


def test_compiles_in_one_graph() -> None:
    c, u = predictions(2, 2, 3, 8, dtype=torch.float32)
    for guidance in (G.CFG(4.0), G.RescaledCFG(4.0), G.TCFG(4.0)):
        compiled = torch.compile(lambda c, u, g=guidance: g(c, u), backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(c, u), guidance(c, u))


REFUSALS: list[tuple[str, Callable[[], Any], str]] = [
    ("too few", lambda: G.PerpNeg()(*predictions(2, 2, 3)), r"expected 3 .*cond, uncond, negative\), got 2"),
    ("too many", lambda: G.CFG()(*predictions(3, 2, 3)), r"expected 2 predictions \(cond, uncond\), got 3"),
    ("step", lambda: G.CFG()(*predictions(2, 2, 3), step=4, steps=4), r"step 4 is outside 0 \.\.\. 3"),
    ("rescale", lambda: G.RescaledCFG(7.0, 1.5), r"rescale must be in 0 \.\.\. 1, got 1\.5"),
    ("channels", lambda: G.CFG(7.0, rescale=0.5, channels=(0, 3)), "channels cannot be combined with rescale"),
    ("scales", lambda: G.CFG([1.0, 2.0])(*predictions(2, 2, 3), step=0, steps=3), "one number or 3 of them, got 2"),
    ("threshold", lambda: G.APG(norm_threshold=-1.0), "norm_threshold must be at least 0"),
    ("limits", lambda: G.NormBalanced(7.0, 3.0, 1.0), "expected 0 <= lower <= upper, got 3.0 and 1.0"),
    ("weights", lambda: G.PerpNeg(7.0, (1.0, 1.0, 1.0)), "expected one or two weights"),
    ("quantity", lambda: G.AdaptiveGuidance(prediction="score"), "prediction must be one of epsilon, x0, model"),
    ("candidates", lambda: G.BlackScholes(candidates=9), "1 to 8 candidates"),
    ("scores", lambda: G.BlackScholes(sigma=0.1)(*predictions(3, 2, 3)), r"scores \[B, 2\] are needed"),
    ("sigma", lambda: G.BlackScholes()(*predictions(3, 2, 3), scores=torch.ones(2, 2)), "sigma must be given"),
    ("power", lambda: G.PowerCosine(power=0.0), "power and total must be positive"),
    ("no prompts", lambda: G.Compose([]), "at least one scale"),
    ("unknown term", lambda: G.Compose.of_terms(("uncond", "cond"), {("cond", "image"): 1.0}), "got image"),
    ("first branches", lambda: G.Compose.of_terms(("cond", "uncond"), {}), "must begin with uncond, cond"),
    ("adaptive region", lambda: G.Regional(torch.ones(1, 1), G.APG(), G.CFG())(*predictions(2, 2, 3)),
     "guidances without reductions"),
    ("CFG++ in a region", lambda: G.Regional(torch.ones(1, 1), G.CFGPlusPlus(), G.CFG()), "CFGPlusPlus is more than"),
    ("zero steps", lambda: G.CFGZeroStar(zero_init_steps=-1), "zero_init_steps must be at least 0"),
    ("shapes", lambda: G.RescaledCFG()(torch.ones(2, 3), torch.ones(2, 4)), r"cond must have shape \[2, 4\]"),
    ("dtype", lambda: G.CFG()(torch.ones(2, 3).long(), torch.ones(2, 3)), "must be float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_refuses(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
