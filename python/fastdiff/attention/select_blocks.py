# SPDX-License-Identifier: Apache-2.0
"""select_blocks: of each row of scores the highest ones, by their number or by their share of the softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor scores, Tensor? count, Tensor? mass"


def _fake(scores: Tensor, *_: Any) -> Tensor:
    if scores.dim() != 4:
        raise RuntimeError(
            f"fastdiff::select_blocks: scores must have 4 dimensions [B, H, R, C], got {list(scores.shape)}"
        )
    return torch.empty_like(scores, dtype=torch.bool)


def _fake_out(scores: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != scores.device:
        raise RuntimeError(
            f"fastdiff::select_blocks: out must be on {scores.device} like scores, got {result.device}"
        )


_native.define(f"select_blocks({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"select_blocks.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def select_blocks(
    scores: Tensor,
    *,
    count: int | Tensor | None = None,
    mass: float | Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Of each row of scores the highest ones, without sorting it: by their number, or by their share of its softmax.

    With ``count``: that many, or all there are; NaN is above all numbers.
    With ``mass``: the fewest of which

    .. math::
        \sum_{c\ \text{chosen}} \mathrm{softmax}(s)_c \ge \text{mass}

    Of a row that has no softmax (a NaN or +∞ in it, or nothing but −∞) none. Of equal ones those in lower columns. A
    share is counted in units of 2⁻³⁰ of the row's largest: one that is smaller is none.

    Args:
        scores: ``[B, H, R, C]``: float32, float16, bfloat16 or float64, any strides; C at most 2³⁰.
        count: at least 1; or int64 ``[B or 1, H or 1]``, a count for each sample or head. One of count and mass must be
            given. A tensor may change from call to call in a compiled or captured graph; a number may not.
        mass: above 0 and at most 1; or float32 or float64 ``[B or 1, H or 1]``.
        out: where to write, bool ``[B, H, R, C]``; shares no memory with the inputs.

    Returns:
        bool ``[B, H, R, C]``: those that are chosen, with dimensions in memory as in scores; or ``out``.

    Raises:
        RuntimeError: a wrong dtype, shape, device, overlap, count or mass; nothing is written then. On CUDA a wrong
            value in a tensor stops the kernel like a device assert.
        NotImplementedError: gradients are asked for: indices have none.

    On the CPU and on CUDA, for any number of threads and any strides the same ones are chosen.

    Source: counts: Lu et al. 2025, MoBA; masses: Lai et al. 2025, FlexPrefill.
    """
    if torch.is_grad_enabled() and scores.requires_grad:
        raise NotImplementedError("fastdiff.select_blocks: does not record gradients; detach scores")
    count, mass = _limit(scores, count, torch.int64), _limit(scores, mass, torch.float64)
    if out is None:
        chosen: Tensor = torch.ops.fastdiff.select_blocks.default(scores, count, mass)
        return chosen
    torch.ops.fastdiff.select_blocks.out(scores, count, mass, result=out)
    _native.mark_written([out])
    return out


def _limit(scores: Tensor, limit: float | Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if limit is None or isinstance(limit, Tensor):
        return limit
    return torch.full((1, 1), limit, dtype=dtype, device=scores.device)


def reference(
    scores: Tensor, *, count: int | Tensor | None = None, mass: float | Tensor | None = None
) -> Tensor:
    """:func:`select_blocks` in plain PyTorch, with a sort and shares in the units of its weights."""
    if count is not None:
        order = scores.nan_to_num(math.inf, math.inf, -math.inf).argsort(dim=-1, descending=True, stable=True)
        nan_first = scores.isnan().gather(-1, order).int().argsort(dim=-1, descending=True, stable=True)
        order = order.gather(-1, nan_first)
        kept = torch.arange(scores.shape[-1]) < torch.as_tensor(count)[..., None, None]
        kept = kept.expand(scores.shape)
    else:
        wide = scores.double()
        share = torch.exp(wide - wide.amax(-1, keepdim=True)).nan_to_num(0)
        weights, order = (share * 2**30).long().sort(dim=-1, descending=True, stable=True)
        share_of_all = torch.as_tensor(mass).double()[..., None, None] * weights.sum(-1, keepdim=True)
        kept = weights.cumsum(-1) - weights < share_of_all
        kept &= wide.softmax(-1).isfinite().all(-1, keepdim=True)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, kept)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    scores: Tensor, *, count: int | Tensor | None = None, mass: float | Tensor | None = None
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.select_blocks_scratch(scores), dtype=torch.uint8, device=scores.device)
    limits = {"count": _limit(scores, count, torch.int64), "mass": _limit(scores, mass, torch.float64)}
    return {"scores": scores, "scratch": scratch, **limits}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (3 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    ties = torch.randint(-1, 2, (1, 2, 5, 40), generator=g).float()
    ties[..., ::2] *= -1  # zeros of both signs
    rough = normal(1, 1, 6, 37)
    rough[0, 0, 0, ::9], rough[0, 0, 0, 3], rough[0, 0, 1, 5] = math.nan, math.inf, math.inf
    rough[0, 0, 2], rough[0, 0, 3, ::2] = -math.inf, -math.inf
    return [
        *(Case(f"count, {str(t)[6:]}", (normal(2, 2, 3, 37, dtype=t),), {"count": 9})
          for t in (single, half, double)),
        *(Case(f"mass, {str(t)[6:]}", (normal(2, 2, 3, 37, dtype=t),), {"mass": 0.7})
          for t in (single, torch.float16, double)),
        Case("a count for each head", (normal(2, 3, 4, 20),), {"count": torch.tensor([[1, 5, 99]])}),
        Case("a mass for each sample", (normal(2, 2, 4, 70).mT,), {"mass": torch.tensor([[0.2], [0.95]])}),
        Case("count of ties", (ties,), {"count": 17}),
        Case("mass of ties", (ties,), {"mass": 0.5}),
        Case("count of nan and inf", (rough,), {"count": 4}),
        Case("mass of nan and inf", (rough,), {"mass": 0.9}),
        Case("a row of more keys than fit", (normal(1, 1, 1, 3100),), {"mass": 0.4}),
        *(Case(f"shape {list(s)}", (normal(*s),), {"count": 2}) for s in ((1, 2, 0, 8), (1, 2, 3, 0))),
    ]  # fmt: skip
