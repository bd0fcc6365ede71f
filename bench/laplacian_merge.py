# SPDX-License-Identifier: Apache-2.0
"""Cases of laplacian_merge: two and three bands, and all of frequency-decoupled guidance, against diffusers.

The floor of two bands is 2.25 images, one and a quarter read and one written; that of the guidance 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastdiff import guidance, laplacian_merge
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Call, Case, Contender, Target, close_to
from fastdiff.bench.laplacian_split import DTYPES, SHAPES
from fastdiff.wavelet.laplacian_merge import reference
from torch import Tensor

OP = "laplacian_merge"
EAGER, COMPILED, GUIDER = "kornia", "torch.compile", "diffusers"
ROUNDOFFS = 64.0  # kornia rounds after each of its operations

SCALES = (10.0, 5.0)  # the defaults of diffusers' guider
GUIDANCE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # our options, and diffusers'
    "fdg": ({}, {}),
    "fdg_rescaled": ({"rescale": 0.7}, {"guidance_rescale": 0.7}),
    "fdg_projected": ({"parallel_weights": 0.5}, {"parallel_weights": 0.5}),
}
TITLES = {
    "fdg": "frequency-decoupled guidance",
    "fdg_rescaled": "frequency-decoupled guidance, rescaled",
    "fdg_projected": "frequency-decoupled guidance, projected",
}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [
        *(_merge_case(levels, s, d) for levels in (2, 3) for d in DTYPES for s in SHAPES),
        *(_guidance_case(name, s, d) for name in GUIDANCE for d in DTYPES for s in SHAPES),
    ]


def _merge_case(levels: int, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=f"{levels}_bands",
        title=f"image from a Laplacian pyramid, {levels} bands",
        shape=shape,
        dtype=dtype,
        tensors=2,
        build=lambda device: _merge_contenders(levels, shape, dtype, device),
        targets=(Target(EAGER, factor=10.0), Target(COMPILED, factor=1.0)),
    )


def _merge_contenders(
    levels: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    from kornia.geometry import pyrup

    g = torch.Generator().manual_seed(0)
    sizes = [(*shape[:-2], shape[-2] >> n, shape[-1] >> n) for n in range(levels)]
    bands = [torch.randn(size, generator=g).to(device, dtype) for size in sizes]
    check = close_to([reference([b.double() for b in bands])], roundoffs=ROUNDOFFS)

    def expression(*bands: Tensor) -> Sequence[Tensor]:
        image = bands[-1]
        for band in reversed(bands[:-1]):
            image = pyrup(image) + band
        return (image,)

    return [
        Contender(EAGER, peers.with_tensors(expression, bands, []), check),
        Contender(COMPILED, peers.compiled(expression, bands, []), check),
        Contender(OURS, lambda: (laplacian_merge(bands),), check, rival=None),
    ]


def _guidance_case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=name,
        title=TITLES[name],
        shape=shape,
        dtype=dtype,
        tensors=3,
        build=lambda device: _guidance_contenders(name, shape, dtype, device),
        targets=(Target(GUIDER, factor=10.0),),
    )


def _guidance_contenders(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    from diffusers import guiders

    g = torch.Generator().manual_seed(0)
    uncond = torch.randn(shape, generator=g)
    cond = (uncond + 0.3 * torch.randn(shape, generator=g)).to(device, dtype)
    uncond = uncond.to(device, dtype)
    our_options, their_options = GUIDANCE[name]
    ours = guidance.FrequencyDecoupled(SCALES, **our_options)
    guider = guiders.frequency_decoupled_guidance.FrequencyDecoupledGuidance(
        guidance_scales=list(SCALES), **their_options
    )
    guider.set_state(step=5, num_inference_steps=10, timestep=torch.tensor(0))
    check = close_to([guider.forward(cond.double(), uncond.double()).pred], roundoffs=ROUNDOFFS)
    theirs: Call = lambda: (guider.forward(cond, uncond).pred,)  # noqa: E731
    return [
        Contender(GUIDER, theirs, check),
        Contender(OURS, lambda: (ours(cond, uncond),), check, rival=None),
    ]
