# SPDX-License-Identifier: Apache-2.0
"""block_sparse_attention_backward: what the gradients of block_sparse_attention are computed by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _C, _native
from fastdiff.attention._plan import AttentionPlan
from fastdiff.attention._relative import RelativeBias
from fastdiff.attention.block_sparse_attention import (
    bias_arguments,
    dlpack_bias,
    dlpack_plan,
    gathered,
    like_gathered,
    plan_arguments,
    scores64,
)
from fastdiff.attention.block_sparse_attention import cases as attention_cases
from fastdiff.attention.block_sparse_attention import reference as attention_reference
from fastdiff.attention.block_sparse_attention import tolerance as attention_tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastdiff._case import Case

IN_PLACE: Final = False
SAME_BITS: Final = False  # as block_sparse_attention

_ARGUMENTS = (
    "Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? q_index, Tensor? kv_index, Tensor forward, Tensor lse, "
    "Tensor? dlse, Tensor offsets, Tensor columns, Tensor? masks, Tensor? bits, int block_q, int block_k, "
    "Tensor? bias, Tensor? q_code, Tensor? k_code, float scale, bool wants_bias"
)
_RESULTS = "Tensor(a!) dq, Tensor(b!) dk, Tensor(c!) dv, Tensor(d!) dbias"


def _fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, q_index: Tensor | None, kv_index: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    if q.dim() != 4 or k.dim() != 4:
        raise RuntimeError(
            "fastdiff::block_sparse_attention_backward: q and k must have 4 dimensions [B, H, N, D], got "
            f"{list(q.shape)} and {list(k.shape)}"
        )
    lse = rest[1]
    dq, dk, dv = like_gathered(q, q_index), like_gathered(k, kv_index), like_gathered(v, kv_index)
    bias, q_code, _, _, wants_bias = rest[-5:]
    last = dk.shape[2] if q_code is None or bias is None else bias.shape[3]
    return dq, dk, dv, lse.new_empty((q.shape[0], q.shape[1], last) if wants_bias else (0,))


def _fake_out(dout: Tensor, *_: Any, **results: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in results.items():
        if t.device != dout.device:
            raise RuntimeError(
                f"fastdiff::block_sparse_attention_backward: {name} must be on {dout.device} like dout, got {t.device}"
            )


_native.define(f"block_sparse_attention_backward({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", _fake)
_native.define(f"block_sparse_attention_backward.out({_ARGUMENTS}, *, {_RESULTS}) -> ()", _fake_out)


def block_sparse_attention_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forward: Tensor,
    lse: Tensor,
    plan: AttentionPlan,
    *,
    dlse: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | RelativeBias | None = None,
    q_index: Tensor | None = None,
    kv_index: Tensor | None = None,
    wants_bias: bool = False,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""The gradients of :func:`block_sparse_attention`, from its inputs and results.

    With p = exp(s − lse) formed again block by block, so that no matrix of all pairs is stored:

    .. math::
        \delta_q = \mathrm{dout}_q \cdot \mathrm{out}_q - \mathrm{dlse}_q, \qquad
        \mathrm{ds}_{q,k} = p_{q,k} (\mathrm{dout}_q \cdot v_k - \delta_q)

        \mathrm{dq}_q = \text{scale} \sum_k \mathrm{ds}_{q,k} k_k, \quad
        \mathrm{dk}_k = \text{scale} \sum_q \mathrm{ds}_{q,k} q_q, \quad
        \mathrm{dv}_k = \sum_q p_{q,k} \mathrm{dout}_q, \quad
        \mathrm{dbias}_k = \sum_q \mathrm{ds}_{q,k}

    What :func:`torch.autograd.grad` calls; for own ``autograd.Function``, such as attention over several devices.

    Args:
        dout: the gradient of out, ``[B, H, N_q, D]``, of the dtype of q.
        q, k, v, plan, scale, bias, q_index, kv_index: as for :func:`block_sparse_attention`; the plan has no parts.
        forward, lse: its results.
        dlse: the gradient of lse, ``[B, H, N_q]``; default: 0.
        wants_bias: dbias is wanted; the bias is then one of keys or a :class:`RelativeBias`.
        out: where to write: (dq, dk, dv, dbias), which share no memory with the inputs.

    Returns:
        dq ``[B, H, N_q, D]``, dk and dv ``[B, H_kv, N_kv, D]``, of the tokens of an index if there is one, each sum
        in one fixed order; dbias ``[B, H, N_kv]``, of a table ``[B, H, T]``, or ``[0]`` if it is not wanted.

    Raises:
        RuntimeError: as :func:`block_sparse_attention`.
        ValueError: a plan with parts, which have gradients of their own.
        NotImplementedError: gradients of these gradients are asked for.

    Source: Dao et al. 2022 (FlashAttention), section 3.1 and appendix B.2.
    """
    if plan.parts:
        raise ValueError(
            "fastdiff.block_sparse_attention_backward: plan must have no parts; call it for each of them"
        )
    biases = bias_arguments(bias)
    given = (dout, q, k, v, forward, lse, dlse, biases[0], *(out or ()))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        raise NotImplementedError(
            "fastdiff.block_sparse_attention_backward: no gradient is defined; detach the tensors or call it under "
            "torch.no_grad()"
        )
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    arguments = (
        dout,
        q,
        k,
        v,
        q_index,
        kv_index,
        forward,
        lse,
        dlse,
        *plan_arguments(plan),
        *biases,
        factor,
        wants_bias,
    )
    if out is None:
        results: tuple[Tensor, Tensor, Tensor, Tensor] = (
            torch.ops.fastdiff.block_sparse_attention_backward.default(*arguments)
        )
        return results
    dq, dk, dv, dbias = out
    torch.ops.fastdiff.block_sparse_attention_backward.out(*arguments, dq=dq, dk=dk, dv=dv, dbias=dbias)
    _native.mark_written([dq, dk, dv, dbias])
    return dq, dk, dv, dbias


# ---- the reference ---------------------------------------------------------------------------------------------


def reference(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forward: Tensor,
    lse: Tensor,
    plan: AttentionPlan,
    *,
    dlse: Tensor | None = None,
    scale: float | None = None,
    bias: Tensor | RelativeBias | None = None,
    q_index: Tensor | None = None,
    kv_index: Tensor | None = None,
    wants_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """:func:`block_sparse_attention_backward` in plain PyTorch and float64, all pairs at once; rounded at the end."""
    q, k, v = gathered(q, q_index), gathered(k, kv_index), gathered(v, kv_index)
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    pairs = bias.of_pairs(q_index, kv_index) if isinstance(bias, RelativeBias) else bias
    s, seen, (wide_q, wide_k, wide_v) = scores64(q, k, v, plan, factor, pairs)
    p = torch.exp(s - lse.double().masked_fill(lse == -math.inf, 0)[..., None])
    g = dout.double()
    delta = (g * forward.double()).sum(-1, keepdim=True)
    if dlse is not None:
        delta = delta - dlse.double()[..., None]
    ds = p * (g @ torch.where(seen, wide_v, 0).mT - delta)
    dq = factor * ds @ torch.where(seen, wide_k, 0)
    of_heads = (factor * ds.mT @ wide_q, p.mT @ g)
    group = q.shape[1] // max(1, k.shape[1])
    dk, dv = (
        t.unflatten(1, (k.shape[1], group)).sum(2) if t.numel() else t.new_zeros(k.shape) for t in of_heads
    )
    dbias = (_of_table(ds, bias, q_index, kv_index) if isinstance(bias, RelativeBias) else ds.sum(2)).to(
        lse.dtype
    )
    if not wants_bias:
        dbias = lse.new_empty(0)
    like = zip((dq, dk, dv), (q, k, v), strict=True)
    return (*(torch.empty_like(t).copy_(x) for x, t in like), dbias)  # type: ignore[return-value]


def _of_table(ds: Tensor, bias: RelativeBias, q_index: Tensor | None, kv_index: Tensor | None) -> Tensor:
    """[B, H, T]: the sums of ds [B, H, N_q, N_kv] over all pairs with an entry."""
    entries = bias.table.shape[1]
    numbers = RelativeBias(torch.arange(entries, device=ds.device)[None], bias.q_code, bias.k_code)
    entry = numbers.of_pairs(q_index, kv_index).expand_as(ds)
    return ds.new_zeros(*ds.shape[:2], entries).scatter_add_(2, entry.flatten(2), ds.flatten(2))


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, forward: Tensor, lse: Tensor, plan: AttentionPlan, *,
    scale: float | None = None, bias: Tensor | RelativeBias | None = None, wants_bias: bool = False, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    entries = bias.table.shape[1] if isinstance(bias, RelativeBias) and wants_bias else 0
    needed = _C.block_sparse_attention_backward_scratch(dout, entries)
    return {
        "dout": dout, "q": q, "k": k, "v": v, "result": forward, "lse": lse, **dlpack_plan(plan), **options,
        **dlpack_bias(bias), "scale": 1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        "scratch": torch.empty(needed, dtype=torch.uint8, device=q.device),
    }  # fmt: skip


def dlpack_outputs(stored: tuple[Tensor, ...], *_: Any, wants_bias: bool = False, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free function."""
    return list(stored if wants_bias else stored[:3])


def tolerance(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **options: Any) -> dict[str, float]:
    """That of the forward pass, times what it is multiplied by, for sums over all queries.

    It contains, for 16-bit dtypes, the rounding of p, and stands for that of ds: tensor cores multiply both in that
    dtype.
    """
    forward = attention_tolerance(q, k, v, *_[2:], **options)
    largest = max(float(t.double().abs().max()) if t.numel() else 0.0 for t in (dout, q, k))
    return {
        "scale": forward["scale"] * max(1.0, largest) ** 2,
        "terms": forward["terms"] + dout.shape[2] * dout.shape[1],
    }


def cases(seed: int = 0) -> list[Case]:
    """The cases of the forward pass, with their results; tests, opcheck, the simulator and the docs run them all."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)
    made: list[Case] = []
    for case in attention_cases(seed):
        q, k, v, plan = case.args
        options = dict(case.kwargs)
        if plan.parts or "lerp" in options:
            continue  # composed of others where there are gradients
        results = attention_reference(q, k, v, plan, **options)
        like = results[0]
        dout = torch.empty_like(like).copy_(torch.randn(like.shape, generator=g, dtype=torch.float64))
        options["dlse"] = (
            torch.randn(results[1].shape, generator=g).to(results[1].dtype) if len(made) % 2 else None
        )
        bias = options.get("bias")
        options["wants_bias"] = isinstance(bias, RelativeBias) or (bias is not None and bias.shape[2] == 1)
        made.append(Case(case.name, (dout, q, k, v, *results, plan), options))
    return made
