# SPDX-License-Identifier: Apache-2.0
"""Cases of dequantize: tokens with a scale each, and weights with a scale for each output channel.

The floor is a read of a byte and a write of a number for each element.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import dequantize
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor

OP = "dequantize"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (16, 1152)
SHAPES = (SMALL, (1024, 1152), (4096, 1152))
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(s, d) for s in SHAPES for d in DTYPES]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="rows",
        title="numbers of int8, a scale a row",
        shape=shape,
        dtype=dtype,
        tensors=1,  # and a byte for each element, which the share of the copy leaves out
        build=lambda device: _contenders(shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.5), Target(COMPILED, factor=1.0)),
    )


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    q = torch.randint(-127, 128, shape, generator=g, dtype=torch.int8).to(device)
    scale = torch.rand(shape[0], 1, generator=g).to(device)

    def eager(q: Tensor, scale: Tensor) -> Sequence[Tensor]:
        return ((q.float() * scale).to(dtype),)

    check = close_to([q.double() * scale.double()], roundoffs=2.0)
    return [
        Contender(EAGER, peers.with_tensors(eager, [q, scale], []), check),
        Contender(COMPILED, peers.compiled(eager, [q, scale], []), check),
        Contender(OURS, lambda: (dequantize(q, scale, dtype=dtype),), check, rival=None),
    ]
