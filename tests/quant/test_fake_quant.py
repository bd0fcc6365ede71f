# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about fake_quant: torch's own, bit for bit, its gradients, tables, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from fastdiff import _C
from fastdiff.quant import fake_quant
from fastdiff.quant.fake_quant import reference
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

    b, n, c = draw(1, 3, "B"), draw(1, 6, "N"), draw(1, 300, "C")
    x = normal(b, n, c, dtype=data.draw(st.sampled_from([F32, BF16, F16, F64])))
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    options: dict[str, Any] = {}
    if data.draw(st.booleans(), "table"):
        shape: tuple[int, ...] = (7,)
        g = torch.Generator().manual_seed(1)
        options["step"] = torch.randint(7, (data.draw(st.sampled_from([1, b])),), generator=g)
    else:
        shape = data.draw(st.sampled_from([(), (1,), (c,), (n, 1), (b, 1, c), (b, n, c)]), "scale")
    scale = normal(*shape, seed=2).abs() / 30 + 1e-3
    zero = None
    if data.draw(st.booleans(), "zero point"):
        zero = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    assert_same_bits([fake_quant(x, scale, zero, **options)], [reference(x, scale, zero, **options)])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize(("zero", "low", "high"), [(0, -127, 127), (3, -128, 127), (128, 0, 255), (0, 0, 15)])
def test_is_torch_s_own(dtype: torch.dtype, zero: int, low: int, high: int) -> None:
    x, scale = normal(3, 40, 333, dtype=dtype) * 2, torch.tensor(0.0173)
    options = {"quant_min": low, "quant_max": high}
    far = (
        x.clone()
    )  # torch's own by channels converts what is far outside to an integer, which is not defined
    far[0, 0, :4] = torch.tensor([float("inf"), float("-inf"), -0.0, 6e4])
    want = torch.fake_quantize_per_tensor_affine(far, float(scale), zero, low, high)
    assert_same_bits([fake_quant(far, scale, int32(zero), **options)], [want])
    scales, zeros = normal(40, seed=1).abs() / 30 + 0.001, torch.full((40,), zero, dtype=torch.int32)
    want = torch.fake_quantize_per_channel_affine(x, scales, zeros, 1, low, high)
    assert_same_bits([fake_quant(x, scales[:, None], zeros[:, None], **options)], [want])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_gradients_are_torch_s_own(dtype: torch.dtype) -> None:
    dy, scale = normal(4, 77, dtype=dtype, seed=1), 0.011
    grads = []
    for function in (
        lambda x: fake_quant(x, torch.tensor(scale), int32(5), quant_min=-128),
        lambda x: torch.fake_quantize_per_tensor_affine(x, scale, 5, -128, 127),
    ):
        x = normal(4, 77, dtype=dtype).requires_grad_()
        function(x).backward(dy)
        grads.append(x.grad)
    assert 0 < int((grads[0] == 0).sum()) < dy.numel()
    assert torch.equal(*grads)  # but for the sign of a zero: torch multiplies with the mask


def test_gradients_of_gradients_are_torch_s_own() -> None:
    weight, found = normal(4, 30, seed=2), []
    for function in (
        lambda x: fake_quant(x, torch.tensor(0.011)),
        lambda x: torch.fake_quantize_per_tensor_affine(x, 0.011, 0, -127, 127),
    ):
        x = normal(4, 30).requires_grad_()
        (dx,) = torch.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad((dx * weight).sum(), x)[0])
    assert torch.equal(*found)
    assert 0 < int((found[0] == 0).sum()) < weight.numel()


def test_a_network_trains_through_it() -> None:
    weight = normal(4, 8).requires_grad_()
    scale = weight.detach().abs().amax(1, keepdim=True) / 127
    (normal(3, 8, seed=1) @ fake_quant(weight, scale).T).sum().backward()
    torch.testing.assert_close(weight.grad, normal(3, 8, seed=1).sum(0).expand(4, 8))


def test_nan_stays() -> None:
    y = fake_quant(torch.tensor([float("nan"), 1.0]), torch.tensor(0.5), int32(2))
    assert y.isnan().tolist() == [True, False]


def test_another_step_compiles_nothing() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, s, t: fake_quant(x, s, step=t), backend=counter, fullgraph=True)
    x, table = normal(3, 20), normal(10).abs() / 20
    for step in range(10):
        assert_same_bits([compiled(x, table, torch.tensor([step]))], [fake_quant(x, table[step])])
    assert counter.frame_count == 1


def test_many_elements_are_shared_among_threads() -> None:
    x, scale = normal(9, 5000, 3), normal(9, 1, 3).abs() / 30
    assert_same_bits([fake_quant(x, scale)], [reference(x, scale)])


def test_strides_beyond_32_bits() -> None:
    """The memory between the rows is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 100, dtype=BF16)
    x = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(normal(2, 3, 8, dtype=BF16))
    scale = torch.tensor(0.01)
    assert_same_bits([fake_quant(x, scale)], [fake_quant(x.contiguous(), scale)])


def test_numpy() -> None:
    x, scale = normal(2, 7, 24), np.array([0.02], np.float32)
    out = np.empty((2, 7, 24), np.float32)
    _C.fake_quant(x.numpy(), scale, out)
    assert_same_bits([torch.from_numpy(out)], [fake_quant(x, torch.from_numpy(scale))])


X, S = normal(2, 3, 8), torch.tensor(0.1)


@pytest.mark.parametrize(
    ("x", "scale", "options", "message"),
    [
        (X.int(), S, {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        (X, S.int(), {}, "scale must be float32.*got int32"),
        (X, normal(7), {}, r"scale must broadcast to \[2, 3, 8\], got \[7\]"),
        (X, normal(1, 2, 3, 8), {}, r"scale must broadcast to \[2, 3, 8\], got \[1, 2, 3, 8\]"),
        (X, S, {"zero_point": torch.tensor(1)}, "zero_point must be int32, got int64"),
        (X, S, {"zero_point": torch.zeros(3, dtype=torch.int32)}, r"zero_point must broadcast.*got \[3\]"),
        (X, S, {"step": torch.tensor(0)}, r"scale must have shape \[T\], at least one \(a step is given\), got \[\]"),
        (X, normal(5), {"step": torch.tensor(5)}, "step must be within 0 and 4, got 5"),
        (X, normal(5), {"step": torch.tensor([0, -1])}, "step must be within 0 and 4, got -1"),
        (X, normal(5), {"step": torch.tensor([0, 1, 2])}, r"step must have one element or one for each of 2.*\[3\]"),
        (X, normal(5), {"step": torch.tensor(0).int()}, "step must be int64, got int32"),
        (X, normal(5), {"step": torch.tensor(0), "zero_point": int32(1, 2)}, r"zero_point must have shape \[5\]"),
        (X, S, {"quant_min": 3, "quant_max": 3}, "quant_min and quant_max must be within .* got 3 and 3"),
        (X, S, {"quant_max": 2**23}, "quant_min and quant_max must be within -4194304 and 4194304"),
        (X, S, {"out": normal(2, 3, 9)}, r"out must have shape \[2, 3, 8\], got \[2, 3, 9\]"),
        (X, S, {"out": normal(2, 3, 8).half()}, "out must be float32, got float16"),
        (X, X[0, 0, :1], {"out": X}, "out must not share memory with scale"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, scale: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::fake_quant: {message}"):
        fake_quant(x, scale, **options)


def test_refuses_gradients_of_others() -> None:
    with pytest.raises(NotImplementedError, match=r"for x alone and not with out="):
        fake_quant(X, S.clone().requires_grad_())
    with pytest.raises(NotImplementedError, match=r"for x alone and not with out="):
        fake_quant(X.clone().requires_grad_(), S, out=torch.empty_like(X))
