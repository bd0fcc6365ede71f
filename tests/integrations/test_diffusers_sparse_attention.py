# SPDX-License-Identifier: Apache-2.0
"""use_sparse_attention: plans inside transformers of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
)
from fastdiff.attention import AttentionPlan
from fastdiff.integrations.diffusers import use_sparse_attention
from fastdiff.integrations.diffusers.sparse_attention import SparseProcessor
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixart() -> tuple[nn.Module, dict[str, Any], int]:
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=16, sample_size=8, patch_size=1, caption_channels=16, norm_type="ada_norm_single",
    )  # fmt: skip
    given = {
        "hidden_states": normal(1, 4, 8, 8), "encoder_hidden_states": normal(1, 5, 16), "timestep": torch.tensor([3]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip
    return model, given, 64


def dit() -> tuple[nn.Module, dict[str, Any], int]:
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, patch_size=1,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    given = {
        "hidden_states": normal(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }
    return model, given, 64


def sd3() -> tuple[nn.Module, dict[str, Any], int]:
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    given = {
        "hidden_states": normal(1, 4, 8, 8), "encoder_hidden_states": normal(1, 6, 16),
        "pooled_projections": normal(1, 16), "timestep": torch.tensor([3]),
    }  # fmt: skip
    return model, given, 70


def flux() -> tuple[nn.Module, dict[str, Any], int]:
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    given = {
        "hidden_states": normal(1, 64, 4), "encoder_hidden_states": normal(1, 6, 16),
        "pooled_projections": normal(1, 16), "timestep": torch.tensor([0.3]), "img_ids": normal(64, 3),
        "txt_ids": torch.zeros(6, 3),
    }  # fmt: skip
    return model, given, 70


def run(model: nn.Module, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**given).sample
    return result


@pytest.mark.parametrize("make", [pixart, dit, sd3, flux])
def test_is_the_model_with_the_mask(
    make: Callable[[], tuple[nn.Module, dict[str, Any], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, given, tokens = make()
    model.eval()
    for p in model.parameters():  # gates that start at 0 would hide the attention
        nn.init.normal_(p, std=0.2)
    before = run(model, given)
    plan = AttentionPlan.strided(tokens, stride=6, local=4, block=(16, 16))
    assert use_sparse_attention(model, plan) >= 2
    got = run(model, given)
    assert use_sparse_attention(model, plan) >= 2  # again: not wrapped twice
    assert torch.equal(run(model, given), got)
    assert use_sparse_attention(model, None) >= 2
    assert torch.equal(run(model, given), before)

    def masked(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        if query.shape[2] == key.shape[2] == tokens:
            attn_mask = plan.to_mask()
        return sdpa(query, key, value, attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
    want = run(model, given)
    assert not torch.allclose(want, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_where() -> None:
    model, _, tokens = pixart()
    plan = AttentionPlan.dense(tokens, tokens)
    assert use_sparse_attention(model, plan, where=lambda name: name.endswith("blocks.1.attn1")) == 1
    kinds = [
        type(m.processor) for m in model.modules() if hasattr(m, "set_processor") and hasattr(m, "processor")
    ]
    assert sum(issubclass(kind, SparseProcessor) for kind in kinds) == 1
    assert use_sparse_attention(model, None) == 1
    assert use_sparse_attention(nn.Linear(2, 2), plan) == 0
