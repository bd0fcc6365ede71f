# SPDX-License-Identifier: Apache-2.0
"""lowrank_apply: a product with a matrix of low rank, gated for each sample, beside what it is added to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

_OPTIONS = "Tensor? gates, Tensor? offset, Tensor? a, Tensor? mu, Tensor? b, Tensor? base"
_ARGUMENTS = f"Tensor x, Tensor down, Tensor up, {_OPTIONS}"


def _fake(x: Tensor, down: Tensor, up: Tensor, *_: Any) -> Tensor:
    if x.dim() < 1 or up.dim() != 2:
        raise RuntimeError(
            f"fastdiff::lowrank_apply: x and up must be [..., K] and [N, r], got {list(x.shape)} and {list(up.shape)}"
        )
    if x.shape[-1] == up.shape[0]:
        return torch.empty_like(x)
    return x.new_empty(*x.shape[:-1], up.shape[0])


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::lowrank_apply: out must be on {x.device} like x, got {result.device}")


_native.define(f"lowrank_apply({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"lowrank_apply.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def lowrank_apply(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    gates: Tensor | None = None,
    offset: Tensor | None = None,
    a: Tensor | None = None,
    mu: Tensor | None = None,
    b: Tensor | None = None,
    base: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""A product with a matrix of low rank, gated for each sample, beside what it is added to:

    .. math::
        y = \text{up} \, \bigl( \gamma_b \odot (\text{down} \, x + o_b) \bigr) + b_b \, \mu + \text{base} + a_b \, x

    Adapters beside a linear layer, all at once and with gates of their own for each sample: ``base`` is what the layer
    gives, :func:`fastdiff.quant.stack_adapters` makes one pair of factors of many. The exact flow and the denoiser of a
    Gaussian: :func:`fastdiff.quant.gaussian_teleport`, :func:`fastdiff.quant.wiener_denoise`; an ``offset`` of
    −c · down μ is the product with x − c μ. What changes from step to step is in tensors.

    x, base and y move once, a block of rows goes through both products in the caches; for few rows (up to 64) threads
    share K and then N, and read each factor once.

    Args:
        x: ``[..., K]``: float32, float16, bfloat16 or float64, any strides. Its first dimension is the samples'
            (``[K]`` is one sample).
        down: ``[r, K]``, the weight of a linear layer from K to r; of any of these dtypes, any strides: a basis
            U ``[K, r]`` is ``U.T``, as fast as a copy of it.
        up: ``[N, r]``, the weight of a linear layer from r to N; likewise.
        gates: γ ``[B or 1, r]``; default: 1.
        offset: o ``[B or 1, r]``; default: 0.
        a: ``[]`` or ``[B or 1]``; needs N = K. Default: x is not added.
        mu: μ ``[N]``; default: 0.
        b: ``[]`` or ``[B or 1]``; default: 1.
        base: ``[..., N]`` with the rows of x; default: 0.
        out: where to write, ``[..., N]`` of the dtype of x; may be exactly x or base, shares no memory with others.

    Returns:
        y ``[..., N]``, in the dtype of x, or ``out``. Sums are float32 (float64 for float64) and rounded once, at the
        end; in eager code the rank's sums are rounded to the dtype of x as well.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to all tensors, of any order. The gradient of x is lowrank_apply with both factors
    transposed.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides; but with the tiles of
    AMX sums have an order of their own, and subnormal numbers count as 0, where x, down and up are bfloat16 and there
    are more than 64 rows.

    Source: SPM (Lyu et al. 2024), ``SPMLayer.forward`` summed over adapters; LCM-LoRA; Wang and Vastola, Diffusion
    Models Generate Images Like Painters, the solution of the Gaussian's probability flow.
    """
    given = (x, down, up, gates, offset, a, mu, b, base)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*given, out)):
        from fastdiff.quant.lowrank_apply_grad import differentiable_apply

        if out is not None:
            raise NotImplementedError(
                "fastdiff.lowrank_apply: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_apply(*given)
    if out is None:
        y: Tensor = torch.ops.fastdiff.lowrank_apply.default(*given)
        return y
    torch.ops.fastdiff.lowrank_apply.out(*given, result=out)
    _native.mark_written([out])
    return out


def per_sample(x: Tensor, numbers: Tensor) -> Tensor:
    """Numbers [] or [B or 1], or [B or 1, n], as they are broadcast with the rows of x [B, ..., n]."""
    if x.dim() == 1:
        return numbers.reshape(numbers.shape[1:]) if numbers.dim() else numbers
    if numbers.dim() == 0:
        return numbers
    return numbers.reshape(numbers.shape[0], *(1,) * (x.dim() - 2), *(numbers.shape[1:] or (1,)))


def reference(
    x: Tensor,
    down: Tensor,
    up: Tensor,
    *,
    gates: Tensor | None = None,
    offset: Tensor | None = None,
    a: Tensor | None = None,
    mu: Tensor | None = None,
    b: Tensor | None = None,
    base: Tensor | None = None,
) -> Tensor:
    """:func:`lowrank_apply` in plain PyTorch and float64; rounded at the end."""
    wide = x.double()
    p = wide @ down.double().T
    if offset is not None:
        p = p + per_sample(x, offset.double())
    if gates is not None:
        p = p * per_sample(x, gates.double())
    y = p @ up.double().T
    if mu is not None:
        y = y + (mu.double() if b is None else per_sample(x, b.double()) * mu.double())
    if base is not None:
        y = y + base.double()
    if a is not None:
        y = y + per_sample(x, a.double()) * wide
    return _fake(x, down, up).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(x: Tensor, down: Tensor, up: Tensor, **options: Any) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    bytes_ = _C.lowrank_apply_scratch(x, down, up)
    scratch = torch.empty(bytes_, dtype=torch.uint8, device=x.device)
    return {"x": x, "down": down, "up": up, "scratch": scratch, **options}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def tolerance(x: Tensor, down: Tensor, up: Tensor, **options: Any) -> dict[str, float]:
    """Of two sums, by the magnitudes of their terms."""
    magnitudes = [t.double().nan_to_num(0, 0, 0).abs() for t in (x, down, up)]
    others = {name: t.double().nan_to_num(0, 0, 0).abs() for name, t in options.items() if t is not None}
    largest = reference(*magnitudes, **others)
    return {
        "scale": float(largest.max()) if largest.numel() else 1.0,
        "terms": 8 + x.shape[-1] // 8 + up.shape[1] // 8,
    }


def uses_tiles(x: Tensor, down: Tensor, up: Tensor, **_: Any) -> bool:
    """All bfloat16, and more rows than are shared among threads by columns."""
    return all(t.dtype == torch.bfloat16 for t in (x, down, up)) and x[..., :1].numel() > 64


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(2, 3, 20)
    rough[0, 2, 3], rough[1, 1, 5] = float("nan"), float("inf")
    basis = normal(40, 6)
    return [
        *(Case(f"gated adapters, {str(t)[6:]}",
               (normal(2, m, 40, dtype=t), normal(6, 40, dtype=t), normal(24, 6, dtype=t)),
               {"gates": normal(2, 6), "base": normal(2, m, 24, dtype=t)})
          for t, m in ((single, 9), (half, 40), (torch.float16, 9), (double, 9))),
        Case("teleport", (normal(3, 40), basis.T, basis),
             {"gates": normal(1, 6), "offset": normal(3, 6), "a": normal(), "mu": normal(40), "b": normal(3)}),
        Case("a large sum for few rows", (normal(2, 700), normal(17, 700, dtype=half), normal(9, 17)),
             {"offset": normal(1, 17, dtype=half), "mu": normal(9)}),
        Case("more rows than a block", (normal(2, 40, 300, dtype=half), normal(20, 300), normal(70, 20, dtype=half)),
             {"gates": normal(1, 20, dtype=half)}),
        Case("channels last, as many outputs", (normal(2, 40, 3, 2).permute(0, 2, 3, 1), normal(1, 40), normal(40, 1)),
             {"base": normal(2, 3, 2, 40), "a": normal(1)}),
        Case("one row", (normal(33), normal(5, 33), normal(18, 5)), {"gates": normal(1, 5)}),
        Case("nan and inf", (rough, normal(3, 20), normal(7, 3)), {"gates": torch.tensor([[0.0, 1, 2], [1, 0, 1]])}),
        *(Case(f"shape {list(s)}, rank {r}", (normal(*s), normal(r, s[-1]), normal(8, r)), {"mu": normal(8)})
          for s, r in (((0, 3, 8), 2), ((2, 3, 0), 2), ((2, 3, 8), 0))),
    ]  # fmt: skip
