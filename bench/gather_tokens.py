# SPDX-License-Identifier: Apache-2.0
"""Cases of gather_tokens: kept tokens, mask tokens in the places of the others, and FlexDiT's un-pooling.

The floor is a read of the tokens that are named and of the residual, and a write. Eager code writes what it gathers, or
what it interpolates in channels first, before it adds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fastdiff import gather_tokens, unpool_tokens
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import interpolate

OP = "gather_tokens"
EAGER, COMPILED = "eager", "torch.compile"

# Tokens of a square grid. DiT-XL at 256 and 512 pixels, Stable Diffusion at 512.
SMALL = (2, 16, 72)
SHAPES = (SMALL, (2, 256, 1152), (2, 1024, 1152), (2, 4096, 320))
DTYPES = (torch.float32, torch.bfloat16)
Pair = tuple[Callable[..., Sequence[Tensor]], Callable[..., Sequence[Tensor]], list[Tensor]]


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    titles = {
        "keep": "keep half of the tokens",
        "restore": "restore masked tokens",
        "unpool": "un-pool and add",
    }
    return [_case(name, titles[name], s, d) for s in SHAPES for d in DTYPES for name in titles]


def _case(name: str, title: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=name,
        title=title,
        shape=shape,
        dtype=dtype,
        tensors={"keep": 1, "restore": 2, "unpool": 2}[name],
        build=lambda device: _contenders(name, shape, dtype, device),
        targets=() if shape == SMALL else (Target(EAGER, factor=1.5), Target(COMPILED, factor=1.0)),
    )


def _keep(x: Tensor, kept: Tensor) -> Pair:
    def eager(x: Tensor, kept: Tensor) -> Sequence[Tensor]:
        return (x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])),)

    return eager, lambda x, kept: (gather_tokens(x, kept),), [x, kept]


def _restore(x: Tensor, kept: Tensor, order: Tensor, mask: Tensor, positions: Tensor) -> Pair:
    """MDT: `ids_restore` is known since the tokens were masked; so is our index."""
    few, ids_restore = gather_tokens(x, kept), order.argsort(dim=1)
    source = torch.where(ids_restore < kept.shape[1], ids_restore, -1)

    def eager(few: Tensor, ids: Tensor, mask: Tensor, positions: Tensor) -> Sequence[Tensor]:
        b, n = ids.shape
        whole = torch.cat([few, mask.expand(b, n - few.shape[1], -1)], 1)
        return (whole.gather(1, ids[..., None].expand(-1, -1, few.shape[2])) + positions,)

    def ours(few: Tensor, ids: Tensor, mask: Tensor, positions: Tensor) -> Sequence[Tensor]:
        return (gather_tokens(few, source, fill=mask, residual=positions.expand(few.shape[0], -1, -1)),)

    return eager, ours, [few, ids_restore, mask, positions]


def _unpool(few: Tensor, full: Tensor) -> Pair:
    """FlexDiT's recovery after its products: tokens of 1/4 of each side."""
    small, large = round(few.shape[1] ** 0.5), round(full.shape[1] ** 0.5)

    def eager(few: Tensor, full: Tensor) -> Sequence[Tensor]:
        b, _, c = few.shape
        image = few.permute(0, 2, 1).reshape(b, c, small, small)
        up = interpolate(image, size=(large, large), mode="nearest")
        return (up.reshape(b, c, -1).permute(0, 2, 1) + full,)

    def ours(few: Tensor, full: Tensor) -> Sequence[Tensor]:
        return (unpool_tokens(few, (small, small), (large, large), residual=full),)

    return eager, ours, [few, full]


def _contenders(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    b, n, c = shape

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=g).to(device, dtype)

    order = torch.rand(b, n, generator=g).argsort(dim=1).to(device)
    kept = order[:, : n // 2].contiguous()
    if name == "keep":
        eager, ours, given = _keep(normal(*shape), kept)
    elif name == "restore":
        eager, ours, given = _restore(normal(*shape), kept, order, normal(c), normal(1, n, c))
    else:
        eager, ours, given = _unpool(normal(b, n // 16, c), normal(*shape))
    wide = [t.double() if t.is_floating_point() else t for t in given]
    check = close_to([t.double() for t in eager(*wide)], roundoffs=2.0)
    return [
        Contender(EAGER, peers.with_tensors(eager, given, []), check),
        Contender(COMPILED, peers.compiled(eager, given, []), check),
        Contender(OURS, lambda: ours(*given), check, rival=None),
    ]
