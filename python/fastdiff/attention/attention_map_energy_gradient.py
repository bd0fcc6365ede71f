# SPDX-License-Identifier: Apache-2.0
"""attention_map_energy_gradient: the energies of attention maps and their gradients, in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.attention.attention_map_energy import cases as energy_cases
from fastdiff.attention.attention_map_energy import expression, result_dtype
from fastdiff.attention.attention_map_energy import tolerance as energy_tolerance

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False
SAME_BITS: Final = False  # as attention_map_energy

_ARGUMENTS = "Tensor q, Tensor k, Tensor q_ref, Tensor k_ref, float scale"
_RESULTS = "Tensor(a!) energy, Tensor(b!) dq, Tensor(c!) dk"


def _fake(q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    if q.dim() != 4:
        raise RuntimeError(
            f"fastdiff::attention_map_energy_gradient: q must have 4 dimensions [B, H, N, D], got {list(q.shape)}"
        )
    dtype = result_dtype(q)
    return (
        q.new_empty(q.shape[0], dtype=dtype),
        torch.empty_like(q, dtype=dtype),
        torch.empty_like(k, dtype=dtype),
    )


def _fake_out(q: Tensor, *_: Any, **results: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in results.items():
        if t.device != q.device:
            raise RuntimeError(
                f"fastdiff::attention_map_energy_gradient: {name} must be on {q.device} like q, got {t.device}"
            )


_native.define(f"attention_map_energy_gradient({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", _fake)
_native.define(f"attention_map_energy_gradient.out({_ARGUMENTS}, *, {_RESULTS}) -> ()", _fake_out)


def attention_map_energy_gradient(
    q: Tensor,
    k: Tensor,
    q_ref: Tensor,
    k_ref: Tensor,
    *,
    scale: float | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The energies of :func:`attention_map_energy` and their gradients with respect to q and k, in one pass.

    With D = A − A*:

    .. math::
        r_q = \sum_k A_{qk} D_{qk}, \qquad
        \mathrm{ds}_{qk} = \frac{2}{H N_q N_{kv}} A_{qk} (D_{qk} - r_q)

        \mathrm{dq}_q = \text{scale} \sum_k \mathrm{ds}_{qk} k_k, \qquad
        \mathrm{dk}_k = \text{scale} \sum_q \mathrm{ds}_{qk} q_q

    The references are constants. What :func:`attention_map_energy` calls where gradients are asked for: what is made of
    an energy only multiplies these by a number for each sample, and the maps need not be formed again. On the CPU that
    is half of the work of a forward and a backward pass.

    Args:
        q, k, q_ref, k_ref, scale: as for :func:`attention_map_energy`.
        out: where to write: (energy, dq, dk), which share no memory with the inputs.

    Returns:
        The energies ``[B]``, dq like q and dk like k: float32, or float64 for a float64 q, since gradients of means
        over millions of pairs are below what 16 bits can hold. Equal maps have gradients of 0 exactly.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: gradients of these gradients are asked for.

    Source: Titov et al. 2024 (Guide-and-Rescale), the self-attention guider.
    """
    if torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, q_ref, k_ref, *(out or ()))):
        raise NotImplementedError(
            "fastdiff.attention_map_energy_gradient: no gradient is defined; detach the tensors, call it under "
            "torch.no_grad(), or take fastdiff.attention_map_energy"
        )
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if out is None:
        results: tuple[Tensor, Tensor, Tensor] = torch.ops.fastdiff.attention_map_energy_gradient.default(
            q, k, q_ref, k_ref, factor
        )
        return results
    energy, dq, dk = out
    torch.ops.fastdiff.attention_map_energy_gradient.out(
        q, k, q_ref, k_ref, factor, energy=energy, dq=dq, dk=dk
    )
    _native.mark_written([energy, dq, dk])
    return energy, dq, dk


# ---- the reference ---------------------------------------------------------------------------------------------


def reference(
    q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`attention_map_energy_gradient` by autograd in float64, all pairs at once; rounded at the end."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    dtype = result_dtype(q)
    with torch.enable_grad():
        x, y = (t.detach().double().requires_grad_() for t in (q, k))
        energy = expression(x, y, q_ref.double(), k_ref.double(), factor)
        gradients = torch.autograd.grad(energy.sum(), (x, y))
    dq, dk = (torch.empty_like(t, dtype=dtype).copy_(g) for t, g in zip((q, k), gradients, strict=True))
    return energy.detach().to(dtype), dq, dk


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, *, scale: float | None = None
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    return {
        "q": q, "k": k, "q_ref": q_ref, "k_ref": k_ref,
        "scale": 1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        "scratch": torch.empty(_C.attention_map_energy_gradient_scratch(q), dtype=torch.uint8, device=q.device),
    }  # fmt: skip


def dlpack_outputs(stored: tuple[Tensor, ...], *_: Any, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free function."""
    return list(stored)


def tolerance(
    q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, *, scale: float | None = None
) -> dict[str, float]:
    """That of the energies, or what an error of a map as large as that makes of the gradients."""
    bound = energy_tolerance(q, k, q_ref, k_ref, scale=scale)
    if not q.numel() or not k.numel():
        return bound
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    x, y = (t.double().nan_to_num(0, 0, 0) for t in (q, k))
    weights = torch.softmax(factor * x @ y.mT, -1)
    pairs = q.shape[1] * q.shape[2] * k.shape[2]
    rows, columns = (float(weights.sum(d).max()) for d in (-1, -2))
    of_gradients = 4 * abs(factor) / pairs * max(rows * float(y.abs().max()), columns * float(x.abs().max()))
    return {"scale": max(bound["scale"], of_gradients * float(weights.max())), "terms": bound["terms"]}


def cases(seed: int = 0) -> list[Case]:
    """Those of the energies; tests, opcheck, the simulator and the docs run every one of them."""
    return energy_cases(seed)
