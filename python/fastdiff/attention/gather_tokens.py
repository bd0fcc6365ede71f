# SPDX-License-Identifier: Apache-2.0
"""gather_tokens: tokens by their numbers, something else where there is none, and a residual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False  # over `residual` it is, over x it cannot be

_ARGUMENTS = "Tensor x, Tensor index, Tensor? fill, Tensor? residual"


def tokens_like(x: Tensor, count: int) -> Tensor:
    """A new tensor [B, count, C] for tokens x [B, N, C]."""
    return torch.empty_like(x) if count == x.shape[1] else x.new_empty(x.shape[0], count, x.shape[2])


def _fake(x: Tensor, index: Tensor, fill: Tensor | None, residual: Tensor | None) -> Tensor:
    if x.dim() != 3 or index.dim() != 2:
        raise RuntimeError(
            f"fastdiff::gather_tokens: x and index must be [B, N, C] and [B or 1, M], "
            f"got {list(x.shape)} and {list(index.shape)}"
        )
    return tokens_like(x, index.shape[1])


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::gather_tokens: out must be on {x.device} like x, got {result.device}")


_native.define(f"gather_tokens({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"gather_tokens.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def gather_tokens(
    x: Tensor,
    index: Tensor,
    *,
    fill: Tensor | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Tokens by their numbers, something else where there is none, and a residual:

    .. math::
        y_{b,m} = \begin{cases} x_{b,\,\text{index}[b,m]} & \text{index}[b,m] \ge 0 \\
            \text{fill}_{b,m} & \text{index}[b,m] = -1 \end{cases} \; + \; \text{residual}_{b,m}

    One read and one write, where eager code gathers, concatenates and adds. The tokens that a mask keeps are
    ``gather_tokens(x, kept)``; :func:`scatter_tokens` puts them back among mask tokens, :func:`unpool_tokens` is
    nearest interpolation, :meth:`TokenMerge.unmerge` gives every token its group's value. What is linear and the same
    for every token, such as a gate over channels, commutes with all of these: do it where there are fewer tokens.

    Args:
        x: tokens ``[B, N, C]``: float32, float16, bfloat16 or float64, any strides.
        index: int64 or int32 ``[B or 1, M]``: numbers of tokens from 0 to N − 1, each any number of times, or −1.
        fill: ``[C]`` or ``[B or 1, M or 1, C]``, of any of these dtypes: what is where the index is −1. Default: 0.
        residual: ``[B, M, C]``, of any of these dtypes: what is added; default: nothing.
        out: where to write, ``[B, M, C]`` of the dtype of x; may be exactly the residual, shares no memory with others.

    Returns:
        y ``[B, M, C]``, in the dtype of x, or ``out``. The sum is float32 (float64 for float64) and rounded once.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap; on the CPU a number outside −1 … N − 1. Nothing is
            written then. On CUDA such a number stops the kernel, like a device assert; nothing out of bounds is read.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to x, fill and residual, of any order; the gradient of x is :func:`combine_tokens`.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: masked tokens of MDT and ITA-MDT; FlexDiT, ``RecoveryBlock``; Token Merging for Fast Stable Diffusion.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, fill, residual, out)):
        from fastdiff.attention.gather_tokens_grad import differentiable_gather

        if out is not None:
            raise NotImplementedError(
                "fastdiff.gather_tokens: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_gather(x, index, fill, residual)
    if out is None:
        y: Tensor = torch.ops.fastdiff.gather_tokens.default(x, index, fill, residual)
        return y
    torch.ops.fastdiff.gather_tokens.out(x, index, fill, residual, result=out)
    _native.mark_written([out])
    return out


def reference(
    x: Tensor, index: Tensor, *, fill: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """:func:`gather_tokens` in plain PyTorch and float64; rounded at the end."""
    (b, _, c), m = x.shape, index.shape[1]
    numbers = index.long().expand(b, m)[..., None].expand(b, m, c)
    missing = torch.zeros(b, m, c, dtype=torch.float64) if fill is None else fill.double().expand(b, m, c)
    padded = torch.cat([x.double(), x.new_zeros(b, 1, c, dtype=torch.float64)], 1)
    y = torch.where(numbers < 0, missing, padded.gather(1, numbers.where(numbers >= 0, x.shape[1])))
    if residual is not None:
        y = y + residual.double()
    return tokens_like(x, m).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(x: Tensor, index: Tensor, **options: Any) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"x": x, "index": index, **options}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def numbers(b: int, m: int, n: int, lowest: int = 0) -> Tensor:
        return torch.randint(lowest, n, (b, m), generator=g)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(1, 4, 20)
    rough[0, 2, 3], rough[0, 1, 5] = float("nan"), float("inf")
    return [
        *(Case(f"with fill and residual, {str(t)[6:]}", (normal(2, 5, 72, dtype=t), numbers(2, 9, 5, -1)),
               {"fill": normal(72, dtype=t), "residual": normal(2, 9, 72, dtype=t)})
          for t in (single, half, torch.float16, double)),
        Case("kept tokens", (normal(2, 9, 40), numbers(2, 4, 9))),
        Case("one index for all samples, int32", (normal(3, 4, 17), numbers(1, 6, 4).int()),
             {"residual": normal(3, 6, 17)}),
        Case("a fill for each place", (normal(2, 3, 8, dtype=half), numbers(2, 5, 3, -1)), {"fill": normal(1, 5, 8)}),
        Case("a fill for each sample", (normal(2, 3, 9), numbers(2, 5, 3, -1)), {"fill": normal(2, 1, 9, dtype=half)}),
        Case("zeros are the fill", (normal(2, 3, 16), numbers(1, 5, 3, -1)),
             {"residual": normal(2, 5, 16, dtype=half)}),
        Case("as many as before, channels first", (normal(2, 9, 6).transpose(1, 2), numbers(2, 6, 6))),
        Case("nan and inf", (rough, torch.tensor([[2, 1, -1, 0]])), {"residual": normal(1, 4, 20)}),
        *(Case(f"{b} samples, {m} of {n} tokens", (normal(b, n, 8), numbers(b, m, max(1, n), -1 if n else 0)))
          for b, n, m in ((0, 3, 2), (2, 3, 0))),
    ]  # fmt: skip
