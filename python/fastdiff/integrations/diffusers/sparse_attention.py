# SPDX-License-Identifier: Apache-2.0
"""Attention plans inside the transformers of diffusers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from fastdiff.attention import AttentionPlan, SparseAttention


def use_sparse_attention(
    model: nn.Module,
    plan: AttentionPlan | Sequence[AttentionPlan] | Callable[..., AttentionPlan | None] | None,
    *,
    where: Callable[[str], bool] | None = None,
) -> int:
    """Let the attention of a diffusers model compute the blocks of a plan, such as that of PixArt, DiT, SD3 and Flux.

    Each attention module's processor is called inside :class:`fastdiff.attention.SparseAttention`: whatever it does
    besides (projections, norms, rotary embeddings, joint text tokens) stays. Joint attention concatenates the tokens of
    text and image: the plan is for all of them, in the model's order.

        use_sparse_attention(pipe.transformer, AttentionPlan.neighborhood((64, 64), window=(15, 15)))
        use_sparse_attention(pipe.transformer, None)  # as it was

    Args:
        model: any module that contains attention modules of diffusers; changed in place.
        plan: as for ``SparseAttention``: calls of other sizes, such as cross-attention, stay dense. None takes it away.
        where: which attention modules, by their names in the model; default: all. Processors with weights of their own
            are left alone.

    Returns:
        How many modules have the plan now (or have lost it).
    """
    count = 0
    for name, module in model.named_modules():
        processor = getattr(module, "processor", None)
        if (
            processor is None
            or not hasattr(module, "set_processor")
            or (where is not None and not where(name))
        ):
            continue
        inner = processor.inner if isinstance(processor, SparseProcessor) else processor
        if (plan is None and inner is processor) or isinstance(inner, nn.Module):
            continue
        kind: type = type(inner)
        module.set_processor(inner if plan is None else _wrapper(kind)(inner, plan))
        count += 1
    return count


class SparseProcessor:
    """An attention processor whose ``scaled_dot_product_attention`` computes the blocks of a plan.

    Attributes:
        inner: the processor it calls.
        mode: the context in which it does.
    """

    def __init__(self, inner: Any, plan: Any) -> None:
        self.inner = inner
        self.mode = SparseAttention(plan)


@functools.cache
def _wrapper(inner: type) -> type[SparseProcessor]:
    """With the signature of that processor's call, which diffusers reads."""

    @functools.wraps(inner.__call__)
    def call(self: SparseProcessor, *args: Any, **kwargs: Any) -> Any:
        with self.mode:
            return self.inner(*args, **kwargs)

    return type(f"Sparse{inner.__name__}", (SparseProcessor,), {"__call__": call})
