# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about quantize_static: torch's and PTQ4DM's forms, tables, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from fastdiff import _C
from fastdiff.quant import dequantize, fake_quant, quantize_static
from fastdiff.quant.quantize_static import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, n, k = draw(1, 3, "B"), draw(1, 6, "N"), draw(1, 300, "K")
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    x = normal(b, n, k, dtype=data.draw(dtypes))
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    arguments: list[Tensor | None] = [torch.tensor(0.02), None, None]
    g = torch.Generator().manual_seed(1)
    if data.draw(st.booleans(), "table"):
        arguments = [
            normal(7).abs() / 30 + 1e-3,
            None,
            torch.randint(7, (data.draw(st.sampled_from([1, b])),), generator=g),
        ]
    if data.draw(st.booleans(), "zero point"):
        arguments[1] = torch.randint(-9, 9, arguments[0].shape, generator=g, dtype=torch.int32)
    options: dict[str, Any] = {}
    if data.draw(st.booleans(), "norm"):
        options |= {"eps": 1e-6, "rms": data.draw(st.booleans(), "rms")}
    for seed, name in enumerate(("scale_by", "shift")):
        shape = data.draw(st.sampled_from([None, (k,), (b, k), (1, n, k)]), name)
        if shape is not None:
            options[name] = normal(*shape, dtype=data.draw(dtypes), seed=seed + 2)
    got, want = quantize_static(x, *arguments, **options), reference(x, *arguments, **options)
    if options:  # y is rounded to float32 elsewhere: a number near a half may go the other way
        assert int((got.int() - want.int()).abs().max()) <= 1
        assert int((got != want).sum()) <= 1 + x.numel() // 1000
    else:
        assert_same_bits([got], [want])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("zero", "low", "high"), [(0, -127, 127), (3, -128, 127), (5, 0, 127), (-1, -8, 7)])
def test_is_torch_s_fake_quantisation(dtype: torch.dtype, zero: int, low: int, high: int) -> None:
    x, scale = normal(40, 333, dtype=dtype) * 2, torch.tensor(0.0173)
    options = {"quant_min": low, "quant_max": high}
    q = quantize_static(x, scale, int32(zero), **options)
    want = torch.fake_quantize_per_tensor_affine(x, float(scale), zero, low, high)
    assert_same_bits([dequantize(q, scale, int32(zero), dtype=dtype)], [want])
    assert_same_bits(
        [dequantize(q, scale, int32(zero), dtype=dtype)], [fake_quant(x, scale, int32(zero), **options)]
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_unsigned_forms_are_this_one_shifted() -> None:
    """PTQ4DM's, which divides, and torch's quint8; the numbers are no halves of the scale."""
    x, scale = normal(64, 100), 0.0171
    for zero in (128, 100):
        q = quantize_static(x, torch.tensor(scale), int32(zero - 128)).int() + 128
        ptq4dm = ((x / torch.tensor(scale)).round() + zero).clamp(0, 255).int()
        assert int((q != ptq4dm).sum()) <= 1
        assert torch.equal(q, torch.quantize_per_tensor(x, scale, zero, torch.quint8).int_repr().int())


def test_halves_go_to_even_before_the_zero_point() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])
    assert quantize_static(x, torch.tensor(1.0), int32(1)).tolist() == [1, 3, 3, 1, -1]


def test_nan_is_the_zero_point() -> None:
    x = torch.tensor([[float("nan"), float("inf"), float("-inf"), 1.0]])
    assert quantize_static(x, torch.tensor(1.0), int32(-5)).tolist() == [[-5, 127, -128, -4]]
    assert quantize_static(x, torch.tensor(1.0)).tolist() == [[0, 127, -127, 1]]
    assert quantize_static(x, torch.tensor(1.0), eps=1e-6).tolist() == [[0, 0, 0, 0]]


def test_another_step_compiles_nothing() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, s, t: quantize_static(x, s, step=t), backend=counter, fullgraph=True)
    x, table = normal(3, 20), normal(10).abs() / 20
    for step in range(10):
        assert_same_bits([compiled(x, table, torch.tensor([step]))], [quantize_static(x, table[step])])
    assert counter.frame_count == 1


@pytest.mark.parametrize("options", [{}, {"eps": 1e-6}], ids=["as it is", "normed"])
def test_many_rows_are_shared_among_threads(options: dict[str, Any]) -> None:
    x, table, step = normal(3, 300, 77), normal(5).abs() / 20, torch.tensor([4, 0, 2])
    want = [quantize_static(x[b], table[s], **options) for b, s in enumerate(step)]
    assert_same_bits([quantize_static(x, table, None, step, **options)], [torch.stack(want)])


def test_strides_beyond_32_bits() -> None:
    """The memory between the rows is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 100, dtype=BF16)
    x = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(normal(2, 3, 8, dtype=BF16))
    scale = torch.tensor(0.01)
    assert_same_bits([quantize_static(x, scale)], [quantize_static(x.contiguous(), scale)])
    assert_same_bits([quantize_static(x, scale, eps=0.1)], [quantize_static(x.contiguous(), scale, eps=0.1)])


def test_numpy() -> None:
    x, scale, shift = normal(2, 7, 24), np.array([0.02], np.float32), normal(2, 24, seed=1)
    out = np.empty((2, 7, 24), np.int8)
    _C.quantize_static(x.numpy(), scale, out, shift=shift.numpy())
    assert_same_bits([torch.from_numpy(out)], [quantize_static(x, torch.from_numpy(scale), shift=shift)])


X, S = normal(2, 3, 8), torch.tensor(0.1)


@pytest.mark.parametrize(
    ("x", "scale", "options", "message"),
    [
        (X.int(), S, {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (X, normal(8), {}, r"scale must have one element, got shape \[8\]"),
        (X, S, {"zero_point": torch.tensor(1)}, "zero_point must be int32, got int64"),
        (X, normal(5), {"step": torch.tensor(5)}, "step must be within 0 and 4, got 5"),
        (X, normal(5), {"step": torch.tensor([0, 1, 2])}, r"step must have one element or one for each of 2.*\[3\]"),
        (X, S, {"quant_max": 128}, "quant_min and quant_max must be within -128 and 127"),
        (X, S, {"quant_min": -129}, "quant_min and quant_max must be within -128 and 127"),
        (X, S, {"rms": True, "shift": normal(8)}, "rms needs eps"),
        (X, S, {"eps": 0.1, "weight": normal(9)}, r"weight must have shape \[8\], got \[9\]"),
        (X, S, {"out": normal(2, 3, 8)}, "out must be int8, got float32"),
        (X, S, {"out": torch.zeros(2, 8, dtype=torch.int8)}, r"out must have shape \[2, 3, 8\], got \[2, 8\]"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, scale: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::quantize_static: {message}"):
        quantize_static(x, scale, **options)
