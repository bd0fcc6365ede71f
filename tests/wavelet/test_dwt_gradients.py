# SPDX-License-Identifier: Apache-2.0
"""Adjoints and gradients of dwt, idwt, wavedec and waverec."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastdiff.wavelet import dwt, idwt, wavedec, waverec
from fastdiff.wavelet._filters import CIRCULAR, MODES, ZERO, band_size, filter_bank
from fastdiff.wavelet.dwt import Bank
from fastdiff.wavelet.dwt import transform as analyse
from fastdiff.wavelet.idwt import transform as synthesise
from torch import Tensor

from tests.kit.compare import assert_same_bits
from tests.wavelet.dwt_oracle import DTYPES, FEW, assert_equal, normal

EDGES = (*MODES, "circular")
each_edge = pytest.mark.parametrize("edge", range(len(EDGES)), ids=EDGES)
SIZES = ((1,), (2,), (5,), (33,), (1101,), (1, 1), (3, 2), (6, 9), (9, 40), (2, 1, 3), (5, 4, 21))


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return normal(*shape, seed=seed).requires_grad_()


def away_from(threshold: float, *shape: int, seed: int = 0) -> Tensor:
    """Numbers whose magnitude is not within 0.05 of the kinks at 0 and at the threshold."""
    x = normal(*shape, seed=seed)
    for kink in (0.0, threshold):
        near = (x.abs() - kink).abs() < 0.05
        x = torch.where(near, torch.copysign(torch.full_like(x, kink + 0.07), x), x)
    return x.requires_grad_()


def check(function: Callable[..., Any], *leaves: Tensor, second: bool = True) -> None:
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-7)
    if second:
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True, atol=1e-7)


# ---- <W x, y> = <x, W^T y> -------------------------------------------------------------------------------------


@each_edge
@pytest.mark.parametrize("wavelet", FEW)
@pytest.mark.parametrize("divide", [False, True], ids=["multiplied", "divided"])
def test_adjoint_of_the_transform(divide: bool, wavelet: str, edge: int) -> None:
    """Of dwt it is idwt with the same taps and edge, and the other way round; the scale is the same in both."""
    taps = filter_bank(wavelet).analysis_taps
    for sizes in SIZES:
        ndim = len(sizes)
        bank = Bank(taps, ndim, edge)
        bands = [band_size(n, len(taps) // 2, edge) + n % 2 for n in sizes]  # some are wider than needed
        x, y = normal(2, *sizes), normal(2, 2**ndim, *bands, seed=1)
        scale = normal(2, 2**ndim, seed=2).abs() + 1
        left = (analyse(x, bank, scale, divide, bands) * y).sum()
        right = (x * synthesise(y, bank, sizes, scale, divide)).sum()
        growth = float(x.abs().max() * y.abs().max() * y.numel())
        assert abs(float(left - right)) <= 1e-13 * growth, f"{sizes}"
        assert abs(float(left)) > 1e-9 * growth or min(sizes) == 1


@each_edge
@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior2.2"])
def test_gradients_are_the_adjoint(wavelet: str, edge: int) -> None:
    taps = filter_bank(wavelet).synthesis_taps
    for sizes in SIZES:
        bank = Bank(taps, len(sizes), edge)
        x = leaf(2, *sizes)
        y = analyse(x, bank)
        g = normal(*y.shape, seed=1)
        assert_same_bits(torch.autograd.grad(y, x, g), [synthesise(g, bank, sizes)])
        y = normal(*y.shape).requires_grad_()
        g = normal(2, *sizes, seed=1)
        assert_same_bits(torch.autograd.grad(synthesise(y, bank, sizes), y, g), [analyse(g, bank)])


def test_the_adjoint_is_not_the_inverse() -> None:
    """For biorthogonal filters; a backward that used the reconstruction filters would pass for orthogonal ones."""
    for wavelet, same in (("db4", True), ("bior2.2", False)):
        x = leaf(32)
        y = dwt(x, wavelet, ndim=1, mode="periodization")
        (gradient,) = torch.autograd.grad(y, x, y.detach())
        difference = float((gradient - x.detach()).abs().max())
        assert (difference < 1e-10) == same


# ---- finite differences ----------------------------------------------------------------------------------------


@each_edge
def test_any_edge(edge: int) -> None:
    bank = Bank(filter_bank("bior2.2").analysis_taps, 2, edge)
    check(lambda x: analyse(x, bank), leaf(2, 5, 7))
    check(lambda x: analyse(x, bank), leaf(1, 2))
    y = analyse(normal(2, 5, 7), bank).detach().requires_grad_()
    check(lambda y: synthesise(y, bank, (5, 7)), y)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zero", "smooth", "periodization"])
def test_scale_of_dwt(mode: str, ndim: int) -> None:
    x = leaf(2, 3, *(3, 4, 5)[:ndim])
    for shape in ((2**ndim,), (3, 1), (2, 1, 2**ndim), ()):
        scale = (normal(*shape, seed=3).abs() + 0.5).requires_grad_()
        options: dict[str, Any] = {"ndim": ndim, "mode": mode}
        check(lambda x, s: dwt(x, "bior1.3", **options, scale=s), x, scale)  # noqa: B023
        check(lambda x: dwt(x, "bior1.3", **options, scale=scale.detach()), x)  # noqa: B023
        check(lambda s: dwt(x.detach(), "bior1.3", **options, scale=s), scale)  # noqa: B023


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_grid(wavelet: str) -> None:
    for mode in ("symmetric", "periodization"):
        check(lambda x: dwt(x, wavelet, ndim=2, mode=mode, grid=(7, 9)), leaf(2, 6, 9))  # noqa: B023
        check(lambda y: idwt(y, wavelet, ndim=2, mode=mode, size=(6, 9)), leaf(2, 4, 7, 9))  # noqa: B023


@pytest.mark.parametrize(
    ("scaled", "shrink", "apart"),
    list(itertools.product([False, True], [None, "soft", "hard"], [False, True])),
)
@pytest.mark.parametrize("mode", ["zero", "periodization"])
def test_everything_that_idwt_takes(mode: str, scaled: bool, shrink: str | None, apart: bool) -> None:
    t = 0.4
    y = away_from(t, 2, 3 if apart else 4, 5, 6)
    leaves = [y]
    if apart:
        leaves.append(away_from(t, 2, 6, 5 if mode == "zero" else 7, seed=5))  # larger than needed, smaller
    if scaled:
        leaves.append(torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64, requires_grad=True))
    thresholds = torch.full((4,), t, dtype=torch.float64)
    thresholds[0] = 0
    if shrink == "soft":
        leaves.append(thresholds.clone().requires_grad_())

    def function(y: Tensor, *rest: Tensor) -> Tensor:
        others = list(rest)
        options: dict[str, Any] = {"size": (5, 6) if mode == "periodization" else (6, 7)}
        if apart:
            options["approximation"] = others.pop(0)
        if scaled:
            options["scale"] = others.pop(0)
        if shrink:
            options |= {"threshold": others.pop(0) if others else thresholds, "shrink": shrink}
        return idwt(y, "db2", ndim=2, mode=mode, **options)

    if shrink == "soft":  # |c| has no derivative at a threshold of 0 where it is 0, and t < 0 none at all
        leaves[-1] = leaves[-1].detach()
    if apart and mode == "periodization":
        leaves[1] = away_from(t, 2, 5, 7, seed=5)
    check(function, *leaves)


@pytest.mark.parametrize("shrink", ["soft", "hard"])
def test_gradient_of_a_threshold(shrink: str) -> None:
    """Soft: minus the sign of what is above it. Hard: none."""
    y, t = away_from(0.4, 3, 4, 5, 5), torch.full((3, 4), 0.4, dtype=torch.float64, requires_grad=True)
    check(lambda y, t: idwt(y, "db2", ndim=2, threshold=t, shrink=shrink), y, t)
    x = idwt(y, "db2", ndim=2, threshold=t, shrink=shrink)
    gradient = torch.autograd.grad(x.sum(), t, allow_unused=True)[0]
    bank = Bank(filter_bank("db2").synthesis_taps, 2, ZERO)
    through = analyse(torch.ones_like(x), bank).detach()
    want = -(through * y.sign() * (y.abs() > 0.4)).sum((-2, -1))
    if shrink == "soft":
        assert_equal(gradient, want.detach())
    else:
        assert gradient is None or not bool(gradient.any())


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.4}, {"scale": 2.0}, {"approximation": True}], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_the_same_where_gradients_are_recorded(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    """The same bits: gradients change nothing."""
    y = away_from(0.4, 2, 3 if options.get("approximation") else 4, 7, 9).detach().to(dtype)
    numbers = {"threshold", "scale"} & options.keys()
    given: dict[str, Any] = {name: torch.tensor([options[name]], dtype=torch.float32) for name in numbers}
    if options.get("approximation"):
        given["approximation"] = normal(2, 7, 9, dtype=dtype)
    want = idwt(y, "db2", ndim=2, **given)
    for leaf_of in (y, *(given[name] for name in numbers)):
        leaf_of.requires_grad_()
        got = idwt(y, "db2", ndim=2, **given)
        assert got.requires_grad
        assert_same_bits([got.detach()], [want])


def test_a_scale_that_is_learned_divides_before_the_result_is_rounded() -> None:
    """The band itself would be beyond fp16."""
    x = torch.full((2, 2), 40000.0, dtype=torch.float16)
    scale = torch.tensor([10.0, 1, 1, 1])
    want = dwt(x, "haar", ndim=2, scale=scale, grid=(2, 2))
    got = dwt(x, "haar", ndim=2, scale=scale.requires_grad_(), grid=(2, 2))
    assert float(want[0, 0, 0]) == 8000
    assert_same_bits([got.detach()], [want])


def test_what_is_after_the_bands_is_not_read_by_gradients_either() -> None:
    y, scale = leaf(4, 5, 5), torch.full((4,), 2.0, dtype=torch.float64, requires_grad=True)
    poisoned = torch.full((4, 7, 8), math.nan, dtype=torch.float64)
    poisoned[:, :5, :5] = y.detach()
    want = torch.autograd.grad(idwt(y, "db2", ndim=2, size=(8, 8), scale=scale).square().sum(), (y, scale))
    poisoned.requires_grad_()
    got = torch.autograd.grad(
        idwt(poisoned, "db2", ndim=2, size=(8, 8), scale=scale).square().sum(), (poisoned, scale)
    )
    assert_same_bits([got[0][:, :5, :5], got[1]], want)
    assert not bool(got[0][:, 5:].any())
    assert not bool(got[0][:, :, 5:].any())


def test_a_soft_threshold_of_0_lets_everything_pass() -> None:
    """Zeros too, such as a coefficient that is to be learned; and the threshold itself can leave 0."""
    y, t = leaf(4, 5, 5), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y[0] = 0
    x = idwt(y, "db2", ndim=2, threshold=t)
    of_y, of_t = torch.autograd.grad(x.sum(), (y, t))
    (want,) = torch.autograd.grad(idwt(y, "db2", ndim=2).sum(), y)
    assert_same_bits([of_y], [want])
    assert_equal(of_t, -(want * y.sign()).sum((-2, -1)).detach())
    approximation, *details = wavedec(normal(16, 16), "haar", ndim=2, level=2)
    approximation = torch.zeros_like(approximation).requires_grad_()
    waverec([approximation, *details], "haar", ndim=2, threshold=torch.tensor(0.1)).sum().backward()
    assert approximation.grad is not None
    assert bool((approximation.grad > 0).all())


@pytest.mark.parametrize("shape", [(2, 4), (3, 4), (3,)], ids=str)
def test_gradients_do_not_lift_refusals(shape: tuple[int, ...]) -> None:
    scale = torch.ones(shape, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^fastdiff::dwt: scale must"):
        dwt(torch.zeros(8, 8), "haar", ndim=2, scale=scale)
    with pytest.raises(RuntimeError, match=r"^fastdiff::idwt: scale must"):
        idwt(torch.zeros(4, 8, 8), "haar", ndim=2, scale=scale)


def test_gradients_have_the_dtype_of_what_they_are_of() -> None:
    for dtype, of_scale in itertools.product(DTYPES, DTYPES[:3]):
        x = normal(2, 6, 7, dtype=dtype).requires_grad_()
        scale = (normal(4).abs() + 1).to(of_scale).requires_grad_()
        y = dwt(x, "db2", ndim=2, scale=scale)
        back = idwt(y, "db2", ndim=2, scale=scale)
        assert y.dtype == back.dtype == dtype
        back.float().sum().backward()
        assert x.grad is not None
        assert scale.grad is not None
        assert (x.grad.dtype, scale.grad.dtype) == (dtype, of_scale)


def test_out_is_refused_where_gradients_are_recorded() -> None:
    x = normal(8, dtype=torch.float32).requires_grad_()
    for call in (lambda: dwt(x, "haar", ndim=1, out=torch.empty(2, 4)),
                 lambda: idwt(x.view(2, 4), "haar", ndim=1, out=torch.empty(8))):  # fmt: skip
        with pytest.raises(NotImplementedError, match=r"^fastdiff\.i?dwt: out= does not record gradients"):
            call()
        with torch.no_grad():
            call()
    with pytest.raises(NotImplementedError, match=r"^fastdiff\.dwt: out="):
        dwt(x.detach(), "haar", ndim=1, out=torch.empty(2, 4, requires_grad=True))


# ---- levels ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ndim", [1, 2])
def test_wavedec(ndim: int, mode: str) -> None:
    x = leaf(2, *(9, 13)[-ndim:])
    check(lambda x: tuple(wavedec(x, "bior2.2", ndim=ndim, mode=mode, level=2)), x)


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("ndim", [1, 2])
def test_waverec(ndim: int, threshold: float | None) -> None:
    x = normal(2, *(9, 13)[-ndim:])
    leaves = [
        away_from(0.3, *c.shape, seed=n) for n, c in enumerate(wavedec(x, "bior2.2", ndim=ndim, level=2))
    ]
    given = None if threshold is None else torch.tensor([threshold], dtype=torch.float64)

    def function(*coefficients: Tensor) -> Tensor:
        return waverec(coefficients, "bior2.2", ndim=ndim, size=x.shape[-ndim:], threshold=given)

    check(function, *leaves)


def test_there_and_back_is_the_identity() -> None:
    """So its Jacobian is too."""
    x = leaf(2, 11, 14)
    back = waverec(wavedec(x, "bior4.4", ndim=2, mode="symmetric", level=2), "bior4.4", ndim=2, mode="symmetric",
                   size=(11, 14))  # fmt: skip
    g = normal(2, 11, 14, seed=1)
    assert_equal(torch.autograd.grad(back, x, g)[0], g, limit=1e-11)


# ---- under torch.compile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["symmetric", "smooth", "periodization"])
def test_compiled(mode: str) -> None:
    def loss(x: Tensor, scale: Tensor, threshold: Tensor) -> Tensor:
        y = dwt(x, "bior2.2", ndim=2, mode=mode, scale=scale)
        back = idwt(y.square(), "bior2.2", ndim=2, mode=mode, size=x.shape[-2:], scale=scale)
        coarse, *details = wavedec(back, "db2", ndim=2, mode=mode, level=2)
        return waverec([coarse.sin(), *details], "db2", ndim=2, mode=mode, threshold=threshold).square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    threshold = torch.tensor([0.3], dtype=torch.float64)
    for seed in range(2):
        leaves = leaf(2, 9, 12, seed=seed), (normal(4, seed=seed).abs() + 1).requires_grad_()
        want = torch.autograd.grad(loss(*leaves, threshold), leaves)
        got = torch.autograd.grad(compiled(*leaves, threshold), leaves)
        for g, w in zip(got, want, strict=True):
            assert_equal(g, w)
    torch._dynamo.reset()


def test_circular_is_periodization_with_a_zero() -> None:
    """Of an even length they are the same; of an odd one they differ, and only one of them inverts."""
    taps = filter_bank("db2").analysis_taps
    for size, same in ((8, True), (9, False)):
        x = normal(size)
        got = analyse(x, Bank(taps, 1, CIRCULAR))
        assert bool((got == dwt(x, "db2", ndim=1, mode="periodization")).all()) == same
        if not same:
            longer = torch.nn.functional.pad(x, (0, 1))
            assert_equal(got, dwt(longer, "db2", ndim=1, mode="periodization"))
