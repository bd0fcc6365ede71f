# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of dwt and idwt, emulated, against the CPU: any taps, sizes, edges and layouts, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from fastdiff import _C
from fastdiff.wavelet._filters import CIRCULAR, MODES, ZERO, band_size, edge_of, filter_bank
from fastdiff.wavelet.dwt import Bank
from fastdiff.wavelet.dwt import transform as forward
from fastdiff.wavelet.idwt import transform as backward
from torch import Tensor

from tests.kit.backends import simt_worker
from tests.kit.compare import assert_same_bits
from tests.kit.simt.worker import SimtWorker

EDGES = range(len(MODES) + 1)
SUMS = (edge_of("smooth"), edge_of("antireflect"))  # where a sample past the ends is a sum of others
DRAWS = 36
POISON = 777.0


class Call(NamedTuple):
    """One call of either op: `bank` is that of the op, `more` what is optional, `out` where the result goes."""

    op: str
    data: Tensor  # x or y
    bank: Bank
    size: Sequence[int]  # of the result
    more: dict[str, Any]
    out: Tensor


def scratch_bytes(call: Call) -> int:
    taps, ndim, edge = call.bank
    if call.op == "dwt":
        return int(_C.dwt_scratch(call.data, taps=taps, ndim=ndim, edge=edge))
    split = "approximation" in call.more
    size = list(call.size)
    return int(_C.idwt_scratch(call.data, taps=taps, ndim=ndim, edge=edge, size=size, split=split))


def emulated(call: Call, simt: SimtWorker) -> Tensor:
    scratch = torch.full((scratch_bytes(call),), 0xA5, dtype=torch.uint8)
    out = call.out.fill_(POISON)
    simt.call(call.op, call.data, out=out, scratch=scratch, **call.bank._asdict(), **call.more)
    return out


def expected(call: Call) -> Tensor:
    if call.op == "dwt":
        return forward(call.data, call.bank, grid=list(call.size), **call.more)
    return backward(call.data, call.bank, list(call.size), **call.more)


# ---- draws -----------------------------------------------------------------------------------------------------

LIMITS = {1: (170,), 2: (21, 75), 3: (7, 11, 38)}
LAYOUTS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda t: t,
    lambda t: t,
    lambda t: torch.stack([t, t], -1)[..., 0],  # every second element
    lambda t: torch.cat([t, t[..., :1]], -1)[..., :-1],  # rows apart, pairs misaligned
    lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),  # the first dimension innermost
)


def numbers(rng: random.Random, *shape: int, dtype: torch.dtype) -> Tensor:
    g = torch.Generator().manual_seed(rng.randrange(1 << 30))
    return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)


def drawn_bank(rng: random.Random, ndim: int, edge: int) -> Bank:
    length = rng.choice([2, 2, 4, 4, 6, 8, 10, 12, 14, 20, 22, 30])
    taps = [rng.uniform(-1, 1) for _ in range(2 * length)]
    if rng.random() < 0.6:  # some in one filter only, some in none
        taps = [0.0 if rng.random() < 0.3 else tap for tap in taps]
    return Bank(taps, ndim, edge)


def drawn(op: str, seed: int) -> Call:
    rng = random.Random(f"{op} {seed}")
    ndim = rng.choice([1, 2, 2, 3])
    edge = list(EDGES)[seed % len(EDGES)]
    bank = drawn_bank(rng, ndim, edge)
    length = len(bank.taps) // 2
    dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])
    leading = rng.choice([(), (3,), (2, 2)])
    size = [rng.choice([1, rng.randint(1, limit), limit]) for limit in LIMITS[ndim]]
    bands = [band_size(n, length, edge) for n in size]
    bigger = [n + rng.choice([0, 0, 3]) for n in bands]

    def laid_out(*shape: int) -> Tensor:
        return rng.choice(LAYOUTS)(numbers(rng, *shape, dtype=dtype))

    def per_band() -> Tensor:
        return numbers(rng, *(leading if rng.random() < 0.5 else ()), 2**ndim, dtype=torch.float32).abs()

    more: dict[str, Any] = {}
    if rng.random() < 0.4:
        more |= {"scale": per_band() + 0.1, "divide": rng.random() < 0.5}
    if op == "dwt":
        return Call(op, laid_out(*leading, *size), bank, bigger, more, laid_out(*leading, 2**ndim, *bigger))
    if rng.random() < 0.4:
        more |= {"threshold": per_band() * 0.3, "hard": rng.random() < 0.5}
    count = 2**ndim
    if rng.random() < 0.3:
        count -= 1
        more["approximation"] = laid_out(*leading, *[n + rng.choice([0, 1]) for n in bands])
    return Call(op, laid_out(*leading, count, *bigger), bank, size, more, laid_out(*leading, *size))


@pytest.mark.parametrize("seed", range(DRAWS))
@pytest.mark.parametrize("op", ["dwt", "idwt"])
def test_kernels_give_the_bits_of_the_cpu(op: str, seed: int) -> None:
    call = drawn(op, seed)
    what = f"{op}, draw {seed}: {list(call.data.shape)}, {call.bank}"
    assert_same_bits([emulated(call, simt_worker())], [expected(call)], what)


# ---- which kernel ----------------------------------------------------------------------------------------------


def image(
    op: str, taps: int = 4, edge: int = ZERO, dtype: torch.dtype = torch.float32, ndim: int = 2
) -> Call:
    """Larger than what one warp makes, along each dimension."""
    rng = random.Random(5)
    bank = Bank([rng.uniform(-1, 1) for _ in range(2 * taps)], ndim, edge)
    size = {1: [2000], 2: [45, 140], 3: [5, 23, 66]}[ndim]
    bands = [band_size(n, taps, edge) for n in size]
    x, y = numbers(rng, 2, *size, dtype=dtype), numbers(rng, 2, 2**ndim, *bands, dtype=dtype)
    return Call(op, x, bank, bands, {}, y) if op == "dwt" else Call(op, y, bank, size, {}, x)


def intermediates(call: Call) -> int:
    """Bytes of what the first of two axes leaves for the second."""
    shape = call.data.shape
    (rows, columns), leading = call.size, 2 * shape[0]
    kept = (
        rows * shape[-1]
        if call.op == "dwt"
        else rows * band_size(columns, len(call.bank.taps) // 2, call.bank.edge)
    )
    return leading * kept * (8 if call.data.dtype == torch.float64 else 4)


@pytest.mark.parametrize("op", ["dwt", "idwt"])
def test_usual_filters_need_no_scratch_memory(op: str) -> None:
    for ndim in (1, 2, 3):
        for taps in (2, 4, 6, 8):
            for edge in (ZERO, CIRCULAR):
                assert scratch_bytes(image(op, taps, edge, ndim=ndim)) == 0
    assert scratch_bytes(image(op, 20)) == 0
    for dtype in (torch.float16, torch.bfloat16):
        assert scratch_bytes(image(op, 12, dtype=dtype)) == 0


@pytest.mark.parametrize("op", ["dwt", "idwt"])
def test_other_calls_keep_what_an_axis_leaves(op: str) -> None:
    for call in (
        image(op, 22),
        image(op, 4, dtype=torch.float64),
        image(op, 4, SUMS[0]),
        image(op, 4, SUMS[1]),
    ):
        assert scratch_bytes(call) == intermediates(call)
    for edge in EDGES:
        marches = edge in (ZERO, CIRCULAR) if op == "idwt" else edge not in SUMS
        assert (scratch_bytes(image(op, 4, edge)) == 0) == marches
    call = image(op, 4)
    assert scratch_bytes(call._replace(data=call.data.mT.contiguous().mT)) == intermediates(call)
    assert scratch_bytes(image(op, 10, ndim=3)) > 0
    assert scratch_bytes(image(op, 112, ndim=1)) == 0  # one axis leaves nothing


@pytest.mark.parametrize("taps", [2, 4, 6, 8, 12, 20])
@pytest.mark.parametrize("op", ["dwt", "idwt"])
def test_several_warps_make_one_image(op: str, taps: int) -> None:
    for edge in (ZERO, CIRCULAR) if op == "idwt" else (ZERO, edge_of("antisymmetric")):
        call = image(op, taps, edge)
        assert_same_bits([emulated(call, simt_worker())], [expected(call)], f"{op}, {taps} taps, edge {edge}")


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("op", ["dwt", "idwt"])
def test_several_warps_make_other_dimensions(op: str, ndim: int) -> None:
    for taps in (2, 4, 6, 8):
        call = image(op, taps, CIRCULAR, ndim=ndim)
        assert_same_bits([emulated(call, simt_worker())], [expected(call)], f"{op}, {ndim}-D, {taps} taps")


def test_longest_filters() -> None:
    for op in ("dwt", "idwt"):
        call = drawn(op, 3)
        bank = call.bank._replace(
            taps=[*filter_bank("haar").analysis_taps[:2], *[0.25] * 222], ndim=1, edge=2
        )
        data = torch.arange(60.0).reshape(2, 2, 15)[:, 0] if op == "dwt" else torch.ones(2, 2, 63)
        shape = (2, 2, 63) if op == "dwt" else (2, 15)
        call = Call(op, data, bank, shape[-1:], {}, torch.empty(shape))
        assert_same_bits([emulated(call, simt_worker())], [expected(call)], op)


def test_no_races_on_shared_memory() -> None:
    calls = [image(op, taps) for op in ("dwt", "idwt") for taps in (4, 22)]
    calls += [c._replace(more={"scale": torch.linspace(0.5, 2, 4)}) for c in calls]
    with SimtWorker("races") as simt:
        for seed in (1, 2):
            simt.seed = seed
            for call in calls:
                assert_same_bits([emulated(call, simt)], [expected(call)], f"{call.op}, {call.bank}")
