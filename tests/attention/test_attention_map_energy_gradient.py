# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about attention_map_energy_gradient: it is the gradient, closely; its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.attention import attention_map_energy, attention_map_energy_gradient
from fastdiff.attention.attention_map_energy_gradient import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.test_attention_map_energy import drawn_maps, maps, normal
from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits

NAMES = ("energy", "dq", "dk")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    tensors, options = drawn_maps(data)
    got = attention_map_energy_gradient(*tensors, **options)
    want = reference(*tensors, **options)
    limits = tolerance(*tensors, **options)
    for name, g, w in zip(NAMES, got, want, strict=True):
        assert_close(g, w, **limits, what=name)


@pytest.mark.parametrize(("queries", "keys"), [(600, 90), (1100, 130), (50, 1100), (40, 5000), (33, 9000)])
def test_shares_and_blocks_of_any_size(queries: int, keys: int) -> None:
    """Heads of many queries are shared out; with many keys fewer queries are done at a time."""
    tensors = maps(1, 2, queries, 24, keys=keys)
    want = attention_map_energy_gradient(*tensors)
    assert_same_bits(want[:1], [attention_map_energy(*tensors)], "energy")
    for name, g, w in zip(NAMES, want, reference(*tensors), strict=True):
        assert float((g - w).abs().max() / w.abs().max()) <= 2e-6, name
    for isa in usable_isas():
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with instruction_set(isa):
                assert_same_bits(attention_map_energy_gradient(*tensors), want, f"{isa}, {threads} threads")


def test_is_the_gradient_of_guidance() -> None:
    """A step against it takes the maps nearer to their reference."""
    q, k, *references = maps(2, 4, 64, 32, by=0.3)
    energy, dq, dk = attention_map_energy_gradient(q, k, *references)
    length = energy / (dq.square().sum((1, 2, 3)) + dk.square().sum((1, 2, 3)))
    step = 0.1 * length[:, None, None, None]
    after = attention_map_energy(q - step * dq, k - step * dk, *references)
    torch.testing.assert_close(after, 0.9 * energy, rtol=0.05, atol=0)


def test_numpy() -> None:
    tensors = maps(2, 2, 9, 8, keys=12)
    want = attention_map_energy_gradient(*tensors, scale=0.5)
    out = [np.empty(t.shape, np.float32) for t in want]
    _C.attention_map_energy_gradient(*(t.numpy() for t in tensors), out, scale=0.5)
    assert_same_bits([torch.from_numpy(t) for t in out], want)
    with pytest.raises(ValueError, match="out must be three arrays, energy, dq and dk, got 2"):
        _C.attention_map_energy_gradient(*(t.numpy() for t in tensors), out[:2])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"energy": normal(2)}, r"energy must have shape \[1\] like q's samples, got \[2\]"),
        ({"dq": normal(1, 2, 5, 16)}, r"dq must have shape \[1, 2, 5, 8\] like a gradient of q, got \[1, 2, 5, 16\]"),
        ({"dk": normal(1, 2, 5, 8)}, r"dk must have shape \[1, 2, 7, 8\] like a gradient of k, got \[1, 2, 5, 8\]"),
        ({"dk": normal(1, 2, 7, 8).half()}, "dk must be float32 like a gradient of k, got float16"),
        ({"dq": normal(1, 1, 1, 1).expand(1, 2, 5, 8)}, "dq must not have elements that share memory"),
    ],
)  # fmt: skip
def test_refuses(out: dict[str, Any], message: str) -> None:
    given_ = {"energy": normal(1), "dq": normal(1, 2, 5, 8), "dk": normal(1, 2, 7, 8)} | out
    with pytest.raises(RuntimeError, match=f"^fastdiff::attention_map_energy_gradient: {message}"):
        attention_map_energy_gradient(*maps(1, 2, 5, 8, keys=7), out=list(given_.values()))
