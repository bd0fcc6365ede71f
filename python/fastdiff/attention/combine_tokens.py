# SPDX-License-Identifier: Apache-2.0
"""combine_tokens: weighted sums of tokens over lists of their numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.attention.gather_tokens import tokens_like

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor x, Tensor offsets, Tensor members, Tensor? weights"


def _fake(x: Tensor, offsets: Tensor, members: Tensor, weights: Tensor | None) -> Tensor:
    if x.dim() != 3 or offsets.dim() != 2:
        raise RuntimeError(
            f"fastdiff::combine_tokens: x and offsets must be [B, N, C] and [B or 1, M + 1], "
            f"got {list(x.shape)} and {list(offsets.shape)}"
        )
    return tokens_like(x, offsets.shape[1] - 1)


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::combine_tokens: out must be on {x.device} like x, got {result.device}")


_native.define(f"combine_tokens({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"combine_tokens.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def combine_tokens(
    x: Tensor,
    offsets: Tensor,
    members: Tensor,
    weights: Tensor | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""Weighted sums of tokens over lists of their numbers, in compressed rows (CSR):

    .. math::
        y_{b,m} = \sum_{e = \text{offsets}[b,m]}^{\text{offsets}[b,m+1] - 1}
            \text{weights}[b,e] \; x_{b,\,\text{members}[b,e]}

    Every member is read once and y is written once. :func:`adaptive_pool_tokens` and :meth:`TokenMerge.merge` are this,
    and so is the gradient of :func:`gather_tokens`.

    Args:
        x: tokens ``[B, N, C]``: float32, float16, bfloat16 or float64, any strides.
        offsets: int64 or int32 ``[B or 1, M + 1]``, ascending from 0 or more to E or less: where each list begins, and
            where the last one ends. An empty list has the sum 0.
        members: int64 or int32 ``[B or 1, E]``: numbers of tokens from 0 to N − 1. What is in no list is not looked at.
        weights: ``[B or 1, E]``, float32, float16, bfloat16 or float64; default: 1.
        out: where to write, ``[B, M, C]`` of the dtype of x; shares no memory with the inputs.

    Returns:
        y ``[B, M, C]``, in the dtype of x, or ``out``. Sums are float32 (float64 for float64), in the list's order,
        by fused multiply-adds, and rounded once.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap; on the CPU offsets that do not ascend or a number outside
            0 … N − 1. Nothing is written then. On CUDA such lists stop the kernel, like a device assert; nothing out of
            bounds is read.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to x and weights, of any order; the gradient of x is the same over the transposed lists.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: FlexDiT, ``DownSample``; Token Merging for Fast Stable Diffusion, merge.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weights, out)):
        from fastdiff.attention.combine_tokens_grad import differentiable_combine

        if out is not None:
            raise NotImplementedError(
                "fastdiff.combine_tokens: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_combine(x, offsets, members, weights)
    if out is None:
        y: Tensor = torch.ops.fastdiff.combine_tokens.default(x, offsets, members, weights)
        return y
    torch.ops.fastdiff.combine_tokens.out(x, offsets, members, weights, result=out)
    _native.mark_written([out])
    return out


def reference(x: Tensor, offsets: Tensor, members: Tensor, weights: Tensor | None = None) -> Tensor:
    """:func:`combine_tokens` in plain PyTorch and float64, a list at a time; rounded at the end."""
    b, m, e = x.shape[0], offsets.shape[1] - 1, members.shape[1]
    y = tokens_like(x, m)
    lists, numbers = offsets.expand(b, m + 1).tolist(), members.expand(b, e)
    w = torch.ones(b, e, dtype=torch.float64) if weights is None else weights.double().expand(b, e)
    for sample in range(b):
        for n in range(m):
            mine = slice(lists[sample][n], lists[sample][n + 1])
            terms = w[sample, mine, None] * x[sample, numbers[sample, mine].long()].double()
            y[sample, n] = terms.sum(0)
    return y


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    x: Tensor, offsets: Tensor, members: Tensor, weights: Tensor | None = None
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"x": x, "offsets": offsets, "members": members, "weights": weights}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def tolerance(x: Tensor, offsets: Tensor, members: Tensor, weights: Tensor | None = None) -> dict[str, float]:
    """Of a sum over the longest list."""
    longest = max(offsets.diff(dim=1).flatten().tolist(), default=0)
    largest = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    factor = float(weights.double().abs().max()) if weights is not None and weights.numel() else 1.0
    return {"scale": max(1.0, largest * factor * longest), "terms": 4 + longest}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def lists(b: int, m: int, e: int, n: int) -> tuple[Tensor, Tensor]:
        """Of any lengths; some entries at both ends are in none."""
        bounds = torch.randint(0, e + 1, (b, m + 1), generator=g).sort(1).values
        return bounds, torch.randint(0, n, (b, e), generator=g)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(1, 4, 20)
    rough[0, 2, 3], rough[0, 1, 5] = float("nan"), float("inf")
    means = (torch.tensor([[0, 2, 2, 6]]), torch.tensor([[4, 0, 1, 2, 3, 3]]))
    return [
        *(Case(f"weighted, {str(t)[6:]}", (normal(2, 7, 72, dtype=t), *lists(2, 5, 23, 7), normal(2, 23)))
          for t in (single, half, torch.float16, double)),
        Case("sums", (normal(2, 7, 33), *lists(2, 9, 30, 7))),
        Case("the same lists for all samples, int32",
             (normal(3, 5, 64), *(t.int() for t in means), normal(1, 6, dtype=half))),
        Case("own weights for each sample", (normal(2, 5, 17, dtype=half), *means, normal(2, 6))),
        Case("own offsets, the same members", (normal(2, 6, 200), lists(2, 4, 12, 6)[0], lists(1, 1, 12, 6)[1])),
        Case("as many as before, channels first", (normal(2, 9, 5).transpose(1, 2), *lists(2, 5, 9, 5))),
        Case("nan and inf", (rough, torch.tensor([[0, 1, 3, 4]]), torch.tensor([[0, 1, 2, 3]]))),
        *(Case(f"{b} samples, {m} lists", (normal(b, 5, 8), lists(b, m, 4, 5)[0], lists(b, m, 4, 5)[1]))
          for b, m in ((0, 2), (2, 0))),
    ]  # fmt: skip
