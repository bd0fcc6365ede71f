# SPDX-License-Identifier: Apache-2.0
"""Cases of attention_map_energy_gradient: a forward and a backward pass of guidance, against the maps in PyTorch.

The floor is four products, 4 D multiply-adds for each pair of tokens. Ours is what a user calls, ``backward`` included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fastdiff import attention_map_energy
from fastdiff.attention.attention_map_energy import expression
from fastdiff.attention.attention_map_energy_gradient import reference
from fastdiff.bench.attention_map_energy import COMPILED, EAGER, SHAPES, SMALL, by_heads, maps_of
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor

OP = "attention_map_energy_gradient"
ROUNDOFFS = 2048.0  # as of the energy, and sums over all tokens
WEIGHT = 3e5  # Guide-and-Rescale's


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(s) for s in SHAPES]


def _case(shape: tuple[int, ...]) -> Case:
    return Case(
        op=OP,
        name="guidance",
        title="energy of attention maps with gradients",
        shape=shape,
        dtype=torch.float32,
        tensors=6,
        build=lambda device: _contenders(shape, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.5), Target(COMPILED, factor=1.0)),
        flops=8 * math.prod(shape) * shape[2],  # two maps, and their gradient times q and k
    )


def _gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor]) -> Sequence[Tensor]:
    with torch.enable_grad():
        return torch.autograd.grad(WEIGHT * function(*leaves).sum(), leaves)


def _contenders(shape: tuple[int, ...], device: torch.device) -> list[Contender]:
    q, k, *references = maps_of(shape, device)
    leaves, scale = [q.requires_grad_(), k.requires_grad_()], 1 / math.sqrt(shape[-1])
    want = by_heads(lambda *t: reference(*t)[1:], [q, k, *references])
    check = close_to([WEIGHT / shape[1] * t for t in want], roundoffs=ROUNDOFFS)
    compiled = torch.compile(expression)
    return [
        Contender(EAGER, lambda: _gradients(lambda *t: expression(*t, *references, scale), leaves), check),
        Contender(COMPILED, lambda: _gradients(lambda *t: compiled(*t, *references, scale), leaves), check),
        Contender(
            OURS,
            lambda: _gradients(lambda *t: attention_map_energy(*t, *references), leaves),
            check,
            rival=None,
        ),
    ]
