# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about channel_affine: its moments, their order and accuracy, its refusals."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C, channel_affine
from fastdiff.guidance.channel_affine import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, simt_worker, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import Canary

INF, NAN = math.inf, math.nan
F32, F64 = torch.float32, torch.float64
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
CHUNK, LANES, SLOTS = 1024, 128, 256  # of csrc/core/reduce.h
LAST = torch.channels_last
ATTENST = {"style_weight": 0.6, "content_weight": 0.4}
each_isa = pytest.mark.parametrize("isa", usable_isas())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def normal(
    *shape: int, dtype: torch.dtype = F32, mean: float = 0.3, std: float = 1.5, seed: int = 0
) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (mean + std * torch.randn(shape, generator=g, dtype=F64)).to(dtype)


def eager(
    x: Tensor,
    style: Tensor,
    *,
    style_weight: float = 1.0,
    content_weight: float = 0.0,
    eps: float = 1e-4,
) -> Tensor:
    """The expression of AttenST."""
    planes, other = x.flatten(2), style.flatten(2)
    mu_c, sigma_c = planes.mean(2, keepdim=True), planes.std(2, keepdim=True)
    mu_s, sigma_s = other.mean(2, keepdim=True), other.std(2, keepdim=True)
    y = (planes - mu_c) / (sigma_c + eps) * (style_weight * sigma_s + content_weight * sigma_c)
    return (y + (style_weight * mu_s + content_weight * mu_c)).view(x.shape)


def assert_right(x: Tensor, style: Tensor | None = None, **options: Any) -> None:
    got, want = channel_affine(x, style, **options), reference(x, style, **options)
    what = (
        f"{list(x.shape)} {x.dtype} {None if style is None else (list(style.shape), style.dtype)} {options}"
    )
    assert_close(got, want, **tolerance(x, style, **options), what=what)  # type: ignore[arg-type]


# ---- refusals --------------------------------------------------------------------------------------------------

X, S = torch.ones(2, 3, 4), torch.ones(2, 3, 5)
M = torch.ones(3)

REFUSALS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("integers", [X.long(), S], {}, "x must be float32, float16, bfloat16 or float64, got int64"),
    ("complex style", [X, S.cfloat()], {}, "style must be float32, float16, bfloat16 or float64, got complex64"),
    ("integer mean", [X], {"mean": M.long(), "std": M}, "mean must be float32, .* or float64, got int64"),
    ("bool std", [X], {"mean": M, "std": M.bool()}, "std must be float32, .* or float64, got bool"),
    ("no channels", [X[0, 0], S], {}, r"x must have at least 2 dimensions \[B, C, \*spatial\], got \[4\]"),
    ("too many dimensions", [torch.ones([1] * 13), S], {}, "x must have at most 12 dimensions, got 13"),
    ("style without channels", [X, S[0, 0]], {}, r"style must have at least 2 dimensions .*, got \[5\]"),
    ("channels of style", [X, S[:, :2]], {}, r"style must have shape \[2 or 1, 3, \*spatial\], got \[2, 2, 5\]"),
    ("one channel of style", [X, S[:, :1]], {}, r"style must have shape \[2 or 1, 3, \*spatial\], got \[2, 1, 5\]"),
    ("batch of style", [X[:1], S], {}, r"style must have shape \[1 or 1, 3, \*spatial\], got \[2, 3, 5\]"),
    ("length of mean", [X], {"mean": M[:2], "std": M}, r"mean must have shape \[\], \[3\] or \[2 or 1, 3\], got \[2\]"),
    ("one number in a list", [X], {"mean": M, "std": M[:1]}, r"std must have shape \[\], \[3\] or .*, got \[1\]"),
    ("batch of std", [X], {"mean": M, "std": torch.ones(4, 3)}, r"std must have shape .*, got \[4, 3\]"),
    ("rank of mean", [X], {"mean": torch.ones(2, 3, 1), "std": M}, r"mean must have shape .*, got \[2, 3, 1\]"),
    ("no target", [X], {}, "style must be given, or mean and std, got none of them"),
    ("mean alone", [X], {"mean": 0.0}, "mean and std must be given together, got mean alone"),
    ("std alone", [X], {"std": M}, "mean and std must be given together, got std alone"),
    ("both targets", [X, S], {"mean": 0.0, "std": 1.0}, "mean and std must be none where style is given, got both"),
    ("style and mean", [X, S], {"mean": 0.0}, "mean and std must be none where style is given, got both"),
    ("device of style", [X, S.to("meta")], {}, "style must be on cpu like x, got meta"),
    ("device of mean", [X], {"mean": M.to("meta"), "std": M}, "mean must be on cpu like x, got meta"),
    ("device of std", [X], {"mean": M, "std": M.to("meta")}, "std must be on cpu like x, got meta"),
    ("device of out", [X, S], {"out": X.to("meta")}, "out must be on cpu like x, got meta"),
    ("infinite weight", [X, S], {"style_weight": INF}, "style_weight must be finite, got inf"),
    ("weight NaN", [X, S], {"content_weight": NAN}, "content_weight must be finite, got nan"),
    ("negative eps", [X, S], {"eps": -1.0}, r"eps must be finite and at least 0, got -1\.0"),
    ("infinite eps", [X, S], {"eps": INF}, "eps must be finite and at least 0, got inf"),
    ("eps NaN", [X, S], {"eps": NAN}, "eps must be finite and at least 0, got nan"),
    ("shape of out", [X, S], {"out": torch.ones(2, 3, 5)}, r"out must have shape \[2, 3, 4\], got \[2, 3, 5\]"),
    ("rank of out", [X, S], {"out": torch.ones(24)}, r"out must have shape \[2, 3, 4\], got \[24\]"),
    ("dtype of out", [X, S], {"out": X.double()}, "out must be float32 like x, got float64"),
    ("expanded out", [X, S], {"out": M[0].expand(2, 3, 4)}, "out must not have elements that share memory"),
    ("out over style", [X, S], {"out": S[..., :4]}, "out must not share memory with style"),
    ("out is style", [X, S[..., :4]], {"out": S[..., :4]}, "out must not share memory with style"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(tensors: list[Tensor], options: dict[str, Any], message: str, mode: Any) -> None:
    canary = Canary(torch.empty(2, 3, 4))
    before = canary.tensor.clone()
    if tensors[0].shape == X.shape and tensors[0].dtype == X.dtype:
        options = {"out": canary.tensor} | options
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::channel_affine: {message}"):
        channel_affine(*tensors, **options)
    assert_same_bits([canary.tensor], [before], "something was written")
    assert all(bool((t == 1).all()) for t in (X, S, M))


@pytest.mark.parametrize("offset", [1, 4, 23])
def test_refuses_a_partial_overlap(offset: int) -> None:
    room = torch.zeros(48)
    x, out = room[:24].view(2, 3, 4), room[offset : offset + 24].view(2, 3, 4)
    with pytest.raises(RuntimeError, match="out must be exactly x or not share memory with it"):
        channel_affine(x, S, out=out)


def test_refuses_out_over_the_numbers() -> None:
    out = torch.ones(2, 3, 4)
    for name, other in (("mean", "std"), ("std", "mean")):
        with pytest.raises(RuntimeError, match=f"out must not share memory with {name}"):
            channel_affine(X, **{name: out[0, :, 0], other: M}, out=out)


def test_refuses_gradients() -> None:
    asked = torch.ones(2, 3, 4, requires_grad=True)
    for tensors, options in (
        ([asked, S], {}),
        ([X, asked], {}),
        ([X], {"mean": asked[0, :, 0], "std": M}),
        ([X], {"mean": 0.0, "std": asked[0, :, 0]}),
        ([X, S], {"out": asked}),
    ):
        with pytest.raises(NotImplementedError, match=r"fastdiff\.channel_affine: no gradient is defined"):
            channel_affine(*tensors, **options)  # type: ignore[arg-type]


# ---- values ----------------------------------------------------------------------------------------------------


def laid_out(t: Tensor, layout: str) -> Tensor:
    """The same values in another order of memory."""
    if layout == "channels last":
        return t.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "gaps":
        room = t.new_zeros([2 * n for n in t.shape])
        return room[tuple(slice(0, 2 * n, 2) for n in t.shape)].copy_(t)
    return t


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_the_definition(data: st.DataObject) -> None:
    """Any shapes, dtypes and layouts, channel numbers around the width of a register and of a panel."""
    batch = data.draw(st.integers(1, 3))
    channels = data.draw(st.one_of(st.integers(1, 9), st.integers(15, 18), st.integers(31, 34)))
    spatial, other = (
        [2 + n for n in data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=3))] for _ in "xs"
    )
    layouts = st.sampled_from(["dense", "channels last", "gaps"])
    x = normal(
        batch,
        channels,
        *spatial,
        dtype=data.draw(st.sampled_from(DTYPES)),
        seed=data.draw(st.integers(0, 99)),
    )
    options: dict[str, Any] = {
        "style_weight": data.draw(st.floats(-2, 2)),
        "content_weight": data.draw(st.sampled_from([0.0, 0.4, 1.0])),
        "eps": data.draw(st.sampled_from([1e-5, 1e-4, 0.1])),
    }
    if data.draw(st.booleans()):
        dtype = data.draw(st.sampled_from(DTYPES))
        style = normal(data.draw(st.sampled_from([1, batch])), channels, *other, dtype=dtype, seed=100)
        assert_right(laid_out(x, data.draw(layouts)), laid_out(style, data.draw(layouts)), **options)
    else:
        shapes = st.sampled_from([(), (channels,), (1, channels), (batch, channels)])
        mean, std = (
            normal(*data.draw(shapes), seed=s, dtype=data.draw(st.sampled_from(DTYPES))) for s in (1, 2)
        )
        assert_right(laid_out(x, data.draw(layouts)), mean=mean, std=std, **options)  # fmt: skip


@each_isa
@each_dtype
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("n", [2, 127, 128, 129, 1023, 1024, 1025, 5000])
def test_equals_the_definition_at_every_size(n: int, last: bool, dtype: torch.dtype, isa: str) -> None:
    x, style = normal(2, 17, n, dtype=dtype), normal(2, 17, n + 1, dtype=dtype, seed=1)
    if last:
        x, style = laid_out(x, "channels last"), laid_out(style, "channels last")
    with instruction_set(isa):
        assert_right(x, style, **ATTENST)


def test_known_values() -> None:
    x = torch.tensor([[[1.0, 3.0], [-4.0, 4.0]]])  # means 2 and 0, squared deviations 2 and 32
    style = torch.tensor([[[0.0, 1.0, 2.0], [7.0, 7.0, 7.0]]])  # means 1 and 7, deviations 1 and 0
    half = 0.5**0.5
    want = torch.tensor([[[1 - half, 1 + half], [7.0, 7.0]]])
    assert_close(channel_affine(x, style, eps=0.0), want)
    same = channel_affine(x, style, style_weight=0.0, content_weight=1.0, eps=0.0)
    assert_same_bits([same], [x], "its own moments")
    assert_close(channel_affine(x, mean=0.0, std=1.0, eps=0.0), torch.tensor([[[-half, half]] * 2]))
    assert_close(
        channel_affine(x, mean=5.0, std=2**0.5, eps=2**0.5), torch.tensor([[[4.5, 5.5], [4.2, 5.8]]])
    )


def test_eps_is_added_to_the_deviation_of_the_content_only() -> None:
    x, style = normal(1, 2, 50), normal(1, 2, 60, seed=1)
    assert_close(channel_affine(x, style, eps=0.5, **ATTENST), eager(x, style, eps=0.5, **ATTENST), terms=16)
    y = channel_affine(x, style, eps=0.5, **ATTENST).double()
    sigma_c, sigma_s = x.double().std(2), style.double().std(2)
    want = (0.6 * sigma_s + 0.4 * sigma_c) * sigma_c / (sigma_c + 0.5)
    torch.testing.assert_close(y.std(2), want, rtol=1e-6, atol=0)


def test_result_has_the_moments_of_the_style() -> None:
    x, style = normal(2, 5, 64, 64), normal(1, 5, 30, 40, mean=-3.0, std=0.2, seed=1)
    y = channel_affine(x, style, eps=0.0).double().flatten(2)
    torch.testing.assert_close(y.mean(2), style.double().mean((2, 3)).expand(2, 5), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(y.std(2), style.double().std((2, 3)).expand(2, 5), rtol=1e-6, atol=1e-6)


def test_numbers_are_taken_in_float64() -> None:
    x = normal(2, 3, 50, dtype=F64)
    assert_same_bits(
        [channel_affine(x, mean=0.1, std=1 / 3)],
        [channel_affine(x, mean=torch.tensor(0.1, dtype=F64), std=torch.full((2, 3), 1 / 3, dtype=F64))],
    )


def test_one_style_for_all_is_that_style_for_each() -> None:
    x, style = normal(3, 5, 40, 41), normal(1, 5, 1200, seed=1)
    want = channel_affine(x, style.expand(3, 5, 1200).contiguous(), **ATTENST)
    assert_same_bits(
        [channel_affine(x, style, **ATTENST), channel_affine(x, style.expand(3, 5, 1200), **ATTENST)],
        [want] * 2,
    )


def test_samples_are_independent() -> None:
    x, style = normal(3, 4, 700), normal(3, 4, 90, seed=1)
    alone = [channel_affine(a, b) for a, b in zip(x.split(1), style.split(1), strict=True)]
    assert_same_bits([channel_affine(x, style)], [torch.cat(alone)])


# ---- NaN, inf and 0/0 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4, 9), (3, 4, 50, 60)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
@pytest.mark.filterwarnings("ignore:std")
def test_nan_and_inf_are_those_of_eager(shape: tuple[int, ...], last: bool) -> None:
    x, style = normal(*shape), normal(1, 4, 20, seed=1)
    places = x.flatten(2)
    places[0, 1, 8], places[1, 0, 0], places[1, 2, 3], places[2, 3, :2] = (
        NAN,
        INF,
        -INF,
        torch.tensor([INF, -INF]),
    )
    x = laid_out(x, "channels last") if last else x
    for options in ({}, ATTENST):
        got, want = channel_affine(x, style, **options), eager(x, style, **options)
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-5, atol=1e-5)
    style[0, 2, 0] = INF
    got = channel_affine(x, style)
    torch.testing.assert_close(got, eager(x, style), equal_nan=True, rtol=1e-5, atol=1e-5)
    assert bool(got[:, 2].isnan().all())


@pytest.mark.filterwarnings("ignore:std")
def test_planes_of_one_element_are_nan_as_in_eager() -> None:
    for x in (normal(2, 3, 1), normal(2, 3, 1, 1, 1), normal(2, 40, 1).to(torch.bfloat16)):
        style = normal(1, x.shape[1], 4)
        assert bool(eager(x, style).isnan().all())
        assert bool(channel_affine(x, style).isnan().all())
    assert bool(channel_affine(normal(2, 3), mean=0.0, std=1.0).isnan().all())
    assert bool(channel_affine(normal(2, 3, 5), normal(2, 3, 1)).isnan().all())
    assert bool(channel_affine(normal(2, 3, 5), normal(2, 3, 0)).isnan().all())


@each_dtype
@pytest.mark.parametrize("n", [2, 100, 1024, 1300, 70_001])
def test_constant_planes_have_no_deviation(n: int, dtype: torch.dtype) -> None:
    """Exactly 0, for numbers whose sums are rounded too: with eps they become the target mean, without it NaN."""
    for value in (0.1, 1e4 / 3, -1e-4 / 7, 0.0):
        x = torch.full((1, 1, n), value, dtype=dtype)
        want = torch.full_like(x, 0.625)
        assert_same_bits([channel_affine(x, mean=0.625, std=1e3, eps=1e-30)], [want], f"{value} {dtype}")
        assert bool(channel_affine(x, mean=0.625, std=1.0, eps=0.0).isnan().all())
        kept = channel_affine(x, mean=0.0, std=1.0, style_weight=0.0, content_weight=1.0)
        assert_same_bits([kept], [x])


def test_what_has_no_weight_is_not_read() -> None:
    x, nan = normal(2, 3, 50), torch.full((2, 3, 7), NAN)
    want = channel_affine(x, mean=0.0, std=0.0, style_weight=0.0, content_weight=1.0)
    assert bool(want.isfinite().all())
    assert_same_bits([channel_affine(x, nan, style_weight=0.0, content_weight=1.0)], [want])
    numbers = {"mean": NAN, "std": INF}
    assert_same_bits([channel_affine(x, **numbers, style_weight=0.0, content_weight=1.0)], [want])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0), (2, 3, 4, 0, 5)], ids=str)
def test_empty(shape: tuple[int, ...]) -> None:
    x, style = torch.ones(shape), torch.ones(*shape[:2], 6)
    assert channel_affine(x, style).shape == shape
    assert channel_affine(x, mean=0.0, std=1.0, out=x) is x


# ---- accuracy --------------------------------------------------------------------------------------------------


def largest_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max())


@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize("mean", [0.0, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_no_worse_than_eager(dtype: torch.dtype, mean: float, n: int) -> None:
    x = normal(2, 3, n, n, dtype=dtype, mean=mean, std=1.0)
    style = normal(2, 3, n, n, dtype=dtype, mean=-mean, std=1.0, seed=1)
    for options in ({}, ATTENST):
        want = reference(x.double(), style.double(), **options)
        ours = largest_error(channel_affine(x, style, **options), want)
        if dtype == F32:  # float64 is its own reference
            assert ours <= 1.25 * largest_error(eager(x, style, **options), want)
        assert ours <= 16 * torch.finfo(dtype).eps * max(1.0, mean)


def test_a_large_mean_leaves_the_digits() -> None:
    """What is 1e3 deviations from 0 is normalised as well as if it were not; in eager the mean costs 3 digits."""
    x = normal(4, 2, 128, 128, mean=1e3, std=1.0)
    want = reference(x.double(), mean=0.0, std=1.0)
    assert largest_error(channel_affine(x, mean=0.0, std=1.0), want) < 1e-6
    mu, sigma = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    assert largest_error((x - mu) / (sigma + 1e-4), want) > 1e-5


@pytest.mark.parametrize("at", [0, 700, 5000])
def test_an_outlier_leaves_the_digits(at: int) -> None:
    """As some feature maps have in a corner: sums about the first element would lose all of theirs."""
    x = normal(1, 1, 6000)
    x[0, 0, at] = 1e5
    want = reference(x.double(), mean=0.0, std=1.0)
    got = channel_affine(x, mean=0.0, std=1.0)
    assert float(((got - want).abs() / want.abs().clamp_min(1e-3)).max()) < 1e-5


def test_error_does_not_grow_with_the_plane() -> None:
    for n in (10**3, 10**5, 10**7):
        x = normal(1, 1, n)
        assert (
            largest_error(channel_affine(x, mean=0.0, std=1.0), reference(x.double(), mean=0.0, std=1.0))
            < 1e-6
        )


# ---- the order of the sums -------------------------------------------------------------------------------------


def tree(x: np.ndarray) -> Any:
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]


def lanes(chunk: np.ndarray) -> Any:
    """The sum of one chunk: csrc/core/reduce.h."""
    padded = np.zeros(CHUNK, chunk.dtype)
    padded[: len(chunk)] = chunk
    lane = np.zeros(LANES, chunk.dtype)
    for turn in padded.reshape(-1, LANES):
        lane = lane + turn
    return tree(lane)


def documented(x: np.ndarray) -> tuple[float, float]:
    """Mean and deviation as channel_affine_math.h has them, but for the fma of the squares."""
    chunks = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    means = [lanes(c) / x.dtype.type(len(c)) for c in chunks]
    pieces = [
        (len(c), np.float64(m), np.float64(lanes(c - m)), np.float64(lanes((c - m) ** 2)))
        for c, m in zip(chunks, means, strict=True)
    ]

    def sum_over(terms: list[Any]) -> Any:
        slots = np.zeros(SLOTS)
        for c, term in enumerate(terms):
            slots[c % SLOTS] += term
        return tree(slots)

    first = pieces[0][1]
    mean = first + sum_over([n * (m - first) + s for n, m, s, _ in pieces]) / len(x)
    squares = sum_over([(m - mean) * (n * (m - mean) + 2 * s) + q for n, m, s, q in pieces])
    return float(mean), float(np.sqrt(squares / (len(x) - 1)))


@pytest.mark.parametrize("n", [5, 128, 1024, 1500, 40_000, 600_001])
def test_sums_are_the_documented_ones(n: int) -> None:
    """To float32's last bit for numbers of 11 bits, whose deviations have exact squares where the mean is 0."""
    g = torch.Generator().manual_seed(n)
    x = torch.randint(-1023, 1024, (1, 2, n), generator=g).float()
    x[0, 1] += 1e4
    mean, deviation = zip(*(documented(plane.numpy()) for plane in x[0]), strict=True)
    center = torch.tensor(mean, dtype=F64).float()
    scale = torch.tensor([1 / d for d in deviation], dtype=F64).float()
    offset = (scale.double() * (center.double() - torch.tensor(mean, dtype=F64))).float()
    want = (scale.double()[:, None] * (x[0] - center[:, None]).double() + offset.double()[:, None]).float()
    torch.testing.assert_close(channel_affine(x, mean=0.0, std=1.0, eps=0.0)[0], want, rtol=2e-7, atol=2e-7)


@each_isa
@pytest.mark.parametrize("dtypes", [(F32, F32), (torch.bfloat16, F64), (F64, torch.float16)], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 300, 301), (3, 3, 113, 101), (1, 3, 250, 170), (2, 33, 40, 41)], ids=str
)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_any_thread_count(
    last: bool, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], isa: str
) -> None:
    """Few planes are shared out by their chunks, many by themselves, and channels side by side in panels."""
    x, style = (normal(b, *shape[1:], dtype=d, seed=b) for b, d in zip((shape[0], 1), dtypes, strict=True))
    if last:
        x, style = laid_out(x, "channels last"), laid_out(style, "channels last")
    with instruction_set(isa):
        want = torch.cat([
            torch.cat([channel_affine(x[b:b + 1, c:c + 1].contiguous(), style[:, c:c + 1].contiguous(), **ATTENST)
                       for c in range(shape[1])], 1)
            for b in range(shape[0])
        ])  # fmt: skip
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits([channel_affine(x, style, **ATTENST)], [want], f"{threads} threads")


def test_layout_does_not_change_the_order() -> None:
    x, style = normal(2, 37, 33, 31), normal(1, 37, 21, 22, seed=1)
    want = channel_affine(x, style)
    for a in (x, x.to(memory_format=LAST), x.transpose(2, 3).contiguous().transpose(2, 3)):
        for b in (style, style.to(memory_format=LAST), style.transpose(0, 3).contiguous().transpose(0, 3)):
            for out in (torch.empty_like(x), torch.empty_like(x, memory_format=LAST)):
                assert_same_bits([channel_affine(a, b, out=out)], [want])


# ---- layouts and sizes -----------------------------------------------------------------------------------------


@each_dtype
def test_in_place(dtype: torch.dtype) -> None:
    wide = normal(3, 4, 37, 64, dtype=dtype)
    for x in (normal(3, 4, 37, 41, dtype=dtype), normal(1, 1, 300, 300, dtype=dtype), wide[..., ::2],
              normal(2, 40, 9, 11, dtype=dtype).to(memory_format=LAST)):  # fmt: skip
        style = normal(1, x.shape[1], 30, seed=1)
        want = channel_affine(x, style, **ATTENST)
        assert channel_affine(x, style, **ATTENST, out=x) is x
        assert_same_bits([x], [want])


@each_isa
@each_dtype
def test_past_the_caches(dtype: torch.dtype, isa: str) -> None:
    """Results beyond the last-level cache are stored another way; start and end are misaligned."""
    n = (40 << 20) // dtype.itemsize // 3
    x = normal(1, dtype=F32).to(dtype).expand(3 * n + 3).clone()
    x[:] = torch.arange(3 * n + 3) % 1001 - 300
    x = x[3:].view(1, 3, n)
    with instruction_set(isa):
        far = channel_affine(x, mean=0.5, std=2.0)
        assert_same_bits([channel_affine(x, mean=0.5, std=2.0, out=x)], [far])


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 10 << 30,
    reason="needs 10 GiB of free memory",
)
def test_more_than_2_to_the_31_elements() -> None:
    """In one plane: 1, then -1 in as many places; a deviation of 1 and a mean of 0 but for the last three."""
    n = 2**31 + 8
    x = torch.ones(1, 1, n, dtype=torch.bfloat16)
    x[..., n // 2 :] = -1
    channel_affine(x, mean=3.0, std=2.0, eps=0.0, out=x)
    assert x[0, 0, [0, n // 2 - 1, n // 2, n - 1]].tolist() == [5.0, 5.0, 1.0, 1.0]


def test_compiles_in_place_on_a_tensor_that_the_graph_makes() -> None:
    def step(x: Tensor, style: Tensor) -> Tensor:
        y = 2 * x
        return channel_affine(y, style + 1, out=None if y.requires_grad else y)

    x, style = normal(2, 3, 50), normal(1, 3, 20, seed=1)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert_same_bits([compiled(x, style)], [step(x, style)])
    torch._dynamo.reset()


# ---- without torch ---------------------------------------------------------------------------------------------


def test_numpy_arrays() -> None:
    x, style = normal(3, 4, 50).numpy(), normal(1, 4, 70, seed=1).numpy()
    want = channel_affine(torch.from_numpy(x), torch.from_numpy(style)).numpy()
    y = np.empty_like(x)
    _C.channel_affine(x, y, style)
    assert np.array_equal(y, want)
    _C.channel_affine(x[:, ::-1], y, style[:, ::-1])
    assert np.array_equal(y, want[:, ::-1])
    mean, std = np.float64([1, 2, 3, 4]), np.array(0.5, np.float32)
    _C.channel_affine(x, y, mean=mean, std=std)
    numbers = {"mean": torch.from_numpy(mean), "std": torch.tensor(0.5)}
    assert np.array_equal(y, channel_affine(torch.from_numpy(x), **numbers).numpy())
    large = normal(1, 1, 600_000).numpy()
    _C.channel_affine(large, large, mean=mean[:1], std=std)
    assert np.array_equal(large, channel_affine(normal(1, 1, 600_000), mean=1.0, std=0.5).numpy())


# ---- the kernels under the emulator ----------------------------------------------------------------------------

SMALL, LARGE = (
    (normal(2, 3, 3000), normal(1, 3, 900, seed=1)),
    (normal(1, 1, 66_001), normal(1, 1, 1100, seed=1)),
)


def scratch_of(x: Tensor, style: Tensor) -> Tensor:
    return torch.empty(_C.channel_affine_scratch(x, style), dtype=torch.uint8)


@pytest.mark.parametrize("tensors", [SMALL, LARGE], ids=["one block", "many blocks"])
def test_no_races_on_shared_memory(tensors: tuple[Tensor, Tensor]) -> None:
    x, style = tensors
    y = torch.empty_like(x)
    with SimtWorker("races") as simt:
        for seed in (1, 2):
            simt.seed = seed
            simt.call("channel_affine", x, out=y, style=style, scratch=scratch_of(x, style))
            assert_same_bits([y], [channel_affine(x, style)])


def test_kernels_divide_zero_by_zero() -> None:
    """Not among the cases: opcheck compares results with an equality that NaN fails."""
    for x, style in ((torch.ones(2, 3, 1), S), (X, S[..., :1]), (X, S[..., :0]), (X, S)):
        y = torch.zeros_like(x)
        simt_worker().call("channel_affine", x, out=y, style=style, eps=0.0)
        assert bool(y.isnan().all())
        assert bool(channel_affine(x, style, eps=0.0).isnan().all())


def test_kernels_work_in_place() -> None:
    for x, style in (SMALL, LARGE):
        y = x.clone()
        simt_worker().call("channel_affine", y, out=y, style=style, scratch=scratch_of(x, style))
        assert_same_bits([y], [channel_affine(x, style)])


def test_scratch_memory_is_checked() -> None:
    assert scratch_of(*SMALL).numel() == 0
    x, style = LARGE
    needed = scratch_of(x, style).numel()
    for scratch in (None, torch.empty(needed - 1, dtype=torch.uint8), torch.empty(needed // 4)):
        with pytest.raises(RuntimeError, match=rf"scratch must be {needed} contiguous uint8 on cpu.*, got"):
            simt_worker().call("channel_affine", x, out=torch.empty_like(x), style=style, scratch=scratch)
