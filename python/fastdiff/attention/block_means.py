# SPDX-License-Identifier: Apache-2.0
"""block_means: the means of blocks of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False


def _fake(x: Tensor, block: int) -> Tensor:
    if x.dim() != 4 or block < 1:
        raise RuntimeError(
            f"fastdiff::block_means: x must have 4 dimensions [B, H, N, D] and block be at least 1, got "
            f"{list(x.shape)} and {block}"
        )
    return x.new_empty(x.shape[0], x.shape[1], -(-x.shape[2] // block), x.shape[3], dtype=_wide(x.dtype))


def _fake_out(x: Tensor, block: int, *, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::block_means: out must be on {x.device} like x, got {result.device}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


_native.define("block_means(Tensor x, int block) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define("block_means.out(Tensor x, int block, *, Tensor(a!) result) -> ()", _fake_out)


def block_means(x: Tensor, block: int, *, out: Tensor | None = None) -> Tensor:
    r"""The means of blocks of tokens: what :meth:`AttentionPlan.topk` scores instead of all pairs.

    .. math::
        y_r = \frac{1}{|I_r|} \sum_{n \in I_r} x_n, \qquad I_r = \{r \,\text{block}, \dots\} \cap \{0, \dots, N - 1\}

    One read of x. Tokens are added in their order, in float32 (float64 for float64); the last block is divided by the
    number of its own tokens.

    Args:
        x: queries or keys ``[B, H, N, D]``: float32, float16, bfloat16 or float64, any strides.
        block: tokens of a block, at least 1.
        out: where to write, ``[B, H, ceil(N / block), D]``, float32 (float64 for float64); shares no memory with x.

    Returns:
        the means ``[B, H, ceil(N / block), D]``, float32 (float64 for float64); or ``out``.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: gradients are asked for: what they choose are indices, which have none.

    On the CPU and on CUDA, for any number of threads and any strides the bits are the same.

    Source: means of blocks that stand for their tokens: Lu et al. 2025, MoBA; Jiang et al. 2024, MInference.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise NotImplementedError("fastdiff.block_means: does not record gradients; detach x")
    if out is None:
        means: Tensor = torch.ops.fastdiff.block_means.default(x, block)
        return means
    torch.ops.fastdiff.block_means.out(x, block, result=out)
    _native.mark_written([out])
    return out


def reference(x: Tensor, block: int) -> Tensor:
    """:func:`block_means` in plain PyTorch and float64; rounded at the end."""
    tokens = x.shape[2]
    count = -(-tokens // block)
    whole = torch.nn.functional.pad(x.double(), (0, 0, 0, count * block - tokens)).unflatten(
        2, (count, block)
    )
    sizes = torch.clamp(tokens - torch.arange(count, device=x.device) * block, max=block)
    means: Tensor = whole.sum(3) / sizes[:, None]
    return means.to(_wide(x.dtype))


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(x: Tensor, block: int) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"x": x, "block": block}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def tolerance(x: Tensor, block: int) -> dict[str, float]:
    """Of a sum of a block's tokens, one after another."""
    largest = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    return {"scale": max(1.0, largest), "terms": 2 + min(block, x.shape[2])}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    rough = normal(1, 1, 20, 9)
    rough[0, 0, 3, 1], rough[0, 0, 18, 8] = float("nan"), float("inf")
    return [
        *(Case(f"a short last block, {str(t)[6:]}", (normal(2, 2, 37, 24, dtype=t), 16))
          for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)),
        Case("tokens before heads", (normal(2, 40, 3, 17).transpose(1, 2), 16)),
        Case("channels first", (normal(1, 2, 33, 20).mT, 4)),
        Case("more than are added at once", (normal(1, 1, 3, 600)[..., 1:], 2)),
        Case("one block, longer than all tokens", (normal(1, 2, 5, 8), 64)),
        Case("nan and inf", (rough, 16)),
        *(Case(f"shape {list(s)}", (normal(*s), 16)) for s in ((2, 1, 0, 8), (1, 2, 16, 0))),
    ]  # fmt: skip
