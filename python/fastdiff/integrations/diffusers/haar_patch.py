# SPDX-License-Identifier: Apache-2.0
"""The patching of Cosmos' autoencoder by :func:`fastdiff.haar_patch`."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from fastdiff.wavelet import haar_patch, haar_unpatch

_PATCHES = (1, 2, 4, 8)


def use_fast_haar_patch(model: nn.Module) -> int:
    """Let the patch embedders and unpatchers inside a model of diffusers run as one native pass each.

    Every ``CosmosPatchEmbed3d`` and ``CosmosUnpatcher3d`` with ``patch_method="haar"`` and a patch size of 1, 2, 4 or 8
    becomes one of a subclass that differs in nothing but how it computes its result: hooks and all else that is
    attached to it stay. Videos that are not a whole number of patches, which diffusers pads with mirrored pixels, are
    left to its code.

        use_fast_haar_patch(pipe.vae)  # 2: one in the encoder, one in the decoder

    Args:
        model: a module that contains them, such as ``AutoencoderKLCosmos``; changed in place.

    Returns:
        How many there were; 0 where there are none (any more).

    Raises:
        ImportError: diffusers is not installed, or is older than its Cosmos autoencoder.
    """
    subclasses = _subclasses()
    found = [
        module
        for module in model.modules()
        if type(module) in subclasses and module.patch_method == "haar" and module.patch_size in _PATCHES
    ]
    for module in found:
        module.__class__ = subclasses[type(module)]  # hooks and all that is attached to it stay
    return len(found)


@functools.cache
def _subclasses() -> dict[type[nn.Module], Any]:
    """By the class of diffusers that each stands in for."""
    from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos

    class FastPatchEmbed3d(cosmos.CosmosPatchEmbed3d):
        """``CosmosPatchEmbed3d`` in one pass."""

        def _haar(self, hidden_states: Tensor) -> Tensor:
            frames, rows, columns = hidden_states.shape[2:]
            if any(size % self.patch_size for size in (frames - 1, rows, columns)):
                padded: Tensor = super()._haar(hidden_states)
                return padded
            return haar_patch(hidden_states, self.patch_size)

    class FastUnpatcher3d(cosmos.CosmosUnpatcher3d):
        """``CosmosUnpatcher3d`` in one pass."""

        def _ihaar(self, hidden_states: Tensor) -> Tensor:
            return haar_unpatch(hidden_states, self.patch_size)

    return {cosmos.CosmosPatchEmbed3d: FastPatchEmbed3d, cosmos.CosmosUnpatcher3d: FastUnpatcher3d}
