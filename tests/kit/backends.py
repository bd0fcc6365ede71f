# SPDX-License-Identifier: Apache-2.0
"""The backends that run every case: cpu (each instruction set), simt (the CUDA kernels, emulated), cuda."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import fastdiff
import torch
from fastdiff._case import Case
from fastdiff._native import INSTRUCTION_SETS
from torch import Tensor

from tests.kit.ops import Op
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import moved


@functools.cache
def usable_isas() -> tuple[str, ...]:
    """The instruction sets that are built in and that this CPU has."""
    usable = []
    before = fastdiff.isa()
    for name in INSTRUCTION_SETS:
        try:
            fastdiff.use_isa(name)
        except ValueError:
            continue
        usable.append(name)
    fastdiff.use_isa(before)
    return tuple(usable)


def backends() -> list[str]:
    found = [f"cpu-{isa}" for isa in usable_isas()] + ["simt"]
    return [*found, "cuda"] if torch.cuda.is_available() else found


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = fastdiff.isa()
    fastdiff.use_isa(name)
    try:
        yield
    finally:
        fastdiff.use_isa(before)


@functools.cache
def simt_worker() -> SimtWorker:
    return SimtWorker()


def run(op: Op, case: Case, backend: str) -> tuple[Tensor, ...]:
    """The op's results on the CPU, computed by one backend."""
    if backend == "simt":
        return run_simt(op, case)
    if backend == "cuda":
        args, kwargs = moved((case.args, case.kwargs), "cuda")
        return tuple(t.cpu() for t in op(*args, **kwargs))
    with instruction_set(backend.removeprefix("cpu-")):
        return op(*case.args, **case.kwargs)


def run_simt(op: Op, case: Case) -> tuple[Tensor, ...]:
    """The CUDA kernel under the emulator, on copies between guard pages; outputs start as sentinel bytes."""
    stored = [_poisoned(t) for t in op.reference(case)]
    out = op.module.dlpack_outputs(stored, *case.args, **case.kwargs)
    simt_worker().call(op.name, **op.module.dlpack_arguments(*case.args, **case.kwargs), out=out)
    return tuple(stored)


def _poisoned(like: Tensor) -> Tensor:
    x = torch.empty_like(like, memory_format=torch.contiguous_format)
    x.reshape(-1).view(torch.uint8).fill_(0xA5)  # a tensor without dimensions has no other view in bytes
    return x
