# SPDX-License-Identifier: Apache-2.0
"""Cases of channel_affine: AdaIN and content-aware AdaIN, against the expression of AttenST's release."""

from __future__ import annotations

import torch
from fastdiff import channel_affine
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from fastdiff.guidance.channel_affine import reference
from torch import Tensor

OP = "channel_affine"
EAGER, COMPILED = "eager", "torch.compile"

BASE = (1, 4, 64, 64)  # Stable Diffusion, 512 x 512
HEADLINE = (2, 4, 128, 128)  # SDXL, 1024 x 1024
LARGE = (4, 16, 128, 128)  # four FLUX-sized latents
FEATURES = (1, 320, 64, 64)  # a feature map of a UNet
DTYPES = (torch.float32, torch.bfloat16)

WEIGHTS = {"adain": (1.0, 0.0), "content_aware": (0.6, 0.4)}
TITLES = {"adain": "AdaIN", "content_aware": "content-aware AdaIN"}
EPS = 1e-4
ROUNDOFFS = 64.0  # eager rounds after every operation; the sums of torch.compile in channels_last have more


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [
        *(_case(name, s, d) for name in WEIGHTS for d in DTYPES for s in (BASE, HEADLINE, LARGE, FEATURES)),
        *(_case("adain", FEATURES, d, channels_last=True) for d in DTYPES),
    ]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool = False) -> Case:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Case(
        op=OP,
        name=name + ("_channels_last" if channels_last else ""),
        title=TITLES[name] + (", channels_last" if channels_last else ""),
        shape=shape,
        dtype=dtype,
        tensors=3,
        build=lambda device: _contenders(WEIGHTS[name], shape, dtype, layout, device),
        targets=() if shape == BASE else (Target(EAGER, factor=4.0), Target(COMPILED, factor=1.0)),
    )


def _contenders(
    weights: tuple[float, float],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
    device: torch.device,
) -> list[Contender]:
    g = torch.Generator().manual_seed(0)
    content, style = (
        (mean + std * torch.randn(shape, generator=g)).to(device, dtype).contiguous(memory_format=layout)
        for mean, std in ((0.1, 1.0), (-0.3, 0.7))
    )
    style_weight, content_weight = weights
    options = {"style_weight": style_weight, "content_weight": content_weight, "eps": EPS}
    check = close_to([reference(content.double(), style.double(), **options)], roundoffs=ROUNDOFFS)
    out = torch.empty_like(content)

    def expression(content: Tensor, style: Tensor) -> tuple[Tensor]:
        return content_aware_adain(content, style, style_weight, content_weight)

    return [
        Contender(EAGER, peers.with_tensors(expression, [content, style], []), check),
        Contender(COMPILED, peers.compiled(expression, [content, style], []), check),
        Contender(OURS, lambda: (channel_affine(content, style, **options, out=out),), check, rival=None),
    ]


def content_aware_adain(
    content: Tensor, style: Tensor, style_weight: float, content_weight: float
) -> tuple[Tensor]:
    """The formula of AttenST's release; with the weights 1 and 0 the one of AdaIN."""
    content_mean, content_std = content.mean((2, 3), keepdim=True), content.std((2, 3), keepdim=True)
    style_mean, style_std = style.mean((2, 3), keepdim=True), style.std((2, 3), keepdim=True)
    target_mean = style_weight * style_mean + content_weight * content_mean
    target_std = style_weight * style_std + content_weight * content_std
    return ((content - content_mean) / (content_std + EPS) * target_std + target_mean,)
