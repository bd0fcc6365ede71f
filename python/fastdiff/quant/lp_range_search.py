# SPDX-License-Identifier: Apache-2.0
"""lp_range_search: the range of a quantised tensor, or of each of its rows, that loses least in an Lp norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastdiff._case import Case

IN_PLACE: Final = False

LEAST_SCALE: Final = 1e-8

_ARGUMENTS = "Tensor x, float p, int candidates, int bits, bool by_rows"


def _fake(x: Tensor, p: float, candidates: int, bits: int, by_rows: bool) -> tuple[Tensor, Tensor]:
    if by_rows and x.dim() == 0:
        raise RuntimeError(
            "fastdiff::lp_range_search: x must have at least 1 dimension [rows, ...] for dim=0, got []"
        )
    shape = x.shape[:1] if by_rows else ()
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int32)


def _fake_out(x: Tensor, *_: Any, scale: Tensor, zero_point: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in (("scale", scale), ("zero_point", zero_point)):
        if t.device != x.device:
            raise RuntimeError(
                f"fastdiff::lp_range_search: {name} must be on {x.device} like x, got {t.device}"
            )


_native.define(f"lp_range_search({_ARGUMENTS}) -> (Tensor, Tensor)", _fake)
_native.define(
    f"lp_range_search.out({_ARGUMENTS}, *, Tensor(a!) scale, Tensor(b!) zero_point) -> ()", _fake_out
)


def lp_range_search(
    x: Tensor,
    *,
    p: float = 2.4,
    candidates: int = 100,
    bits: int = 8,
    dim: int | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The range of a quantised tensor, or of each of its rows, that loses least in an Lp norm:

    .. math::
        T_i = \tfrac{i}{\text{candidates}} \max |x|, \qquad
        i^* = \arg\min_i \sum \bigl| x - s_i (\mathrm{clamp}(\mathrm{round}(x / s_i) + z) - z) \bigr|^p

    over whole numbers from −2^(bits−1) to 2^(bits−1) − 1; of equal sums the first wins. What has both signs is
    quantised on [−T, T] (s = 2T/(2^bits − 1), z = 0), what has no negative elements on [0, T] (s = T/(2^bits − 1),
    z = −2^(bits−1)), what has no positive ones on [−T, 0] (z = 2^(bits−1) − 1). The signs are those of the whole
    tensor, of all rows together.

    x is read twice: once for its maximum, and once for all candidates, where eager code passes over it nine times for
    each. The published code has unsigned numbers: its zero point is z + 2^(bits−1). Its search over zero points as well
    (256 for each candidate) would take 256 times as long and is not here.

    Args:
        x: any shape with at least one element: float32, float16, bfloat16 or float64, any strides.
        p: of the norm, above 0 and at most 4.
        candidates: how many fractions of the maximum are tried, 1 to 256.
        bits: of a quantised number, 1 to 8.
        dim: None: one range for all of x. 0: one for each row x[i], the output channels of a weight.
        out: where to write, scale and zero_point; share no memory with x.

    Returns:
        scale float32 and zero_point int32, ``[]``, or ``[rows]`` for ``dim=0``: x ≈ scale (q − zero_point). The scale
        is at least 1e-8. A row with NaN or infinity has scale NaN.

    Raises:
        RuntimeError: a wrong dtype, shape, number, device or overlap. Nothing is written then.
        NotImplementedError: x requires grad; there are no gradients of a choice. Detach it.

    Powers have a relative error below 5e-7, sums are float32 over 4096 elements and float64 beyond; of candidates whose
    sums are as close as float32 can tell either may win. The same bits on CPU (any instruction set, any number of
    threads) and CUDA, for any strides.

    Source: Post-training Quantization on Diffusion Models (PTQ4DM), ``ObserverBase.perform_1D_search`` of its QDrop.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *(out or ()))):
        raise NotImplementedError("fastdiff.lp_range_search: has no gradients; detach the tensors")
    if dim not in (None, 0):
        raise ValueError(f"fastdiff.lp_range_search: dim must be None or 0, got {dim}")
    given = (x, p, candidates, bits, dim == 0)
    if out is None:
        results: tuple[Tensor, Tensor] = torch.ops.fastdiff.lp_range_search.default(*given)
        return results
    scale, zero_point = out
    torch.ops.fastdiff.lp_range_search.out(*given, scale=scale, zero_point=zero_point)
    _native.mark_written([scale, zero_point])
    return scale, zero_point


def reference(
    x: Tensor, *, p: float = 2.4, candidates: int = 100, bits: int = 8, dim: int | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`lp_range_search` in plain PyTorch and float64; rounded at the end."""
    rows = (x.double() if dim == 0 else x.double()[None])[..., None].flatten(1)
    levels, half = 2**bits - 1, 2 ** (bits - 1)
    negative, positive = bool((rows < 0).any()), bool((rows > 0).any())
    if negative and positive:
        lowest, sides, zero = -half, 2, 0
    else:
        lowest, sides, zero = (-levels, 1, half - 1) if negative else (0, 1, -half)
    peak = rows.abs().amax(1)
    best, least = torch.zeros_like(peak), torch.full_like(peak, torch.inf)
    for i in range(1, candidates + 1):
        scale = sides * peak * i / (candidates * levels)
        q = (rows / scale[:, None]).round().clamp(lowest, lowest + levels)
        score = (rows - scale[:, None] * q).abs().pow(p).sum(1)
        best, least = torch.where(score < least, scale, best), torch.where(score < least, score, least)
    scale = torch.where(peak.isfinite(), best.clamp(min=LEAST_SCALE), torch.nan)
    shape = x.shape[:1] if dim == 0 else ()
    return scale.float().reshape(shape), torch.full(shape, zero, dtype=torch.int32)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    x: Tensor, *, dim: int | None = None, candidates: int = 100, **options: Any
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    by_rows = dim == 0
    bytes_ = _C.lp_range_search_scratch(x, candidates, by_rows)
    scratch = torch.empty(bytes_, dtype=torch.uint8, device=x.device)
    return {"x": x, "candidates": candidates, "by_rows": by_rows, "scratch": scratch, **options}


def dlpack_outputs(stored: tuple[Tensor, Tensor], *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """``out`` of the torch-free function."""
    return stored[0], stored[1]


def tolerance(*_: Any, **__: Any) -> dict[str, float]:
    """Scales are rounded once: another candidate would differ by a hundredth."""
    return {"scale": 0.0, "terms": 0}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(4, 9)
    rough[1, 3], rough[2, 5] = float("nan"), float("inf")
    return [
        *(Case(f"rows of a weight, {str(t)[6:]}", (normal(3, 70, dtype=t),), {"dim": 0})
          for t in (single, half, torch.float16, double)),
        Case("a whole tensor of two chunks", (normal(2, 50, 50),), {"candidates": 20}),
        Case("no negative elements, four bits", (normal(150).relu(),), {"bits": 4}),
        Case("no positive elements, p = 2", (-normal(5, 33).abs(),), {"p": 2.0, "dim": 0}),
        Case("channels last", (normal(2, 6, 3, 3).to(memory_format=torch.channels_last),), {"dim": 0}),
        Case("nan and inf", (rough,), {"dim": 0, "candidates": 30}),
        Case("zeros", (torch.zeros(2, 5),), {"dim": 0, "candidates": 3}),
        Case("one element", (normal(),)),
        Case("no rows", (normal(0, 8),), {"dim": 0}),
    ]  # fmt: skip
