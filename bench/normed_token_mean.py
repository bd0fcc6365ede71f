# SPDX-License-Identifier: Apache-2.0
"""Cases of normed_token_mean: FlexDiT's Poolingformer mixer, as published and as it can be.

The floor of the mixer is two reads of the tokens and a write. The published form multiplies a matrix of N x N equal
numbers with the values of every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import uniform_mixer
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import layer_norm, linear

OP = "normed_token_mean"
EAGER, COMPILED = "published", "torch.compile"

SMALL = (2, 7, 1152)
# DiT-XL at 256 and 512 pixels, with guidance
SHAPES = (SMALL, (2, 256, 1152), (2, 1024, 1152))
DTYPES = (torch.float32, torch.bfloat16)
HEADS = 16


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(s, d) for s in SHAPES for d in DTYPES]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name="mixer",
        title="Poolingformer mixer",
        shape=shape,
        dtype=dtype,
        tensors=3,
        build=lambda device: _contenders(shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=20.0), Target(COMPILED, factor=1.0)),
    )


def published(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    qkv: Tensor,
    b_qkv: Tensor,
    w_o: Tensor,
    b_o: Tensor,
) -> Sequence[Tensor]:
    """FlexDiT's PoolingAttention in its block."""
    b, n, d = x.shape
    m = layer_norm(x, (d,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    v = linear(m, qkv, b_qkv).view(b, n, 3, HEADS, d // HEADS).permute(2, 0, 3, 1, 4)[2]
    mixed = torch.ones(b, HEADS, n, n, dtype=x.dtype, device=x.device).softmax(-1) @ v
    return (x + gate[:, None] * linear(mixed.transpose(1, 2).reshape(b, n, d), w_o, b_o),)


def _contenders(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    b, _, d = shape
    sizes = (shape, *((b, d),) * 3, (3 * d, d), (3 * d,), (d, d), (d,))
    given = [
        torch.randn(size, generator=g).div(d**0.5 if len(size) == 2 and size[0] >= d else 1) for size in sizes
    ]
    given = [t.to(device, dtype) for t in given]
    x, shift, scale, gate, qkv, b_qkv, w_o, b_o = given
    value, output = (qkv[2 * d :], b_qkv[2 * d :]), (w_o, b_o)
    check = close_to(published(*(t.double() for t in given)), roundoffs=64.0)
    return [
        Contender(EAGER, peers.with_tensors(published, given, []), check),
        Contender(COMPILED, peers.compiled(published, given, []), check),
        Contender(
            OURS,
            lambda: (uniform_mixer(x, shift=shift, scale=scale, gate=gate, value=value, output=output),),
            check,
            rival=None,
        ),
    ]
