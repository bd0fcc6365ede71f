# SPDX-License-Identifier: Apache-2.0
"""Cases of select_blocks: the highest of each row of scores, and whole plans made of them, as a share of their use.

A plan that changes at every layer and step must cost little beside the attention that follows: at most 5 % of its
time. The floor of a plan is one read of q and k, for their means.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fastdiff import AttentionPlan, block_sparse_attention, select_blocks
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.block_means import means
from fastdiff.bench.block_sparse_attention import tensors_of
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, Verdict
from fastdiff.bench.list_blocks import lists
from torch import Tensor

OP = "select_blocks"
EAGER, COMPILED, ATTENTION = "eager", "torch.compile", "attention"

SMALL, SMALL_TOKENS = (1, 2, 8, 64), (1, 1, 256, 64)
SCORES = (SMALL, (1, 8, 64, 64), (1, 8, 256, 256))  # of 4096 and of 16384 tokens
TOKENS = (SMALL_TOKENS, (1, 8, 4096, 64))
SHARES = {"25_percent": 0.25, "10_percent": 0.1}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [
        *(_case(way, shape) for shape in SCORES for way in ("count", "mass")),
        *(_plan_case(way, name, shape) for shape in TOKENS for way in ("topk", "mass") for name in SHARES),
    ]


# ---- rows of scores --------------------------------------------------------------------------------------------


def by_count(scores: Tensor, count: int) -> Sequence[Tensor]:
    """With PyTorch."""
    best = scores.topk(count, -1).indices
    return (torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True),)


def by_mass(scores: Tensor, mass: float) -> Sequence[Tensor]:
    """With PyTorch."""
    share, order = torch.softmax(scores, -1).sort(dim=-1, descending=True, stable=True)
    kept = share.cumsum(-1) - share < mass
    return (torch.zeros_like(kept).scatter_(-1, order, kept),)


def _case(way: str, shape: tuple[int, ...]) -> Case:
    return Case(
        op=OP,
        name=way,
        title=f"blocks by {way}",
        shape=shape,
        dtype=torch.float32,
        tensors=1,
        build=lambda device: _contenders(way, shape, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.0), Target(COMPILED, factor=1.0)),
    )


def _contenders(way: str, shape: tuple[int, ...], device: torch.device) -> list[Contender]:
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    limit: float = shape[3] // 4 if way == "count" else 0.5

    def theirs(scores: Tensor) -> Sequence[Tensor]:
        return by_count(scores, int(limit)) if way == "count" else by_mass(scores, limit)

    check = _best_of(scores, limit)
    return [
        Contender(EAGER, lambda: theirs(scores), check),
        Contender(COMPILED, peers.compiled(theirs, [scores], []), check),
        Contender(OURS, lambda: (select_blocks(scores, **{way: limit}),), check, rival=None),
    ]


def _best_of(scores: Tensor, limit: float) -> Check:
    """A check: no other one is better, and no fewer reach the limit, but for roundings of the sum."""
    share = scores.double().softmax(-1)

    def check(got: Sequence[Tensor]) -> Verdict:
        chosen = got[0]
        least = torch.where(chosen, share, 2).amin(-1)
        if bool((torch.where(chosen, 0, share).amax(-1) > least * (1 + 1e-5)).any()):
            return Verdict(1.0, "a better one is left out")
        size = chosen.sum(-1).double() if limit >= 1 else torch.where(chosen, share, 0).sum(-1)
        last = 1 if limit >= 1 else least
        if bool(((size < limit - 1e-6) | (size - last > limit + 1e-6)).any()):
            return Verdict(1.0, "too few or too many are chosen")
        return Verdict(0.0)

    return check


# ---- plans -----------------------------------------------------------------------------------------------------


def _plan_case(way: str, name: str, shape: tuple[int, ...]) -> Case:
    return Case(
        op=OP,
        name=f"plan_by_{way}_{name}",
        title=f"plan by {way}, {SHARES[name]:.0%} of the blocks",
        shape=shape,
        dtype=torch.float32,
        tensors=2,
        build=lambda device: _plan_contenders(way, SHARES[name], shape, device),
        targets=() if shape == SMALL_TOKENS else (Target(EAGER, factor=1.0), Target(ATTENTION, factor=20.0)),
    )


def _plan_contenders(way: str, share: float, shape: tuple[int, ...], device: torch.device) -> list[Contender]:
    q, k, v = tensors_of(shape, torch.float32, device)
    blocks = -(-shape[2] // 64)
    count = max(1, round(share * blocks))
    # Of scores that are all alike, as those of random tokens nearly are, this many have about this mass.
    limit = count if way == "topk" else share

    def eager() -> Sequence[Tensor]:
        scores = means(q)[0] @ means(k)[0].mT / shape[-1] ** 0.5
        return lists((by_count(scores, count) if way == "topk" else by_mass(scores, share))[0])[:2]

    def ours() -> AttentionPlan:
        make: Callable[..., AttentionPlan] = (
            AttentionPlan.topk if way == "topk" else AttentionPlan.cumulative_mass
        )
        return make(q, k, limit)

    plan = ours()
    wide = (means(q.double())[0] @ means(k.double())[0].mT) / shape[-1] ** 0.5
    best = _best_of(wide, limit)

    def check(got: Sequence[Tensor]) -> Verdict:
        made = AttentionPlan(shape[2], shape[2], (64, 64), *got)
        return best([made.to_blocks()])

    return [
        Contender(EAGER, eager, check),
        Contender(ATTENTION, lambda: block_sparse_attention(q, k, v, plan), lambda _: Verdict(0.0)),
        Contender(OURS, lambda: (lambda made: (made.offsets, made.columns))(ours()), check, rival=None),
    ]
