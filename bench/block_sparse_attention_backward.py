# SPDX-License-Identifier: Apache-2.0
"""Cases of block_sparse_attention_backward: forward and backward together, against dense attention.

On the CPU no other library has gradients of attention that skips blocks; FlexAttention's are for GPUs. The floor is 2.5
times the forward pass' in the backward pass: five products for its two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fastdiff import block_sparse_attention
from fastdiff.bench.block_sparse_attention import DENSE, SMALL, name_of, plan_of, seen, tensors_of
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

OP = "block_sparse_attention_backward"
SHAPES = (SMALL, (1, 8, 2048, 64))
DTYPES = (torch.float32, torch.bfloat16)
SHARES = {1.0: 1.0, 0.25: 4.0, 0.1: 9.0}
ROUNDOFFS = 64.0  # sums over as many queries as keys


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(share, s, d) for s in SHAPES for d in DTYPES for share in SHARES]


def _case(share: float, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=name_of(share),
        title=f"attention and its gradients, {share:.0%} of the blocks",
        shape=shape,
        dtype=dtype,
        tensors=8,
        build=lambda device: _contenders(share, shape, dtype, device),
        targets=() if shape == SMALL else (Target(DENSE, factor=SHARES[share]),),
        flops=14 * math.prod(shape) * shape[2] * seen(share, shape[2]),  # two products forward, five back
    )


def _gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor], dout: Tensor) -> Sequence[Tensor]:
    with torch.enable_grad():
        return torch.autograd.grad(function(*leaves), leaves, dout)


def _contenders(
    share: float, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    *given, dout = tensors_of(shape, dtype, device, 4)
    plan = plan_of(share, shape[2], device)
    mask = plan.to_mask()
    leaves = [t.requires_grad_() for t in given]
    wide = [t.detach().double().requires_grad_() for t in given]

    def sparse64(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, mask)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_sparse_attention(q, k, v, plan)[0]

    want = _gradients(sparse64, wide, dout.double())
    dense = _gradients(scaled_dot_product_attention, wide, dout.double())
    return [
        Contender(
            DENSE,
            lambda: _gradients(scaled_dot_product_attention, leaves, dout),
            close_to(dense, roundoffs=ROUNDOFFS),
        ),
        Contender(
            OURS, lambda: _gradients(ours, leaves, dout), close_to(want, roundoffs=ROUNDOFFS), rival=None
        ),
    ]
