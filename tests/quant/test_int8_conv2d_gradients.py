# SPDX-License-Identifier: Apache-2.0
"""Gradients of int8_conv2d: those of the convolution of floats, at the numbers that are multiplied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff import PackedWeight, int8_conv2d, pack_weight, quant
from fastdiff._case import Case
from fastdiff.quant.int8_conv2d import cases
from fastdiff.quant.int8_linear import quantized
from torch import Tensor, nn

from tests.kit.compare import assert_same_bits
from tests.quant.weight_linear_oracle import check_gradients, decoded, finished, normal, straight_through


def oracle(
    x: Tensor,
    packed: PackedWeight,
    *,
    residual: Tensor | None = None,
    kernel: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    x_scale: Tensor | None = None,
    x_zero_point: Tensor | None = None,
    bits: int = 8,
    **options: Any,
) -> Tensor:
    q, scale, zero = quantized(x.detach().flatten(1), x_scale, x_zero_point, bits)
    numbers = ((q.double() - zero.double()) * scale.double()).view(x.shape)
    size = packed.kernel or ((kernel, kernel) if isinstance(kernel, int) else kernel)
    w = decoded(packed).view(packed.rows, *size, x.shape[1]).permute(0, 3, 1, 2)
    h = nn.functional.conv2d(straight_through(x, numbers), w, None, stride, padding, dilation)
    last = h.permute(0, 2, 3, 1)
    rest = None if residual is None else residual.permute(0, 2, 3, 1)
    return finished(last, last, packed.gated, residual=rest, **options).permute(0, 3, 1, 2)


TRAINABLE = [case for case in cases() if case.args[0].is_floating_point() or "bias" in case.kwargs]


@pytest.mark.parametrize("case", TRAINABLE, ids=str)
def test_sample_calls(case: Case) -> None:
    check_gradients(int8_conv2d, oracle, case.args[0], case.kwargs)


@pytest.mark.parametrize("gated", [False, True])
def test_everything_at_once(gated: bool) -> None:
    packed = pack_weight(normal(44, 5, 3, 2, seed=1) + 0.3, symmetric=False, gated=gated)
    residual = normal(2, packed.outputs, 3, 9, seed=4)
    options = {
        "packed": packed, "bias": normal(44, seed=2), "gate": normal(2, packed.outputs, seed=3), "stride": (2, 1),
        "padding": (1, 2), "dilation": (1, 3), "residual": residual, "activation": "silu",
    }  # fmt: skip
    check_gradients(int8_conv2d, oracle, normal(2, 5, 6, 8), options)


def test_compiles() -> None:
    packed = pack_weight(normal(20, 5, 3, 3))
    x, bias = normal(2, 5, 6, 7).requires_grad_(), normal(20).requires_grad_()

    def loss(x: Tensor, bias: Tensor) -> Tensor:
        return int8_conv2d(x, packed, bias, padding=1, activation="silu").square().sum()

    want = torch.autograd.grad(loss(x, bias), (x, bias))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_same_bits(torch.autograd.grad(compiled(x, bias), (x, bias)), want)
    torch._dynamo.reset()


def test_what_stands_before_quantised_layers_trains() -> None:
    """Through convolutions and linear layers, with the gradients of the network of decoded weights, nearly."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 16, 3)
    rest = nn.Sequential(nn.Conv2d(16, 32, 3), nn.SiLU(), nn.Flatten(), nn.Linear(32 * 4 * 4, 8))
    x = normal(4, 3, 8, 8)
    want = torch.autograd.grad(rest(first(x)).square().mean(), first.weight)[0]
    quant.quantize_(rest.requires_grad_(False), progress=False)
    got = torch.autograd.grad(rest(first(x)).square().mean(), first.weight)[0]
    assert float((got - want).norm() / want.norm()) < 0.05


def test_refuses() -> None:
    x, packed = normal(1, 5, 4, 4), pack_weight(normal(20, 5, 3, 3))
    scale = torch.ones(1, requires_grad=True)
    for call in (
        lambda: int8_conv2d(x.clone().requires_grad_(), packed, out=torch.empty(1, 20, 2, 2)),
        lambda: int8_conv2d(x, packed, x_scale=scale),
    ):
        with pytest.raises(
            NotImplementedError, match=r"^fastdiff\.int8_conv2d: gradients are not recorded with out="
        ):
            call()


def test_its_result_may_be_changed_in_place() -> None:
    packed, x = pack_weight(normal(20, 5, 3, 3)), normal(2, 5, 6, 7).requires_grad_()
    y = int8_conv2d(x, packed)
    (want,) = torch.autograd.grad(y, x, (y > 0).float())
    (got,) = torch.autograd.grad(nn.functional.relu_(int8_conv2d(x, packed)).sum(), x)
    assert_same_bits([got], [want])


def test_a_residual_of_another_rank_is_refused_as_ever() -> None:
    packed, x = pack_weight(normal(20, 5, 3, 3)), normal(2, 5, 6, 7)
    for wanted in (False, True):
        with pytest.raises(RuntimeError, match="residual must have shape"):
            int8_conv2d(x.requires_grad_(wanted), packed, residual=normal(20))
