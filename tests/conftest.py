# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.kit.alone import alone


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--first", action="append", default=[], metavar="WORD", help="run tests with it in their names first"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    words = config.getoption("first")
    items.sort(key=lambda item: not any(word in item.nodeid for word in words))


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Two threads, whatever the machine has: what a test proves must not depend on it."""
    torch.set_num_threads(2)


@pytest.fixture(autouse=True)
def _one_large_test_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that need much memory wait for each other, whatever process they are in."""
    if request.node.get_closest_marker("slow"):
        with alone("slow"):
            yield
    else:
        yield


def pytest_report_header() -> list[str]:
    import fastdiff

    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: cuda tests do not run"
    )
    versions = f"fastdiff {fastdiff.__version__}, torch {torch.__version__}"
    return [f"{versions}, ISA {fastdiff.isa()}, {os.cpu_count()} CPUs, {device}"]
