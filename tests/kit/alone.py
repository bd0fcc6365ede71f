# SPDX-License-Identifier: Apache-2.0
"""What the processes that run the tests do one after the other."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build"


@contextmanager
def alone(name: str) -> Iterator[None]:
    """No other process of this checkout is inside a block of this name meanwhile."""
    FOLDER.mkdir(exist_ok=True)
    with open(FOLDER / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
