# SPDX-License-Identifier: Apache-2.0
"""Cases of cached_residual_add: PixArt's block fully cached, and a run of four, against the eager residuals.

The floor is a read of h and of each component and a write. Eager code reads and writes the stream once per component,
and a product besides where there is a gate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import cached_residual_add
from fastdiff.attention.cached_residual_add import reference
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor

OP = "cached_residual_add"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (2, 7, 1152)
# PixArt at 256, 512 and 1024 pixels, with guidance
SHAPES = (SMALL, (2, 256, 1152), (2, 1024, 1152), (2, 4096, 1152))
DTYPES = (torch.float32, torch.bfloat16)
BLOCKS = {"block": 1, "run_of_4_blocks": 4}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(name, s, d) for s in SHAPES for d in DTYPES for name in BLOCKS]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=name,
        title="a cached transformer block"
        if BLOCKS[name] == 1
        else f"{BLOCKS[name]} cached transformer blocks",
        shape=shape,
        dtype=dtype,
        tensors=3 * BLOCKS[name] + 2,
        build=lambda device: _contenders(BLOCKS[name], shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=2.0), Target(COMPILED, factor=1.0)),
    )


def _contenders(
    blocks: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    g = torch.Generator().manual_seed(0)

    def normal(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(size, generator=g).to(device, of)

    h, components = normal(*shape), [normal(*shape) for _ in range(3 * blocks)]
    gates = [normal(shape[0], 1, shape[2]) for _ in range(2 * blocks)]
    gate_of = [gate for n in range(blocks) for gate in (gates[2 * n], None, gates[2 * n + 1])]
    check = close_to([reference(h, components, gate_of).double()], roundoffs=16.0 * blocks)

    def expression(h: Tensor, *rest: Tensor) -> Sequence[Tensor]:
        for n in range(blocks):
            attn1, attn2, ff = rest[3 * n : 3 * n + 3]
            gate_msa, gate_mlp = rest[3 * blocks + 2 * n : 3 * blocks + 2 * n + 2]
            h = h + gate_msa * attn1
            h = h + attn2
            h = h + gate_mlp * ff
        return (h,)

    given = [h, *components, *gates]
    return [
        Contender(EAGER, peers.with_tensors(expression, given, []), check),
        Contender(COMPILED, peers.compiled(expression, given, []), check),
        Contender(OURS, lambda: (cached_residual_add(h, components, gate_of),), check, rival=None),
    ]
