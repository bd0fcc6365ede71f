# SPDX-License-Identifier: Apache-2.0
"""Cases of attention_map_energy: energies of self-attention maps, against the maps in PyTorch.

The sizes are those of Stable Diffusion 1 (heads of 40) and 2 (of 64) at 256 and 512 pixels. The floor of multiply-adds
is that of the two products, 2 D for each pair of tokens; eager code moves maps through memory several times besides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fastdiff import attention_map_energy
from fastdiff.attention.attention_map_energy import expression
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, close_to
from torch import Tensor

OP = "attention_map_energy"
EAGER, COMPILED = "eager", "torch.compile"

SMALL = (1, 2, 64, 40)
SHAPES = (SMALL, (1, 8, 1024, 40), (1, 8, 1024, 64), (1, 8, 4096, 40), (1, 8, 4096, 64))
ROUNDOFFS = 512.0  # of a difference of maps that are a tenth apart
BY = 0.1


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(s) for s in SHAPES]


def _case(shape: tuple[int, ...]) -> Case:
    return Case(
        op=OP,
        name="energy",
        title="energy of attention maps",
        shape=shape,
        dtype=torch.float32,
        tensors=4,
        build=lambda device: _contenders(shape, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.5), Target(COMPILED, factor=1.0)),
        flops=4 * math.prod(shape) * shape[2],  # two maps
    )


def maps_of(shape: tuple[int, ...], device: torch.device) -> list[Tensor]:
    """q, k, q_ref, k_ref in float32: references nearby, as in guidance."""
    g = torch.Generator().manual_seed(0)
    q, k, q_noise, k_noise = (torch.randn(shape, generator=g) for _ in range(4))
    return [t.to(device) for t in (q, k, q + BY * q_noise, k + BY * k_noise)]


def by_heads(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The results [B, H, ...] of a head after the other, in float64: maps of all heads would take gigabytes."""
    heads = [function(*(t[:, h : h + 1].double() for t in tensors)) for h in range(tensors[0].shape[1])]
    return [torch.cat(parts, 1) for parts in zip(*heads, strict=True)]


def _check(tensors: Sequence[Tensor], scale: float) -> Check:
    (energies,) = by_heads(lambda *t: (expression(*t, scale)[:, None],), tensors)
    return close_to([energies.mean(1)], roundoffs=ROUNDOFFS)


def _contenders(shape: tuple[int, ...], device: torch.device) -> list[Contender]:
    tensors, scale = maps_of(shape, device), 1 / math.sqrt(shape[-1])
    check = _check(tensors, scale)
    compiled = torch.compile(expression)
    return [
        Contender(EAGER, lambda: (expression(*tensors, scale),), check),
        Contender(COMPILED, lambda: (compiled(*tensors, scale),), check),
        Contender(OURS, lambda: (attention_map_energy(*tensors),), check, rival=None),
    ]
