# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """Two threads, whatever the machine has: what a test proves must not depend on it."""
    torch.set_num_threads(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need much memory come one after the other: all in one process."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.xdist_group("slow"))


def pytest_report_header() -> list[str]:
    import fastdiff

    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device: cuda tests do not run"
    )
    versions = f"fastdiff {fastdiff.__version__}, torch {torch.__version__}"
    return [f"{versions}, ISA {fastdiff.isa()}, {os.cpu_count()} CPUs, {device}"]
