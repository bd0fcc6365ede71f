# SPDX-License-Identifier: Apache-2.0
"""use_fast_haar_patch: the modules of diffusers' Cosmos autoencoder, replaced and compared."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from diffusers import AutoencoderKLCosmos
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosPatchEmbed3d, CosmosUnpatcher3d
from fastdiff.integrations.diffusers import use_fast_haar_patch
from torch import nn


def tiny(patch: int = 4) -> AutoencoderKLCosmos:
    torch.manual_seed(0)
    return AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 16),
        decode_block_out_channels=(8, 16),
        attention_resolutions=(4,),
        resolution=16,
        num_layers=1,
        patch_size=patch,
        latent_channels=4,
        spatial_compression_ratio=patch,
        temporal_compression_ratio=patch,
    ).eval()


def video(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 9])
@torch.no_grad()
def test_autoencoder_gives_the_same(frames: int, patch: int) -> None:
    model = tiny(patch)
    fast = copy.deepcopy(model)
    assert use_fast_haar_patch(fast) == 2
    assert type(fast.encoder.patch_embed) is not CosmosPatchEmbed3d
    assert type(fast.decoder.unpatch_embed) is not CosmosUnpatcher3d
    x = video(1, 3, frames, 16, 16)
    posterior, other = (m.encode(x).latent_dist.mode() for m in (model, fast))
    torch.testing.assert_close(other, posterior, rtol=1e-4, atol=1e-5)
    decoded, other = (m.decode(posterior).sample for m in (model, fast))
    assert other.shape == decoded.shape
    torch.testing.assert_close(other, decoded, rtol=1e-4, atol=1e-4)


def test_is_called_and_only_once_per_module(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastdiff.integrations.diffusers import haar_patch as module

    calls = []
    monkeypatch.setattr(module, "haar_patch", lambda x, p: calls.append(p) or x)
    monkeypatch.setattr(module, "haar_unpatch", lambda x, p: calls.append(-p) or x)
    model = nn.Sequential(CosmosPatchEmbed3d(2), nn.ModuleDict({"deep": CosmosUnpatcher3d(8)}))
    assert use_fast_haar_patch(model) == 2
    model[0](video(1, 1, 3, 4, 4))
    model[1]["deep"](video(1, 512, 1, 1, 1))
    assert calls == [2, -8]
    assert use_fast_haar_patch(model) == 0


def test_state_and_kind_stay() -> None:
    model = tiny()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    model.encoder.patch_embed.train()
    use_fast_haar_patch(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert isinstance(model.encoder.patch_embed, CosmosPatchEmbed3d)
    assert isinstance(model.decoder.unpatch_embed, CosmosUnpatcher3d)
    assert (model.encoder.patch_embed.training, model.decoder.unpatch_embed.training) == (True, False)
    assert model.encoder.patch_embed.patch_size == 4


def test_others_are_left_alone() -> None:
    model = nn.Sequential(
        CosmosPatchEmbed3d(4, "rearrange"), CosmosUnpatcher3d(2, "rearrange"), CosmosPatchEmbed3d(16)
    )
    kept = list(model)
    assert use_fast_haar_patch(model) == 0
    assert all(a is b for a, b in zip(model, kept, strict=True))
    assert use_fast_haar_patch(CosmosPatchEmbed3d(4)) == 1  # a model of one module


def test_sizes_that_diffusers_pads() -> None:
    model = nn.Sequential(CosmosPatchEmbed3d(4))
    want = [model(video(1, 2, *size)) for size in ((3, 8, 8), (5, 10, 8), (5, 8, 6))]
    use_fast_haar_patch(model)
    got = [model(video(1, 2, *size)) for size in ((3, 8, 8), (5, 10, 8), (5, 8, 6))]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@torch.no_grad()
def test_can_be_copied_and_compiled() -> None:
    model = nn.Sequential(CosmosPatchEmbed3d(2), CosmosUnpatcher3d(2))
    use_fast_haar_patch(model)
    x = video(1, 1, 3, 4, 8)
    torch.testing.assert_close(copy.deepcopy(model)(x), x, rtol=0, atol=1e-6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), x, rtol=0, atol=1e-6)
    torch._dynamo.reset()
    torch.save(model.state_dict(), io.BytesIO())
