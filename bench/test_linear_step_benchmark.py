# SPDX-License-Identifier: Apache-2.0
"""The same cases under pytest-benchmark: ``pytest bench --benchmark-autosave``, then ``--benchmark-compare``.

For work on one op: its own times, from one commit to the next. ``fastdiff bench`` compares with other libraries.
"""

from __future__ import annotations

import math

import pytest
import torch
from fastdiff.bench.kit import Case, Contender, verify
from fastdiff.bench.linear_step import cases
from pytest_benchmark.fixture import BenchmarkFixture

ELEMENTS = 1 << 20  # the largest shape here


@pytest.mark.parametrize("name", ["fastdiff", "eager"])
@pytest.mark.parametrize("case", [c for c in cases() if math.prod(c.shape) <= ELEMENTS], ids=lambda c: c.id)
def test_linear_step(benchmark: BenchmarkFixture, case: Case, name: str) -> None:
    torch.set_num_threads(2)
    benchmark.group = case.id
    benchmark.extra_info["bytes"] = case.bytes_moved
    with torch.no_grad():
        contender = _contender(case, name)
        assert verify(contender).wrong is None
        benchmark(contender.call)


def _contender(case: Case, name: str) -> Contender:
    return next(c for c in case.build(torch.device("cpu")) if c.name == name)
