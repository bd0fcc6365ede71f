# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about list_blocks: any pattern, lists that a plan may have, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import list_blocks
from fastdiff.attention.list_blocks import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_same_bits


def kinds(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, high)) for high in (3, 4, 40, 40))
    blocks = kinds(*shape, seed=data.draw(st.integers(0, 99)))
    blocks *= torch.rand(shape) < data.draw(st.sampled_from([0.05, 0.5, 1.0]), "share")
    if data.draw(st.booleans(), "whole blocks"):
        blocks = blocks.bool()
    offsets, columns, masks = list_blocks(blocks)
    assert_same_bits([offsets, columns, masks], reference(blocks))
    for b, h, r in np.ndindex(shape[:3]):
        row = slice(int(offsets[b, h, r]), int(offsets[b, h, r + 1]))
        seen = blocks[b, h, r].nonzero().flatten()
        assert torch.equal(columns[row].long(), seen)
        if blocks.dtype == torch.uint8:
            number = ((b * shape[1] + h) * shape[2] + r) * shape[3] + seen
            assert torch.equal(masks[row].long(), torch.where(blocks[b, h, r, seen] == 1, -1, number))


def test_threads_share_the_lists() -> None:
    blocks = kinds(2, 3, 50, 40)
    assert_same_bits(list_blocks(blocks), reference(blocks))


def test_numpy() -> None:
    blocks = kinds(2, 3, 5, 7)
    out = [np.empty(t.shape, np.int32) for t in list_blocks(blocks)]
    _C.list_blocks(blocks.numpy(), out)
    assert_same_bits([torch.from_numpy(t) for t in out], list_blocks(blocks))
    with pytest.raises(ValueError, match="out must be three arrays, offsets, columns and masks, got 2"):
        _C.list_blocks(blocks.numpy(), out[:2])


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        (kinds(2, 3), {}, r"blocks must have 4 dimensions \[B, H, R, C\], got \[2, 3\]"),
        (kinds(1, 1, 2, 3).float(), {}, "blocks must be bool or uint8, got float32"),
        (kinds(1, 1, 1, 1).expand(2, 2**10, 2**10, 2**10), {}, "blocks must be at most 2147483647 in number"),
        (kinds(1, 1, 2, 3), {"out": [torch.empty(n, dtype=torch.int32) for n in (3, 6, 6)]},
         r"offsets must have shape \[1, 1, 3\], got \[3\]"),
        (kinds(1, 1, 2, 3).bool(), {"out": [torch.empty(s, dtype=torch.int32) for s in ((1, 1, 3), (6,), (6,))]},
         r"masks must have shape \[0\], got \[6\]"),
    ],
)  # fmt: skip
def test_refuses(blocks: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::list_blocks: {message}"):
        list_blocks(blocks, **options)
