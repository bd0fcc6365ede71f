# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about dequantize: torch's own, the way back, every int8, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.quant import dequantize, quantize_per_token
from fastdiff.quant.dequantize import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.compare import assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def bytes_of(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, shape, generator=g, dtype=torch.int8)


def scales(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) / 40


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, n, c = draw(1, 3, "B"), draw(1, 6, "N"), draw(1, 300, "C")
    q = bytes_of(b, n, c)
    if data.draw(st.booleans(), "channels first"):
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
    options: dict[str, Any] = {"dtype": data.draw(st.sampled_from([F32, F64, BF16, F16]))}
    shape = data.draw(st.sampled_from([(), (1,), (c,), (n, 1), (b, 1, c), (b, n, c)]), "scale")
    zero = bytes_of(*shape).int() if data.draw(st.booleans(), "zero point") else None
    got, want = dequantize(q, scales(*shape), zero, **options), reference(q, scales(*shape), zero, **options)
    if options["dtype"] == F32 or options["dtype"] == F64:
        assert_same_bits([got], [want])
    else:  # the product is float32 before it is rounded
        assert_same_bits([got], [reference(q, scales(*shape), zero).to(options["dtype"])])


def test_every_number_of_int8_is_torch_s() -> None:
    q, scale = torch.arange(-128, 128).to(torch.int8), 0.0371
    other = torch._make_per_tensor_quantized_tensor(q, scale, 7)
    zero = torch.tensor([7], dtype=torch.int32)
    assert_same_bits([dequantize(q, torch.tensor(scale), zero)], [other.dequantize()])


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
def test_is_the_way_back(dtype: torch.dtype) -> None:
    x = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)
    q, scale = quantize_per_token(x)
    error = (dequantize(q, scale, dtype=dtype).double() - x.double()).abs() / scale
    assert float(error.max()) <= 0.5 + 127 * torch.finfo(dtype).eps


def test_many_elements_are_shared_among_threads() -> None:
    q, scale = bytes_of(9, 5000, 3), scales(9, 1, 3)
    assert_same_bits([dequantize(q, scale)], [reference(q, scale)])


def test_the_dtype_of_out_is_that_of_the_result() -> None:
    q, scale = bytes_of(4, 30), scales(4, 1)
    out = torch.empty(4, 30, dtype=BF16)
    assert dequantize(q, scale, out=out) is out
    assert_same_bits([out], [dequantize(q, scale, dtype=BF16)])


def test_strides_beyond_32_bits() -> None:
    """The memory between the rows is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 100, dtype=torch.int8)
    q = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(bytes_of(2, 3, 8))
    assert_same_bits([dequantize(q, scales(8))], [dequantize(q.contiguous(), scales(8))])


def test_numpy() -> None:
    q, scale = bytes_of(2, 7, 24), scales(7, 1)
    out = np.empty((2, 7, 24), np.float32)
    _C.dequantize(q.numpy(), scale.numpy(), out)
    assert_same_bits([torch.from_numpy(out)], [dequantize(q, scale)])


Q, S = bytes_of(2, 3, 8), torch.tensor(0.1)


@pytest.mark.parametrize(
    ("q", "scale", "options", "message"),
    [
        (Q.int(), S, {}, "q must be int8, got int32"),
        (Q, S.long(), {}, "scale must be float32.*got int64"),
        (Q, scales(7), {}, r"scale must broadcast to \[2, 3, 8\], got \[7\]"),
        (Q, S, {"zero_point": torch.tensor(1.0)}, "zero_point must be int32, got float32"),
        (Q, S, {"dtype": torch.int32}, "dtype must be float32, float16, bfloat16 or float64, got int32"),
        (Q, scales(5), {"step": torch.tensor(7)}, "step must be within 0 and 4, got 7"),
        (Q, S, {"dtype": F32, "out": torch.empty(2, 3, 8, dtype=F64)}, "out must be float32, got float64"),
        (Q, S, {"out": torch.empty(2, 8)}, r"out must have shape \[2, 3, 8\], got \[2, 8\]"),
    ],
)  # fmt: skip
def test_refuses(q: Tensor, scale: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::dequantize: {message}"):
        dequantize(q, scale, **options)


def test_refuses_to_record_gradients() -> None:
    with pytest.raises(NotImplementedError, match=r"fastdiff\.dequantize: gradients are not recorded"):
        dequantize(Q, S.clone().requires_grad_())
