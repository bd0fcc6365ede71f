# SPDX-License-Identifier: Apache-2.0
"""Many rows on Hopper: int8_linear and fp8_linear by wgmma, emulated, and on a GPU where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff._case import Case
from fastdiff.quant import pack_weight
from torch import Tensor

from tests.kit.backends import backends, run
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


class On:
    """One backend; the CPU has the same bits of int8, whose sums are exact."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def int8(self, *args: Any, **kwargs: Any) -> None:
        op, case = OPS["int8_linear"], Case("wide", args, kwargs)
        assert_same_bits(run(op, case, self.backend), run(op, case, "cpu-baseline"))

    def fp8(self, *args: Any, **kwargs: Any) -> None:
        op, case = OPS["weight_linear"], Case("wide", args, {"round_x": True, **kwargs})
        # Hopper keeps 13 bits behind the point of the largest of 33 terms.
        allowed = {**op.tolerance(case), "terms": 2**13}
        assert_close(run(op, case, self.backend)[0], op.reference(case)[0], **allowed)


@pytest.fixture(params=[name for name in backends() if name in ("simt", "cuda")])
def on(request: pytest.FixtureRequest) -> On:
    return On(request.param)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(on: On, size: str) -> None:
    m, k, n = SIZES[size]
    w, bias = normal(n, k), normal(n)
    on.int8(normal(m, k, dtype=HALF), packed=pack_weight(w), bias=bias, activation="gelu")
    on.fp8(normal(m, k, dtype=HALF), packed=pack_weight(w, "fp8"), bias=bias, activation="gelu")


def test_a_tile_for_each_multiprocessor(on: On) -> None:
    """Tiles of 256 rows, on a GPU too."""
    is_gpu = on.backend == "cuda"
    m = 256 * (torch.cuda.get_device_properties(0).multi_processor_count if is_gpu else 4)
    on.int8(normal(m - 5, 70), packed=pack_weight(normal(100, 70)))
    on.fp8(normal(m - 5, 70), packed=pack_weight(normal(100, 70), "fp8"))


def test_zero_points(on: On) -> None:
    packed = pack_weight(normal(40, 70) + 0.5, symmetric=False)
    x = torch.randint(-128, 128, (140, 70), generator=G, dtype=torch.int8)
    zeros = torch.randint(-128, 128, (140, 1), generator=G, dtype=torch.int32)
    on.int8(x, packed=packed, x_scale=normal(140, 1).abs(), x_zero_point=zeros, bias=normal(40))
    on.int8(normal(140, 70), packed=packed, bits=7)


def test_gated(on: On) -> None:
    x, w = normal(2, 70, 64, dtype=HALF), normal(300, 64)
    more = {"bias": normal(300), "activation": "gelu", "residual": normal(2, 70, 150), "gate": normal(2, 150)}
    on.int8(x, packed=pack_weight(w, gated=True), **more)
    on.fp8(x, packed=pack_weight(w, "fp8", gated=True), **more)


def test_branch(on: On) -> None:
    branch = (normal(3, 70, dtype=HALF), normal(40, 3, dtype=HALF), normal(2, 3))
    on.fp8(normal(2, 70, 70), packed=pack_weight(normal(40, 70), "fp8"), lowrank=branch)


def test_given_bytes(on: On) -> None:
    x, scale = normal(140, 300).mul(9).to(torch.float8_e4m3fn), normal(140, 1).abs()
    on.fp8(x, packed=pack_weight(normal(40, 300), "fp8"), x_scale=scale)


def test_a_row_that_has_no_scale(on: On) -> None:
    """It is NaN, and its neighbours in the tile are not."""
    x = normal(140, 70)
    x[1, 3], x[135, 5] = float("nan"), float("inf")
    on.int8(x, packed=pack_weight(normal(40, 70)))
    on.fp8(x, packed=pack_weight(normal(40, 70), "fp8"))
