# SPDX-License-Identifier: Apache-2.0
"""Cases of match_tokens: ToMe's matching alone, its merge taken back, and match, merge and unmerge of a layer.

The floor of matching is the product's arithmetic, which a matrix product has too; what eager code does besides is
to write the scores and read them for their maxima. On the CPU PyTorch's 16-bit product has units that we do not use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastdiff import TokenMerge, gather_tokens, match_tokens
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench import match_tokens_peers as tome
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, Verdict, close_to
from torch import Tensor

OP = "match_tokens"
PUBLISHED, COMPILED = "tomesd's form", "torch.compile"

SMALL = (2, 64, 72)
# Stable Diffusion at 512 pixels
SHAPES = (SMALL, (2, 1024, 640), (2, 4096, 320))
DTYPES = (torch.float32, torch.bfloat16)
TITLES = {"match": "matching", "unmerge": "taking a merge back", "layer": "match, merge and unmerge"}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(name, s, d) for s in SHAPES for d in DTYPES for name in TITLES]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    build = {"match": _match, "unmerge": _unmerge, "layer": _layer}[name]
    return Case(
        op=OP,
        name=name,
        title=TITLES[name],
        shape=shape,
        dtype=dtype,
        tensors={"match": 1, "unmerge": 1, "layer": 4}[name],
        build=lambda device: build(_tokens(shape, dtype, device)),
        targets=() if shape == SMALL else (Target(PUBLISHED, factor=3.0), Target(COMPILED, factor=1.0)),
    )


def _tokens(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _side(x: Tensor) -> int:
    return round(x.shape[1] ** 0.5)


def _match(x: Tensor) -> list[Contender]:
    source, destination = tome.split(_side(x), x.shape[0], x.device)
    want, _ = tome.best(x.double(), source, destination)

    def published(x: Tensor, source: Tensor, destination: Tensor) -> Sequence[Tensor]:
        return tome.best(x, source, destination)

    def ours() -> Sequence[Tensor]:
        return match_tokens(gather_tokens(x, source), gather_tokens(x, destination))

    scores = close_to([want], roundoffs=64.0)
    unit = x.double() / x.double().norm(dim=-1, keepdim=True)
    a, b = tome.rows(unit, source), tome.rows(unit, destination)

    def check(got: Sequence[Tensor]) -> Verdict:
        """Of scores that rounding cannot tell apart either may be chosen."""
        verdict = scores(got[:1])
        chosen = (a * tome.rows(b, got[1])).sum(-1)
        limit = 64 * torch.finfo(x.dtype).eps
        if verdict.wrong is None and not float((want - chosen).max()) <= limit:
            return Verdict(verdict.error, "an index is not that of the highest score")
        return verdict

    given = [x, source, destination]
    return _three(published, given, ours, check)


def _unmerge(x: Tensor) -> list[Contender]:
    plan = TokenMerge.match(x, grid=(_side(x), _side(x)), ratio=0.5, random=False)
    y = plan.merge(x)

    def published(y: Tensor, *lists: Tensor) -> Sequence[Tensor]:
        return (tome.unmerge(y, tome.Lists(*lists)),)

    given = [y, *tome.lists_of(plan)]
    check = close_to(published(y.double(), *given[1:]), roundoffs=2.0)
    return _three(published, given, lambda: (plan.unmerge(y),), check)


def _layer(x: Tensor) -> list[Contender]:
    side, r = _side(x), x.shape[1] // 2

    def published(x: Tensor) -> Sequence[Tensor]:
        lists = tome.match(x, side, r)
        return (tome.unmerge(tome.merge(x, lists), lists),)

    def ours() -> Sequence[Tensor]:
        plan = TokenMerge.match(x, grid=(side, side), r=r, random=False)
        return (plan.unmerge(plan.merge(x)),)

    return _three(published, [x], ours, _merged_like(x))


def _merged_like(x: Tensor) -> Check:
    """A check that near equals do not decide: means over tokens, and the distance to the tokens."""
    wide, (side, r) = x.double(), (_side(x), x.shape[1] // 2)
    lists = tome.match(wide, side, r)
    spread = (tome.unmerge(tome.merge(wide, lists), lists) - wide).square().mean()

    def check(got: Sequence[Tensor]) -> Verdict:
        y = got[0].double()
        distance = abs(float((y - wide).square().mean() / spread) - 1)
        means = float((y.mean(1) - wide.mean(1)).abs().max())
        if distance <= 0.02 and means <= 8 * torch.finfo(x.dtype).eps:
            return Verdict(means)
        return Verdict(
            means, f"distance to the tokens off by {distance:.1e}, means over tokens by {means:.1e}"
        )

    return check


def _three(
    published: peers.Expression, given: list[Tensor], ours: peers.Expression, check: Check
) -> list[Contender]:
    return [
        Contender(PUBLISHED, peers.with_tensors(published, given, []), check),
        Contender(COMPILED, peers.compiled(published, given, []), check),
        Contender(OURS, ours, check, rival=None),
    ]
