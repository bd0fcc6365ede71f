# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about mask_blocks: any shape, every bit at its place, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import mask_blocks
from fastdiff.attention.mask_blocks import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_same_bits


def some(*shape: int, share: float = 0.5, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, high)) for high in (2, 3, 300, 300))
    share = data.draw(st.sampled_from([0.0, 0.001, 0.5, 0.999, 1.1]), "share")
    mask = some(*shape, share=share, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans(), "keys in rows"):
        mask = mask.mT.contiguous().mT
    size = st.integers(1, 16).map(lambda n: 16 * n)
    block = data.draw(size, "block_q"), data.draw(size, "block_k")
    assert_same_bits(mask_blocks(mask, block), reference(mask, block))


@pytest.mark.parametrize("block", [(16, 16), (48, 32), (64, 64), (256, 256)], ids=str)
def test_every_bit_is_at_its_place(block: tuple[int, int]) -> None:
    for q, k in ((0, 0), (15, 3), (31, 9), (32, 15), (47, 16), (63, 63), (299, 1), (7, 1279)):
        mask = torch.zeros(1, 1, 300, 1280, dtype=torch.bool)
        mask[0, 0, q, k] = True
        kinds, bits = mask_blocks(mask, block)
        assert kinds.nonzero().tolist() == [[0, 0, q // block[0], k // block[1]]]
        assert kinds.sum() == 2
        number = (q // block[0]) * kinds.shape[3] + k // block[1]
        at = q % block[0]
        assert bits.nonzero().tolist() == [[number, k % block[1], at // 32]]
        assert (int(bits.sum()) & 0xFFFFFFFF) == 1 << at % 32


def test_threads_share_the_rows() -> None:
    mask = some(1, 2, 700, 500, share=0.99)
    assert_same_bits(mask_blocks(mask, (32, 16)), reference(mask, (32, 16)))


def test_any_byte_but_0_is_true() -> None:
    bytes_ = torch.randint(0, 3, (1, 1, 70, 50), dtype=torch.uint8) * 127
    got = mask_blocks(bytes_.view(torch.bool), (16, 16))
    assert_same_bits(got, mask_blocks(bytes_ != 0, (16, 16)))


def test_numpy() -> None:
    mask = some(1, 2, 50, 70)
    out = [np.empty((1, 2, 2, 3), np.uint8), np.empty((12, 32, 1), np.int32)]
    _C.mask_blocks(mask.numpy(), out, block_q=32, block_k=32)
    assert_same_bits([torch.from_numpy(t) for t in out], mask_blocks(mask, (32, 32)))
    with pytest.raises(ValueError, match="out must be two arrays, kinds and bits, got 1"):
        _C.mask_blocks(mask.numpy(), out[:1])


@pytest.mark.parametrize(
    ("mask", "block", "options", "message"),
    [
        (some(2, 3), (16, 16), {}, r"mask must have 4 dimensions \[B, H, N_q, N_kv\], got \[2, 3\]"),
        (some(1, 1, 2, 3).byte(), (16, 16), {}, "mask must be bool, got uint8"),
        (some(1, 1, 2, 3), (8, 16), {}, "block_q must be a multiple of 16 from 16 to 256, got 8"),
        (some(1, 1, 2, 3), (16, 272), {}, "block_k must be a multiple of 16 from 16 to 256, got 272"),
        (some(1, 1, 2, 3), (16, 16), {"out": [torch.empty(1, dtype=torch.uint8)] * 2},
         r"kinds must have shape \[1, 1, 1, 1\], got \[1\]"),
    ],
)  # fmt: skip
def test_refuses(mask: Tensor, block: tuple[int, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::mask_blocks: {message}"):
        mask_blocks(mask, block, **options)
