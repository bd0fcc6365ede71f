# SPDX-License-Identifier: Apache-2.0
"""Many rows on Hopper: int8_linear and fp8_linear by wgmma, emulated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff._case import Case
from fastdiff.quant import pack_weight
from torch import Tensor

from tests.kit.backends import run, run_simt
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.ops import find

OPS = {op.name: op for op in find()}
G = torch.Generator().manual_seed(0)
HALF = torch.bfloat16

# M, K, N. Tiles have 128 or 256 rows and 128 columns; a stage is 128 along K, and there are four. The emulated device
# has 4 multiprocessors: tiles of 256 rows from 4 of them on.
SIZES = {
    "one piece, one panel": (128, 64, 16),
    "two rows in a tile": (130, 70, 40),
    "half a stage at the end": (129, 129, 130),
    "256 rows, stages used again": (300, 1300, 200),
    "256 rows, half of them empty": (513, 40, 130),
}


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=G, dtype=torch.float64).to(dtype)


def check_int8(*args: Any, **kwargs: Any) -> None:
    """Sums are exact, so the CPU has the same bits."""
    op, case = OPS["int8_linear"], Case("wide", args, kwargs)
    assert_same_bits(run_simt(op, case), run(op, case, "cpu-baseline"))


def check_fp8(*args: Any, **kwargs: Any) -> None:
    op, case = OPS["weight_linear"], Case("wide", args, {"round_x": True, **kwargs})
    assert_close(run_simt(op, case)[0], op.reference(case)[0], **op.tolerance(case))


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: str) -> None:
    m, k, n = SIZES[size]
    w, bias = normal(n, k), normal(n)
    check_int8(normal(m, k, dtype=HALF), packed=pack_weight(w), bias=bias, activation="gelu")
    check_fp8(normal(m, k, dtype=HALF), packed=pack_weight(w, "fp8"), bias=bias, activation="gelu")


def test_zero_points() -> None:
    packed = pack_weight(normal(40, 70) + 0.5, symmetric=False)
    x = torch.randint(-128, 128, (140, 70), generator=G, dtype=torch.int8)
    zeros = torch.randint(-128, 128, (140, 1), generator=G, dtype=torch.int32)
    check_int8(x, packed=packed, x_scale=normal(140, 1).abs(), x_zero_point=zeros, bias=normal(40))
    check_int8(normal(140, 70), packed=packed, bits=7)


def test_gated() -> None:
    x, w = normal(2, 70, 64, dtype=HALF), normal(300, 64)
    more = {"bias": normal(300), "activation": "gelu", "residual": normal(2, 70, 150), "gate": normal(2, 150)}
    check_int8(x, packed=pack_weight(w, gated=True), **more)
    check_fp8(x, packed=pack_weight(w, "fp8", gated=True), **more)


def test_branch() -> None:
    branch = (normal(3, 70, dtype=HALF), normal(40, 3, dtype=HALF), normal(2, 3))
    check_fp8(normal(2, 70, 70), packed=pack_weight(normal(40, 70), "fp8"), lowrank=branch)


def test_given_bytes() -> None:
    x, scale = normal(140, 300).mul(9).to(torch.float8_e4m3fn), normal(140, 1).abs()
    check_fp8(x, packed=pack_weight(normal(40, 300), "fp8"), x_scale=scale)


def test_a_row_that_has_no_scale() -> None:
    """It is NaN, and its neighbours in the tile are not."""
    x = normal(140, 70)
    x[1, 3], x[135, 5] = float("nan"), float("inf")
    check_int8(x, packed=pack_weight(normal(40, 70)))
    check_fp8(x, packed=pack_weight(normal(40, 70), "fp8"))
