# SPDX-License-Identifier: Apache-2.0
"""Cases of haar_patch: the Haar patches of Cosmos' autoencoder, against the modules of diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosPatchEmbed3d, CosmosUnpatcher3d
from fastdiff import haar_patch, haar_unpatch
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from fastdiff.wavelet.haar_patch import reference
from torch import Tensor

OP = "haar_patch"
EAGER, COMPILED = "eager", "torch.compile"

PATCH = 4  # of all of Cosmos' tokenizers
BASE = (1, 3, 1, 64, 64)  # a small image
CLIP = (1, 3, 17, 256, 256)
LARGE = (1, 3, 9, 512, 512)
DTYPES = (torch.float32, torch.bfloat16)
TITLES = {"patch": "Haar patches of a video", "unpatch": "a video from its Haar patches"}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(name, shape, dtype) for name in TITLES for dtype in DTYPES for shape in (BASE, CLIP, LARGE)]


def _case(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        op=OP,
        name=name,
        title=TITLES[name],
        shape=shape,
        dtype=dtype,
        tensors=2,  # the bands have the repeated first frame besides
        build=lambda device: _contenders(name, shape, dtype, device),
        targets=() if shape == BASE else (Target(EAGER, factor=15.0),),
    )


def _contenders(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> list[Contender]:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    module = (CosmosPatchEmbed3d if name == "patch" else CosmosUnpatcher3d)(PATCH).to(device)
    function = haar_patch if name == "patch" else haar_unpatch
    given = x if name == "patch" else haar_patch(x, PATCH)
    want = reference(given.double(), PATCH, inverse=name == "unpatch")
    # Theirs rounds after each of 6 convolutions; sums over the bands have p^3 terms, whose errors add up.
    check = close_to([want], roundoffs=8.0 * (1 if name == "patch" else math.sqrt(PATCH**3)))

    def expression(given: Tensor) -> Sequence[Tensor]:
        return (module(given),)

    return [
        Contender(EAGER, peers.with_tensors(expression, [given], []), check),
        Contender(COMPILED, peers.compiled(expression, [given], []), check),
        Contender(OURS, lambda: (function(given, PATCH),), check, rival=None),
    ]
