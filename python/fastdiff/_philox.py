# SPDX-License-Identifier: Apache-2.0
"""The noise of the kernels in plain numpy, for references and tests: Philox4x32-10, Box-Muller in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]
MASK = np.uint64(0xFFFFFFFF)


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Salmon et al. 2011, section 3: four 32-bit words per counter; ``counter`` is uint64 [4, n], each below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(rounds):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & MASK,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & MASK, (k1 + np.uint64(0xBB67AE85)) & MASK
    return np.stack([c0, c1, c2, c3])


def normals(seed: int, offset: int, count: int) -> NDArray[np.float64]:
    """z of elements 0 .. count-1 of one stream, in float64.

    The uniform number under the logarithm is rounded to float32, as part of the definition: the radius resolves
    2.4e-4 near 0 and reaches 6.76.
    """
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    low, high = np.uint64(offset % 2**32), np.uint64((offset % 2**64) >> 32)
    counter = np.stack(
        [blocks & MASK, blocks >> np.uint64(32), np.full_like(blocks, low), np.full_like(blocks, high)]
    )
    words = philox4x32(counter, (seed % 2**32, (seed % 2**64) >> 32)).astype(np.float64)
    pairs = []
    for radius_word, angle_word in ((words[0], words[1]), (words[2], words[3])):
        unit = (radius_word.astype(np.float32).astype(np.float64) + 0.5) / 2**32
        radius = np.sqrt(-2 * np.log(unit.astype(np.float32).astype(np.float64)))
        angle = 2 * math.pi * angle_word / 2**32
        pairs += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(pairs, axis=1).reshape(-1)[:count]


def noise(shape: Sequence[int], rng: Tensor, *, step: int = 0, complex_parts: bool = False) -> Tensor:
    """The z that a kernel draws for a tensor of this shape, float64 (complex128 of total variance 1).

    Args:
        shape: [B, *sample].
        rng: int64 [2] = (seed, offset) with the element's index in the batch, or [B, 2] with its index in the sample.
        step: added to the offset.
        complex_parts: each element takes two normals.
    """
    count = math.prod(shape) * (2 if complex_parts else 1)
    if rng.dim() == 1:
        z = normals(int(rng[0]), int(rng[1]) + step, count)
    else:
        samples = [normals(int(seed), int(offset) + step, count // len(rng)) for seed, offset in rng]
        z = np.concatenate([np.empty(0), *samples])
    flat = torch.from_numpy(z).to(rng.device)
    if not complex_parts:
        return flat.reshape(tuple(shape))
    return torch.view_as_complex(flat.reshape(*shape, 2)) * math.sqrt(0.5)
