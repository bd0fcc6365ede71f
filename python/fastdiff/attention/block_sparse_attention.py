# SPDX-License-Identifier: Apache-2.0
"""block_sparse_attention: softmax attention that computes the blocks of a plan and no others."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _C, _native
from fastdiff.attention._plan import AttentionPlan
from fastdiff.attention._relative import RelativeBias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastdiff._case import Case

IN_PLACE: Final = False
SAME_BITS: Final = False  # the CUDA kernels add in another order than the CPU, and so does AMX in bfloat16
LAYOUTS: Final = ("bhnd", "bnhd")

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? q_index, Tensor? kv_index, Tensor offsets, Tensor columns, Tensor? masks, "
    "Tensor? bits, int block_q, int block_k, int[] sets, Tensor? bias, Tensor? q_code, Tensor? k_code, "
    "Tensor? weights, Tensor? q_end, float mix, float scale"
)


_SETS = 7  # its place among the arguments after q_index


def lse_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the log-sum-exp of scores between tensors of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake(q: Tensor, k: Tensor, v: Tensor, q_index: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    if q.dim() != 4:
        raise RuntimeError(
            f"fastdiff::block_sparse_attention: q must have 4 dimensions [B, H, N, D], got {list(q.shape)}"
        )
    out, sets = like_gathered(q, q_index), len(rest[_SETS])
    shape = (sets,) * (sets > 1) + tuple(out.shape[:3])
    return out, q.new_empty(shape, dtype=lse_dtype(q.dtype))


def like_gathered(t: Tensor, index: Tensor | None) -> Tensor:
    """A new tensor for tokens [B, H, N, D], or for those of an index [B or 1, M]."""
    if index is None or index.shape[1] == t.shape[2]:
        return torch.empty_like(t)
    return t.new_empty(t.shape[0], t.shape[1], index.shape[1], t.shape[3])


def _fake_out(q: Tensor, *_: Any, out: Tensor, lse: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in (("out", out), ("lse", lse)):
        if t.device != q.device:
            raise RuntimeError(
                f"fastdiff::block_sparse_attention: {name} must be on {q.device} like q, got {t.device}"
            )


_native.define(f"block_sparse_attention({_ARGUMENTS}) -> (Tensor, Tensor)", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(
    f"block_sparse_attention.out({_ARGUMENTS}, *, Tensor(a!) result, Tensor(b!) lse) -> ()",
    lambda q, *rest, result, lse: _fake_out(q, *rest, out=result, lse=lse),
)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float | None = None,
    bias: Tensor | RelativeBias | None = None,
    q_index: Tensor | None = None,
    kv_index: Tensor | None = None,
    weights: Tensor | None = None,
    lerp: tuple[Tensor, float] | None = None,
    layout: str = "bhnd",
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Softmax attention over the pairs of tokens that a plan lets see each other.

    For query q of a head, with K(q) the keys that it sees:

    .. math::
        s_k = \text{scale} \; q \cdot k_k + \text{bias}_{q,k}, \qquad
        \mathrm{lse} = \log \sum_{k \in K(q)} e^{s_k}, \qquad
        \mathrm{out} = \sum_{k \in K(q)} e^{s_k - \mathrm{lse}}\, v_k

    A query that sees nothing has out 0 and lse −∞. Blocks that are not in the plan cost nothing and are not read; no
    matrix of all pairs is ever formed (online softmax, Milakov and Gimelshein 2018; blocked as in Dao et al. 2022).
    Scores and sums are float32 (float64 for float64), and out is rounded once.

    Two calls over two halves of the keys give the whole:
    lse = logaddexp(lse_1, lse_2), out = out_1 exp(lse_1 − lse) + out_2 exp(lse_2 − lse).

    With a plan of :meth:`AttentionPlan.beside`, keys and values are several sets side by side, each with a softmax of
    its own, and out = Σ_j weights_j out_j: image prompts next to a text (IP-Adapter, AttenST), or regions with soft
    borders (FontStudio), in one pass.

    Args:
        q: queries ``[B, H, N_q, D]``: float32, float16, bfloat16 or float64; D a multiple of 8 up to 256. Any strides.
        k, v: keys and values ``[B, H_kv, N_kv, D]``, of the dtype of q. H is a multiple of H_kv: head h reads key head
            h // (H / H_kv).
        plan: which blocks see each other; for N_q queries and N_kv keys, with one list for all samples and heads or one
            for each.
        scale: multiplies the scores; default: 1/√D. A temperature τ is the scale τ/√D.
        bias: added to the scores: ``[B or 1, H or 1, N_q or 1, N_kv or 1]``, such as ``[B, 1, 1, N_kv]`` for a bias of
            keys, which is the fast form. −∞ hides a key. Or a :class:`RelativeBias`.
        q_index: int64 ``[B or 1, M]``: the queries to compute, by their numbers in q; N_q is then M, for the plan,
            the bias and the results. They are read where they are: nothing is copied.
        kv_index: int64 ``[B or 1, M]``: the keys and values to read, in the same way. A token may be listed twice, so
            that two sets of a plan have it.
        weights: ``[S, B or 1, H or 1, N_q or 1]``, float32, float16, bfloat16 or float64: of the S sets of a plan; one
            for each query are a soft mask. Default: 1.
        lerp: (end, weight): the queries are ``torch.lerp(q, end, weight)``, end like q; such as (q_content, 0.75)
            (AttenST). Formed where they are read.
        layout: "bhnd", or "bnhd" for tensors ``[B, N, H, D]``, as projections give them; lse stays ``[B, H, N_q]``.
        out: where to write: (out, lse), which share no memory with the inputs.

    Returns:
        out ``[B, H, N_q, D]``, with dimensions in memory as in q (of some queries: contiguous); and lse ``[B, H,
        N_q]``, float32 (float64 for float64); ``[S, B, H, N_q]`` for S > 1 sets.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap; a malformed plan or an index of a token that is not
            there: on the CPU before anything is written, on CUDA the kernel stops like a device assert. Nothing out
            of bounds is read.
        ValueError: an unknown layout, or a plan for other numbers of tokens.
        NotImplementedError: gradients are asked for with ``out=``, or of a bias of pairs.

    Differentiable with respect to q, k, v, weights, lerp's end, and a bias of keys or the table of a RelativeBias,
    once: both results may be used; see :mod:`fastdiff.attention.block_sparse_attention_grad`.

    On every instruction set of the CPU, for any number of threads and any strides the bits are the same.
    """
    if layout not in LAYOUTS:
        raise ValueError(
            f"fastdiff.block_sparse_attention: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}"
        )
    if layout == "bnhd":
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        given = None if out is None else (out[0].transpose(1, 2), out[1])
        moved = None if lerp is None else (lerp[0].transpose(1, 2), lerp[1])
        options = {"bias": bias, "q_index": q_index, "kv_index": kv_index, "weights": weights, "lerp": moved}
        result, lse = block_sparse_attention(q, k, v, plan, scale=scale, **options, out=given)  # type: ignore[arg-type]
        return result.transpose(1, 2), lse
    if q.dim() == k.dim() == 4:
        there = tuple(t.shape[2] if n is None else n.shape[-1] for t, n in ((q, q_index), (k, kv_index)))
        if there != (plan.queries, plan.keys):
            raise ValueError(
                f"fastdiff.block_sparse_attention: plan is for {plan.queries} queries and {plan.keys} keys, got "
                f"{there[0]} and {there[1]}"
            )
    if weights is not None and not plan.parts:
        raise ValueError(
            "fastdiff.block_sparse_attention: weights are of the sets of a plan made by beside()"
        )
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    biases = bias_arguments(bias)
    end: tuple[Tensor | None, float] = (None, 0.0) if lerp is None else lerp
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (q, k, v, biases[0], weights, end[0], *(out or ()))
    ):
        from fastdiff.attention.block_sparse_attention_grad import differentiable_attention

        if out is not None:
            raise NotImplementedError(
                "fastdiff.block_sparse_attention: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_attention(q, k, v, q_index, kv_index, plan, biases, weights, lerp, factor)
    arguments = (q, k, v, q_index, kv_index, *plan_arguments(plan), plan.sets, *biases, weights, *end, factor)
    if out is None:
        results: tuple[Tensor, Tensor] = torch.ops.fastdiff.block_sparse_attention.default(*arguments)
        return results
    result, lse = out
    torch.ops.fastdiff.block_sparse_attention.out(*arguments, result=result, lse=lse)
    _native.mark_written([result, lse])
    return result, lse


def plan_arguments(plan: AttentionPlan) -> tuple[Any, ...]:
    """As operators take a plan, without its sets."""
    return (plan.offsets, plan.columns, plan.masks, plan.bits, *plan.block)


Biases = tuple[Tensor | None, Tensor | None, Tensor | None]


def bias_arguments(bias: Tensor | RelativeBias | None) -> Biases:
    """As operators take a bias: itself, or a table and the codes of queries and keys."""
    if isinstance(bias, RelativeBias):
        return bias.bias(), bias.q_code, bias.k_code
    return bias, None, None


# ---- the reference ---------------------------------------------------------------------------------------------


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float | None = None,
    bias: Tensor | RelativeBias | None = None,
    q_index: Tensor | None = None,
    kv_index: Tensor | None = None,
    weights: Tensor | None = None,
    lerp: tuple[Tensor, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`block_sparse_attention` in plain PyTorch and float64, all pairs at once; rounded at the end."""
    if isinstance(bias, RelativeBias):
        bias = bias.of_pairs(q_index, kv_index)
    like = gathered(q, q_index)
    q = like if lerp is None else torch.lerp(like.double(), gathered(lerp[0], q_index).double(), lerp[1])
    k, v = gathered(k, kv_index), gathered(v, kv_index)
    s, seen, (_, _, wide_v) = scores64(q, k, v, plan, scale, bias)
    outs, lses, first = [], [], 0
    for keys in plan.sets or [plan.keys]:
        of_set = slice(first, first := first + keys)
        lses.append(s[..., of_set].logsumexp(-1))
        p = torch.softmax(s[..., of_set], -1).masked_fill((lses[-1] == -math.inf)[..., None], 0)
        outs.append(p @ torch.where(seen, wide_v, 0)[:, :, of_set])
    if weights is not None:
        outs = [out * weight.double()[..., None] for out, weight in zip(outs, weights, strict=True)]
    lse = torch.stack(lses) if len(lses) > 1 else lses[0]
    return torch.empty_like(like).copy_(torch.stack(outs).sum(0)), lse.to(lse_dtype(like.dtype))


def gathered(t: Tensor, index: Tensor | None) -> Tensor:
    """Of tokens [B, H, N, D] those of an index [B or 1, M]."""
    if index is None:
        return t
    return t.gather(2, index[:, None, :, None].expand(t.shape[0], t.shape[1], -1, t.shape[3]))


def scores64(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """All scores [B, H, N_q, N_kv], −∞ where nothing is seen; the keys that any query sees [B, H, N_kv, 1]; q, k, v for
    each head: in float64."""
    group = q.shape[1] // max(1, k.shape[1])
    wide = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    mask = plan.to_mask()
    seen = mask.any(2)[..., None]  # what no query sees may hold anything
    s = wide[0] @ torch.where(seen, wide[1], 0).mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        s = s + bias.double()
    return s.masked_fill(~mask, -math.inf), seen, wide


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_plan(plan: AttentionPlan) -> dict[str, Any]:
    """A plan as the keyword arguments of the torch-free functions."""
    return {
        "offsets": plan.offsets,
        "columns": plan.columns,
        "masks": plan.masks,
        "bits": plan.bits,
        "block_q": plan.block[0],
        "block_k": plan.block[1],
    }


def dlpack_bias(bias: Tensor | RelativeBias | None) -> dict[str, Any]:
    """And a bias."""
    return dict(zip(("bias", "q_code", "k_code"), bias_arguments(bias), strict=True))


def uses_tiles(query: Tensor, *_: Any, **__: Any) -> bool:
    """In bfloat16."""
    return query.dtype == torch.bfloat16


def dlpack_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    *,
    scale: float | None = None,
    bias: Tensor | RelativeBias | None = None,
    lerp: tuple[Tensor, float] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    end = {} if lerp is None else {"q_end": lerp[0], "mix": lerp[1]}
    sets = max(1, len(plan.sets))
    needed = _C.block_sparse_attention_scratch(
        q, plan.offsets, plan.columns, q_index=options.get("q_index"), sets=sets
    )
    scratch = torch.empty(needed, dtype=torch.uint8, device=q.device)
    of_plan = {**dlpack_plan(plan), "sets": list(plan.sets), "scratch": scratch}
    return {"q": q, "k": k, "v": v, **of_plan, **dlpack_bias(bias), **end, "scale": factor, **options}


def dlpack_outputs(stored: tuple[Tensor, Tensor], *_: Any, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free function."""
    return list(stored)


def tolerance(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, *, scale: float | None = None, **_: Any
) -> dict[str, float]:
    """Of a score's D products, which the exponential multiplies, of the exponentials, and of the sum.

    For 16-bit dtypes also of the probabilities, which tensor cores and AMX multiply with the values in that dtype, as
    FlashAttention does: half a roundoff of each, as they do not all err to one side. lse has none of it, nor has any
    result on other CPUs: for them the bound is wide.
    """
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else abs(scale)
    product = factor * _largest(q) * _largest(k) * math.sqrt(q.shape[-1])
    rounded = {torch.float16: 2.0**12, torch.bfloat16: 2.0**15}.get(q.dtype, 0.0)  # in roundoffs of float32
    return {
        "scale": (1 + product) * max(1.0, _largest(v)),
        "terms": 8 + q.shape[-1] // 4 + math.ceil(rounded / (1 + product)),
    }


def _largest(t: Tensor) -> float:
    return float(t.double().nan_to_num(0, 0, 0).abs().max()) if t.numel() else 0.0


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def qkv(
        b: int,
        h: int,
        n: int,
        d: int,
        *,
        keys: int | None = None,
        kv_heads: int | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        there = (b, kv_heads or h, n if keys is None else keys, d)
        return normal(b, h, n, d, **options), normal(*there, **options), normal(*there, **options)

    def random(
        n: int, keys: int, *lists: int, share: float = 0.3, block: tuple[int, int] = (16, 16)
    ) -> AttentionPlan:
        return AttentionPlan.from_mask(torch.rand(*lists, n, keys, generator=g) < share, block)

    def blocks(n: int, keys: int, *lists: int, block: tuple[int, int] = (16, 16)) -> AttentionPlan:
        shape = (*lists, -(-n // block[0]), -(-keys // block[1]))
        some = torch.rand(shape, generator=g) < 0.5
        return AttentionPlan.from_blocks(some, queries=n, keys=keys, block=block)

    def numbers(b: int, count: int, tokens: int) -> Tensor:
        return torch.stack([torch.randperm(tokens, generator=g)[:count] for _ in range(b)])

    def strided(t: Tensor) -> Tensor:
        """[B, H, N, D] of a tensor [B, N, H, D]."""
        return t.transpose(1, 2).contiguous().transpose(1, 2)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    dense = AttentionPlan.dense(40, 40, block=(16, 16))
    causal = AttentionPlan.from_mask(torch.ones(70, 70, dtype=torch.bool).tril(), (32, 16))
    rough = qkv(1, 1, 40, 8)
    rough[0][0, 0, 3, 1] = math.nan
    hidden = torch.zeros(1, 2, 1, 40)
    hidden[..., 7], hidden[0, 1, 0, :20], hidden[0, 0, 0, 30:] = -math.inf, torch.finfo(single).min, -1.5
    return [
        Case("dense", (*qkv(2, 2, 40, 16), dense)),
        *(Case(f"some blocks, {str(t)[6:]}", (*qkv(1, 2, 70, 24, dtype=t), blocks(70, 70)))
          for t in (single, half, torch.float16, double)),
        *(Case(f"any mask, {str(t)[6:]}", (*qkv(1, 2, 50, 16, dtype=t), random(50, 50)))
          for t in (single, half, double)),
        Case("a list for each head and sample", (*qkv(2, 3, 33, 8), random(33, 33, 2, 3))),
        Case("a list for each sample", (*qkv(2, 2, 33, 8), random(33, 33, 2, 1))),
        Case("causal", (*qkv(1, 1, 70, 32), causal)),
        Case("few queries, many keys", (*qkv(1, 2, 5, 16, keys=100), blocks(5, 100, block=(16, 32)))),
        Case("many queries, few keys", (*qkv(1, 2, 130, 16, keys=7), random(130, 7, block=(64, 16)))),
        Case("one query and key", (*qkv(1, 1, 1, 8), AttentionPlan.dense(1, 1))),
        Case("heads share keys", (*qkv(2, 4, 33, 16, kv_heads=2), random(33, 33, 4))),
        Case("no query sees anything", (*qkv(1, 1, 20, 8), random(20, 20, share=0.0))),
        Case("blocks of 64", (*qkv(1, 1, 150, 40), blocks(150, 150, block=(64, 64)))),
        Case("blocks of 128 and 48", (*qkv(1, 1, 150, 8), random(150, 150, block=(128, 48)))),
        Case("blocks of 96 of which some is seen", (*qkv(1, 1, 200, 8), random(200, 200, block=(96, 16)))),
        *(Case(f"head_dim {d}, {str(t)[6:]}", (*qkv(1, 1, n, d, dtype=t), random(n, n, block=(64, 64))))
          for n, d, t in ((150, 64, half), (70, 128, torch.float16), (66, 192, half))),
        Case("head_dim 72", (*qkv(1, 1, 40, 72), random(40, 40))),
        Case("head_dim 256, bfloat16", (*qkv(1, 1, 20, 256, dtype=half), random(20, 20))),
        Case("temperature", (*qkv(1, 1, 40, 16), dense), {"scale": 0.6}),
        Case("scale 0", (*qkv(1, 1, 40, 16), dense), {"scale": 0.0}),
        Case("bias of keys", (*qkv(1, 2, 40, 16), dense), {"bias": hidden}),
        Case("bias of keys, bfloat16", (*qkv(2, 1, 33, 8, dtype=half), random(33, 33)), {"bias": normal(2, 1, 1, 33)}),
        Case("bias of all", (*qkv(2, 2, 40, 16), dense), {"bias": normal(1, 2, 40, 40)}),
        Case("bias of queries", (*qkv(1, 1, 33, 8), random(33, 33)), {"bias": normal(1, 1, 33, 1)}),
        Case("strides of bnhd", (*map(strided, qkv(2, 3, 33, 16, dtype=half)), random(33, 33))),
        Case("elements with gaps", (*(t[..., ::2] for t in qkv(1, 1, 33, 32)), random(33, 33))),
        Case("samples share keys", (normal(3, 1, 33, 8), *(normal(1, 1, 33, 8).expand(3, 1, 33, 8) for _ in "kv"),
                                    random(33, 33))),
        Case("some queries and keys", (*qkv(2, 2, 60, 16), random(20, 33)),
             {"q_index": numbers(2, 20, 60), "kv_index": numbers(1, 33, 60)}),
        Case("some queries, bfloat16", (*qkv(2, 2, 30, 24, keys=40, dtype=half), random(5, 40)),
             {"q_index": numbers(1, 5, 30)}),
        Case("some keys, of strides of bnhd", (*map(strided, qkv(2, 2, 40, 16, dtype=half)), random(40, 17)),
             {"kv_index": numbers(2, 17, 40), "bias": normal(2, 1, 1, 17)}),
        Case("relative positions", (*qkv(2, 2, 40, 16), random(40, 40)),
             {"bias": RelativeBias.grid(normal(2, 9 * 15), (5, 8))}),
        Case("relative positions of some tokens, bfloat16", (*qkv(2, 2, 36, 16, dtype=half), random(20, 33)),
             {"bias": RelativeBias.grid(normal(1, 11 * 11), (6, 6)), "q_index": numbers(2, 20, 36),
              "kv_index": numbers(1, 33, 36)}),
        *(Case(f"two sets of keys, {str(t)[6:]}",
               (*qkv(2, 2, 40, 16, keys=27, dtype=t), AttentionPlan.beside(random(40, 20), blocks(40, 7))),
               {"weights": normal(2, 2, 1, 40)}) for t in (single, half, double)),
        Case("sets of wide heads, bfloat16",
             (*qkv(1, 1, 70, 136, keys=50, dtype=half),
              AttentionPlan.beside(*(AttentionPlan.dense(70, n, block=(16, 16)) for n in (0, 33, 17))))),
        *(Case(f"between two queries, {str(t)[6:]}", (*qkv(1, 2, 40, 24, dtype=t), dense),
               {"lerp": (normal(1, 2, 40, 24, dtype=t), 0.75)}) for t in (single, half)),
        *(Case(f"few rows of many keys, {str(t)[6:]}",
               (*qkv(1, 1, 20, 16, keys=300, dtype=t), AttentionPlan.beside(blocks(20, 300))),
               {"weights": normal(1, 1, 1, 20)}) for t in (single, half)),
        Case("nan", (*rough, dense)),
        *(Case(f"{b} samples, {n} queries, {keys} keys", (*qkv(b, 1, n, 8, keys=keys), AttentionPlan.dense(n, keys)))
          for b, n, keys in ((0, 4, 4), (1, 0, 4), (1, 4, 0))),
    ]  # fmt: skip
