# SPDX-License-Identifier: Apache-2.0
"""Whole models with their layers quantised by quantize_(): PixArt's transformer.

PixArt-alpha's width, heads and cross-attention, four blocks, random weights: only time and error can be seen there, not
pictures. tests/quant has the digits, a trained model, after a whole sampling run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from fastdiff.bench.int8_linear import EAGER, OP, near
from fastdiff.bench.kit import OURS, Case, Contender, Target, Verdict
from fastdiff.quant import QuantConfig, quantize_
from torch import Tensor, nn

WIDTH, HEADS, BLOCKS, CAPTION = 1152, 16, 4, 120
COSINE = 0.999
CONFIGS = {OURS: QuantConfig(), "fastdiff, int8 weights": QuantConfig(scheme="int8_weight")}


def cases() -> list[Case]:
    """All cases, the smallest shapes first."""
    return [_pixart(64, 4), *(_pixart(tokens, HEADS) for tokens in (256, 1024))]


def _pixart(tokens: int, heads: int) -> Case:
    return Case(
        op=OP,
        name="pixart",
        title=f"PixArt, {BLOCKS} blocks",
        shape=(2, tokens, heads * WIDTH // HEADS),
        dtype=torch.float32,
        tensors=2,
        build=lambda device: _contenders(tokens, heads, device),
        targets=() if tokens == 64 else (Target(EAGER, factor=1.3),),
    )


def pixart(tokens: int, heads: int) -> nn.Module:
    """The transformer for so many tokens, a square, random weights."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    dim = WIDTH // HEADS
    model = PixArtTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=dim,
        num_layers=BLOCKS,
        cross_attention_dim=heads * dim,
        sample_size=2 * round(tokens**0.5),
        caption_channels=4096 if heads == HEADS else 64,
    )
    return model.eval().requires_grad_(False)


def same_direction(want: Tensor) -> Callable[[Sequence[Tensor]], Verdict]:
    """A check: the cosine of the outputs is at least 0.999; what is shown is how far it is from 1."""

    def check(got: Sequence[Tensor]) -> Verdict:
        a, b = got[0].double().flatten(), want.double().flatten()
        distance = 1 - float(a @ b / (a.norm() * b.norm()))
        return Verdict(
            distance, None if distance <= 1 - COSINE else f"cosine {1 - distance:.5f}, at least {COSINE}"
        )

    return check


def _contenders(tokens: int, heads: int, device: torch.device) -> list[Contender]:
    model = pixart(tokens, heads).to(device)
    side = 2 * round(tokens**0.5)
    g = torch.Generator().manual_seed(0)
    channels = 4096 if heads == HEADS else 64
    x = torch.randn(2, 4, side, side, generator=g).to(device)
    prompt = torch.randn(2, CAPTION, channels, generator=g).to(device)
    t = torch.tensor([500, 500], device=device)

    def call(of: nn.Module) -> Callable[[], Sequence[Tensor]]:
        sizes = {"resolution": None, "aspect_ratio": None}
        return lambda: of(x, prompt, timestep=t, added_cond_kwargs=sizes, return_dict=False)

    want = call(model)()[0]
    contenders = [Contender(EAGER, call(model), near(want.double(), 1e-5))]
    for name, config in CONFIGS.items():
        quantised = copy.deepcopy(model)
        quantize_(quantised, config, progress=False)
        contenders.append(Contender(name, call(quantised), same_direction(want), rival=None))
    return contenders
