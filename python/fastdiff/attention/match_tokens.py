# SPDX-License-Identifier: Apache-2.0
"""match_tokens: for each token the most similar one of others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor a, Tensor b"


def _score_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dim() != 3:
        raise RuntimeError(f"fastdiff::match_tokens: a must have 3 dimensions [B, N, C], got {list(a.shape)}")
    shape = a.shape[:2]
    return a.new_empty(shape, dtype=_score_dtype(a.dtype)), a.new_empty(shape, dtype=torch.int64)


def _fake_out(a: Tensor, b: Tensor, score: Tensor, index: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in (("score", score), ("index", index)):
        if t.device != a.device:
            raise RuntimeError(f"fastdiff::match_tokens: {name} must be on {a.device} like a, got {t.device}")


_native.define(f"match_tokens({_ARGUMENTS}) -> (Tensor, Tensor)", _fake)
_native.define(f"match_tokens.out({_ARGUMENTS}, *, Tensor(a!) score, Tensor(b!) index) -> ()", _fake_out)


def match_tokens(a: Tensor, b: Tensor, *, out: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]:
    r"""For each token of a the most similar token of b, by the cosine:

    .. math::
        \text{score}_i = \max_j s_{ij}, \qquad \text{index}_i = \min \{ j : s_{ij} = \text{score}_i \}, \qquad
        s_{ij} = \frac{a_i}{|a_i|} \cdot \frac{b_j}{|b_j|}

    The matching of :class:`TokenMerge`. It costs what the product of the two matrices does; the N_a × N_b scores are
    not written anywhere, where eager code writes them and reads them again for their maxima.

    Args:
        a: tokens ``[B, N_a, C]``: float32, float16, bfloat16 or float64, any strides.
        b: tokens ``[B, N_b, C]`` of the dtype of a, 1 to 2^24 of them.
        out: where to write, score and index; share no memory with the inputs.

    Returns:
        score ``[B, N_a]``: float32, float64 for float64; and index int64 ``[B, N_a]``, from 0 to N_b − 1. Norms and
        products are float32 (float64 for float64). NaN is above all numbers, as in ``torch.max``; a token of norm 0 has
        NaN for all its scores, as in the quotient.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: a tensor requires grad; there are no gradients of a choice. Detach it.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: Token Merging (ToMe), bipartite soft matching; Token Merging for Fast Stable Diffusion.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (a, b, *(out or ()))):
        raise NotImplementedError("fastdiff.match_tokens: has no gradients; detach the tensors")
    if out is None:
        results: tuple[Tensor, Tensor] = torch.ops.fastdiff.match_tokens.default(a, b)
        return results
    score, index = out
    torch.ops.fastdiff.match_tokens.out(a, b, score=score, index=index)
    _native.mark_written([score, index])
    return score, index


def reference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`match_tokens` in plain PyTorch and float64; the scores rounded at the end."""
    x, y = (t.double() / t.double().norm(dim=-1, keepdim=True) for t in (a, b))
    score, index = (x @ y.mT).max(-1)
    return score.to(_score_dtype(a.dtype)), index


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(a: Tensor, b: Tensor) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.match_tokens_scratch(a, b), dtype=torch.uint8, device=a.device)
    return {"a": a, "b": b, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor, Tensor], *_: Any) -> list[Tensor]:
    """``out`` of the torch-free function."""
    return list(stored)


def tolerance(a: Tensor, b: Tensor) -> dict[str, float]:
    """Of a sum over C of products whose absolute values add up to 1 at most."""
    return {"scale": 1.0, "terms": 8 + a.shape[-1] // 16}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(1, 6, 20), normal(1, 5, 20)
    rough[0][0, 2, 3], rough[1][0, 3, 5] = float("nan"), float("nan")
    twice = normal(1, 4, 40)
    return [
        *(Case(f"{str(t)[6:]}", (normal(2, 9, 72, dtype=t), normal(2, 7, 72, dtype=t)))
          for t in (single, half, torch.float16, double)),
        Case("more rows than a strip, more columns than a tile", (normal(1, 67, 24), normal(1, 99, 24))),
        Case("more channels than a sum", (normal(1, 5, 300), normal(1, 6, 300))),
        Case("the first of equal ones", (twice, torch.cat([normal(1, 3, 40), twice, twice], 1))),
        Case("channels first", (normal(2, 20, 9).transpose(1, 2), normal(2, 20, 5).transpose(1, 2))),
        Case("one channel", (normal(2, 3, 1), normal(2, 1, 1))),
        Case("nan", rough),
        Case("a number is below nan", (rough[0][:, :2], rough[1])),
        Case("no row", (normal(2, 0, 8), normal(2, 3, 8))),
    ]  # fmt: skip
