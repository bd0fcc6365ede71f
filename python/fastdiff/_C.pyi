# SPDX-License-Identifier: Apache-2.0
# The torch-free module; its functions have docstrings. Named here: what the package itself calls.
from typing import Any

def use_isa(name: str) -> None: ...
def linear_step_into(
    inputs: list[Any],
    table: Any,
    step: Any,
    store: list[int],
    rng: Any | None,
    gate_table: Any | None,
    mask: Any | None,
    results: list[Any],
    /,
) -> bool: ...
def __getattr__(name: str) -> Any: ...
