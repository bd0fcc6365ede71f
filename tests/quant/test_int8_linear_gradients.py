# SPDX-License-Identifier: Apache-2.0
"""Gradients of int8_linear: those of the layer of floats, at the numbers that are multiplied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff import PackedWeight, int8_linear, pack_weight
from fastdiff._case import Case
from fastdiff.quant.int8_linear import cases, quantized
from torch import Tensor

from tests.kit.compare import assert_same_bits
from tests.quant.weight_linear_oracle import check_gradients, decoded, finished, normal, straight_through


def oracle(
    x: Tensor,
    packed: PackedWeight,
    *,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    **options: Any,
) -> Tensor:
    q, scale, zero = quantized(x.detach(), x_scale, x_zero_point, bits)
    numbers = (q.double().reshape(-1, packed.inner) - zero.double()) * scale.double()
    factor = straight_through(x, numbers.view(x.shape))
    own = x.double() if x.is_floating_point() else factor
    return finished(factor @ decoded(packed).T, own, packed.gated, **options)


# Of bytes x has none, and without a bias there is nothing else.
TRAINABLE = [case for case in cases() if case.args[0].is_floating_point() or "bias" in case.kwargs]


@pytest.mark.parametrize("case", TRAINABLE, ids=str)
def test_sample_calls(case: Case) -> None:
    check_gradients(int8_linear, oracle, case.args[0], case.kwargs)


@pytest.mark.parametrize("bits", [7, 8])
def test_everything_at_once(bits: int) -> None:
    options = {
        "packed": pack_weight(normal(44, 1300, seed=1) + 0.1, symmetric=False, gated=True), "bits": bits,
        "bias": normal(44, seed=2), "gate": normal(2, 22, seed=3), "residual": normal(2, 3, 22, seed=4),
        "lowrank": (normal(3, 1300, seed=5), normal(44, 3, seed=6), normal(2, 3, seed=7)), "activation": "gelu",
    }  # fmt: skip
    check_gradients(int8_linear, oracle, normal(2, 3, 1300) / 36, options)


def test_a_branch_beside_bytes() -> None:
    """It reads what they stand for."""
    q = torch.randint(-128, 128, (2, 3, 70), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    options = {
        "packed": pack_weight(normal(40, 70, seed=1)), "x_scale": normal(2, 3, 1).abs(),
        "x_zero_point": torch.arange(6, dtype=torch.int32).view(2, 3, 1),
        "lowrank": (normal(3, 70, seed=5) / 99, normal(40, 3, seed=6)),
    }  # fmt: skip
    check_gradients(int8_linear, oracle, q, options)


def test_compiles() -> None:
    packed, x, bias = pack_weight(normal(40, 70)), normal(5, 70).requires_grad_(), normal(40).requires_grad_()

    def loss(x: Tensor, bias: Tensor) -> Tensor:
        return int8_linear(x, packed, bias, activation="silu").square().sum()

    want = torch.autograd.grad(loss(x, bias), (x, bias))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_same_bits(torch.autograd.grad(compiled(x, bias), (x, bias)), want)
    torch._dynamo.reset()


def test_refuses() -> None:
    x, packed, scale = normal(5, 70), pack_weight(normal(40, 70)), torch.ones(1, requires_grad=True)
    for call in (
        lambda: int8_linear(x, packed, normal(40).requires_grad_(), out=torch.empty(5, 40)),
        lambda: int8_linear(x, packed, x_scale=scale),
    ):
        with pytest.raises(
            NotImplementedError, match=r"^fastdiff\.int8_linear: gradients are not recorded with out="
        ):
            call()
