# SPDX-License-Identifier: Apache-2.0
"""What the tests of planners share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread(_few_threads: None) -> None:
    """Their tensors are tiny: a second thread would only spin, and cost more than it does on a busy machine."""
    torch.set_num_threads(1)
