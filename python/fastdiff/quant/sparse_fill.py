# SPDX-License-Identifier: Apache-2.0
"""sparse_fill: what is small in a dense tensor is replaced by the next of a list of values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

_ARGUMENTS = "Tensor w, Tensor threshold, Tensor values"


def _fake(w: Tensor, threshold: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(w)


def _fake_out(w: Tensor, threshold: Tensor, values: Tensor, *, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != w.device:
        raise RuntimeError(f"fastdiff::sparse_fill: out must be on {w.device} like w, got {result.device}")


_native.define(f"sparse_fill({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"sparse_fill.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def sparse_fill(w: Tensor, threshold: Tensor, values: Tensor, *, out: Tensor | None = None) -> Tensor:
    r"""What is small in a dense tensor, replaced by the next of a list of values:

    .. math::
        y_i = \begin{cases} \text{values}_{r(i)} & |w_i| < \tau \\ w_i & \text{else} \end{cases}, \qquad
        r(i) = \# \{ j < i : |w_j| < \tau \}

    with elements in row-major order: how weights with a sparse delta (SaRA) are put together, of the base weights and a
    checkpoint without indices. :func:`fastdiff.quant.sparse_take` is the inverse, and
    :func:`fastdiff.quant.load_sparse_delta` loads such a checkpoint into a model.

    w is read twice, to count and to fill; the values are read and y is written once.

    Args:
        w: any shape: float32, float16, bfloat16 or float64, any strides.
        threshold: τ ``[]``, of any of these dtypes, on the device of w. It is rounded to the dtype of w, as
            ``w.abs() < tau`` does on the CPU.
        values: ``[M]``, of any of these dtypes; M is the number of elements below the threshold.
        out: where to write, like w; may be exactly w, shares no memory with others.

    Returns:
        y, like w; or ``out``. NaN is not below the threshold.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap; on the CPU another number of values than there are
            elements below the threshold. Nothing is written then. On CUDA a wrong number of values stops the kernel,
            like a device assert.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to w, where it stays, and values, of any order.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: SaRA (Hu et al. 2024), ``set_mask_param``; ``w.masked_scatter(w.abs() < tau, values)``.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (w, values, out)):
        from fastdiff.quant.sparse_fill_grad import differentiable_fill

        if out is not None:
            raise NotImplementedError(
                "fastdiff.sparse_fill: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_fill(w, threshold, values)
    if out is None:
        y: Tensor = torch.ops.fastdiff.sparse_fill.default(w, threshold, values)
        return y
    torch.ops.fastdiff.sparse_fill.out(w, threshold, values, result=out)
    _native.mark_written([out])
    return out


def is_below(w: Tensor, threshold: Tensor) -> Tensor:
    """Which elements are replaced."""
    return w.abs() < threshold.to(w.dtype)


def reference(w: Tensor, threshold: Tensor, values: Tensor) -> Tensor:
    """:func:`sparse_fill` in plain PyTorch and float64; rounded at the end."""
    y = w.double().masked_scatter(is_below(w, threshold), values.double())
    return torch.empty_like(w).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(w: Tensor, threshold: Tensor, values: Tensor) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.sparse_fill_scratch(w), dtype=torch.uint8, device=w.device)
    return {"w": w, "threshold": threshold, "values": values, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor], *_: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def tolerance(*_: Any) -> dict[str, float]:
    """Values are rounded once."""
    return {"scale": 0.0, "terms": 0}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def case(name: str, w: Tensor, dtype: torch.dtype | None = None, threshold: float = 0.25) -> Case:
        tau = torch.tensor(threshold)
        return Case(name, (w, tau, normal(int(is_below(w, tau).sum()), dtype=dtype or w.dtype)))

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(3, 20)
    rough[0, 3], rough[1, 5] = float("nan"), float("inf")
    return [
        *(case(f"weights, {str(t)[6:]}", normal(9, 40, dtype=t)) for t in (single, half, torch.float16, double)),
        case("several chunks", normal(3, 1000, 3), threshold=1.0),
        case("float32 values for bfloat16", normal(7, 33, dtype=half), single),
        case("channels last", normal(2, 5, 4, 3).to(memory_format=torch.channels_last)),
        case("all are replaced", normal(50), threshold=64.0),
        case("none is replaced", normal(5, 5), threshold=0.0),
        case("nan and inf", rough),
        case("one element", normal() / 64),
        case("no elements", normal(0, 3)),
    ]  # fmt: skip
