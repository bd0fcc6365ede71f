# SPDX-License-Identifier: Apache-2.0
"""Gradients of weight_linear against autograd in float64, and adapters that train beside a quantised model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fastdiff import PackedWeight, fp8_linear, int4_linear, pack_weight, quant, weight_linear
from fastdiff._case import Case
from fastdiff.quant.weight_linear import cases, rounded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_same_bits
from tests.quant.weight_linear_oracle import (
    ACTIVATIONS,
    check_gradients,
    decoded,
    finished,
    gradients,
    normal,
    straight_through,
)

F32, BF16, F16, E4M3 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn
LANES = next(name for name in ("avx512", "avx2", "baseline") if name in usable_isas())
KINDS = ("int8", "int8 affine", "int4", "int4 affine", "bf16", "fp8")


def packed_as(kind: str, n: int, k: int, **options: Any) -> PackedWeight:
    scheme, *affine = kind.split()
    return pack_weight(normal(n, k, seed=1) / k**0.5, scheme, symmetric=not affine, **options)


def oracle(
    x: Tensor, packed: PackedWeight, *, x_scale: Tensor | None = None, round_x: bool = False, **options: Any
) -> Tensor:
    own = factor = x.double()
    if round_x:
        q, scale = rounded(x.detach(), x_scale)
        factor = straight_through(x, (q * scale).view(x.shape))
        own = factor if x.dtype == E4M3 else own
    return finished(factor @ decoded(packed).T, own, packed.gated, **options)


def check(x: Tensor, packed: PackedWeight, **options: Any) -> None:
    """By lanes, which round no weight; that tiles of AMX round those of int4 is the forward tests' business."""
    with instruction_set(LANES):
        check_gradients(weight_linear, oracle, x, {"packed": packed, **options})


# ---- values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases(), ids=str)
def test_sample_calls(case: Case) -> None:
    check(*case.args, **case.kwargs)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str | None, gated: bool) -> None:
    x, packed = normal(2, 3, 70), packed_as("int4", 44, 70, gated=gated)
    outputs = packed.outputs
    options = {
        "bias": normal(44, seed=2), "gate": normal(2, outputs, seed=3), "residual": normal(2, 3, outputs, seed=4),
        "lowrank": (normal(3, 70, seed=5), normal(44, 3, seed=6), normal(2, 3, seed=7)),
    }  # fmt: skip
    check(x, packed, activation=activation, **options)
    check(x, packed, activation=activation)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    dtypes = st.sampled_from([F32, BF16, F16])

    def draw(*shape: int, seed: int) -> Tensor:
        t = normal(*shape, dtype=data.draw(dtypes), seed=seed)
        return t.mT.contiguous().mT if t.dim() > 1 and data.draw(st.booleans()) else t

    def vector(c: int, name: str, seed: int) -> Tensor:
        shapes = [(c,), (1, c)] if len(batch) < 2 else [(c,), (1, c), (batch[0], c)]
        return draw(*data.draw(st.sampled_from(shapes), name), seed=seed)

    batch = data.draw(st.sampled_from([(), (1,), (7,), (0,), (2, 3), (3, 0), (0, 2), (2, 3, 5)]), "rows")
    n, k = data.draw(st.integers(1, 40), "N") * 2, data.draw(st.integers(1, 150), "K")
    kind = data.draw(st.sampled_from(KINDS), "kind")
    packed = packed_as(kind, n, k, gated=data.draw(st.booleans(), "gated"))
    x, given_as = draw(*batch, k, seed=0), lambda name: data.draw(st.booleans(), name)
    options: dict[str, Any] = {"activation": data.draw(st.sampled_from(list(ACTIVATIONS)))}
    if given_as("bias"):
        options["bias"] = draw(n, seed=2)
    if given_as("gate"):
        options["gate"] = vector(packed.outputs, "gate's shape", 3)
    if given_as("residual"):
        options["residual"] = draw(*batch, packed.outputs, seed=4)
    if given_as("branch"):
        gates = (vector(3, "gates' shape", 7),) if given_as("gates") else ()
        options["lowrank"] = (draw(3, k, seed=5), draw(n, 3, seed=6), *gates)
    if kind == "fp8" and given_as("round"):
        options["round_x"] = True
    if given_as("dtype"):
        options["dtype"] = data.draw(dtypes)
    check(x, packed, **options)


@pytest.mark.parametrize("scales", [(), (1,), (2, 3, 1)])
def test_a_branch_beside_bytes(scales: tuple[int, ...]) -> None:
    """It reads what they stand for."""
    branch = (normal(3, 70, seed=5), normal(40, 3, seed=6))
    x, scale = normal(2, 3, 70).mul(9).to(E4M3), normal(*scales).abs() / 9 + 0.01
    check(x, packed_as("fp8", 40, 70), round_x=True, x_scale=scale, lowrank=branch, activation="silu")


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_several_slices(kind: str, gated: bool) -> None:
    for group in (32, 128) if kind.startswith("int4") else (None,):
        packed = packed_as(kind, 44, 2100, gated=gated, group=group)
        for first, last in ((0, 128), (128, 300), (1024, 2048), (2048, 3072)):
            want = packed.dequantize()[:, first:last]
            assert_same_bits([packed.columns(first, last).dequantize()], [want])
        check(normal(3, 2100), packed)


def test_each_tensor_alone() -> None:
    """Its gradient is the same, whatever else has one."""
    x, packed, dy = normal(2, 3, 70), packed_as("int8", 44, 70, gated=True), normal(2, 3, 22, seed=9)
    tensors = [
        x, normal(44, seed=2), normal(2, 22, seed=3), normal(2, 3, 22, seed=4), normal(3, 70, seed=5),
        normal(44, 3, seed=6), normal(2, 3, seed=7),
    ]  # fmt: skip

    def layer(x: Tensor, bias: Tensor, gate: Tensor, residual: Tensor, *branch: Tensor) -> Tensor:
        return weight_linear(x, packed, bias, gate=gate, residual=residual, lowrank=branch, activation="silu")

    leaves = [t.clone().requires_grad_() for t in tensors]
    together = torch.autograd.grad(layer(*leaves), leaves, dy)
    for n, want in enumerate(together):
        mixed = [leaf if n == m else t for m, (leaf, t) in enumerate(zip(leaves, tensors, strict=True))]
        assert_same_bits(torch.autograd.grad(layer(*mixed), leaves[n], dy), [want])


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gradients_of_gradients(activation: str) -> None:
    x, packed = normal(2, 3, 70), packed_as("int4", 44, 70, gated=True)
    options = {
        "bias": normal(44, seed=2), "gate": normal(2, 22, seed=3),
        "lowrank": (normal(3, 70, seed=5), normal(44, 3, seed=6), normal(2, 3, seed=7)),
        "activation": activation,
    }  # fmt: skip

    def slope(function: Any) -> Any:
        def of(x: Tensor, **arguments: Any) -> Tensor:
            y = function(x, packed, **arguments).square().sum()
            leaves = (x, arguments["bias"], arguments["gate"], *arguments["lowrank"])
            found = torch.autograd.grad(y, leaves, create_graph=True)
            return sum(g.square().mean() for g in found)  # type: ignore[return-value]

        return of

    one = torch.ones(())
    for got, want in zip(
        *(gradients(slope(f), x, options, one) for f in (weight_linear, oracle)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("activation", ["silu", None])
def test_nan_stays_in_its_row(activation: str | None) -> None:
    x, packed, dy = normal(4, 70), packed_as("fp8", 40, 70), normal(4, 40, seed=1)
    x[1, 3], dy[2, 5] = float("nan"), float("nan")
    for round_x in (False, True):
        options = {"packed": packed, "round_x": round_x, "activation": activation}
        (dx,) = gradients(weight_linear, x, options, dy)
        assert dx.isnan().any(1).tolist() == [False, activation is not None, True, False]


# ---- torch -----------------------------------------------------------------------------------------------------


def test_what_is_kept_for_the_backward_pass() -> None:
    x, packed = normal(5, 70).requires_grad_(), packed_as("int4", 40, 70)
    down, up = normal(3, 70), normal(40, 3).requires_grad_()
    of_weight = {t.data_ptr() for t in packed.tensors().values()}
    saved = weight_linear(x, packed, normal(40)).grad_fn.saved_tensors
    assert all(t is None or t.data_ptr() in of_weight for t in saved)
    assert any(t is x for t in weight_linear(x, packed, activation="silu").grad_fn.saved_tensors)
    assert any(t is x for t in weight_linear(x, packed, lowrank=(down, up)).grad_fn.saved_tensors)
    assert weight_linear(x.detach(), packed).grad_fn is None
    with torch.no_grad():
        plain = weight_linear(x, packed)
    assert plain.grad_fn is None
    assert_same_bits([weight_linear(x, packed).detach()], [plain])


@pytest.mark.parametrize("gated", [False, True])
def test_compiles_and_transforms(gated: bool) -> None:
    packed, x = packed_as("int4", 44, 1300, gated=gated), normal(2, 3, 1300)
    leaves = [x, normal(44, seed=2), normal(3, 1300, seed=5), normal(44, 3, seed=6), normal(2, 3, seed=7)]

    def loss(x: Tensor, bias: Tensor, *branch: Tensor) -> Tensor:
        return weight_linear(x, packed, bias, lowrank=branch, activation="gelu").square().sum()

    leaves = [t.requires_grad_() for t in leaves]
    want = torch.autograd.grad(loss(*leaves), leaves)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_same_bits(torch.autograd.grad(compiled(*leaves), leaves), want)
    torch._dynamo.reset()
    pure = torch.func.grad(loss, argnums=tuple(range(5)))(*(t.detach() for t in leaves))
    assert_same_bits(pure, want)


def test_autocast_leaves_the_sums_alone() -> None:
    x, packed, up = normal(5, 70).requires_grad_(), packed_as("int8", 40, 70), normal(40, 3).requires_grad_()
    y = weight_linear(x, packed, lowrank=(normal(3, 70), up))
    want = torch.autograd.grad(y, (x, up), y, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(torch.autograd.grad(y, (x, up), y), want)


def test_refuses() -> None:
    x, packed = normal(5, 70), packed_as("fp8", 40, 70)
    scale = torch.ones(1, requires_grad=True)
    for call in (
        lambda: weight_linear(x, packed, normal(40).requires_grad_(), out=torch.empty(5, 40)),
        lambda: weight_linear(x, packed, out=torch.empty(5, 40, requires_grad=True)),
        lambda: fp8_linear(x, packed, x_scale=scale),
        lambda: fp8_linear(x.to(E4M3).requires_grad_(), packed, x_scale=scale.detach()),
    ):
        with pytest.raises(
            NotImplementedError, match=r"^fastdiff\.weight_linear: gradients are not recorded with out="
        ):
            call()
    with pytest.raises(RuntimeError, match=r"^fastdiff::weight_linear: x must have shape \[..., 70\]"):
        weight_linear(normal(5, 71).requires_grad_(), packed)
    with pytest.raises(ValueError, match="must have the scheme int4, got fp8"):
        int4_linear(x.requires_grad_(), packed)


# ---- adapters beside a quantised model -------------------------------------------------------------------------


class Adapted(nn.Module):
    """A layer and a LoRA beside it, as users write it."""

    def __init__(self, layer: nn.Module, inputs: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(normal(4, inputs, seed=seed) / inputs**0.5)
        self.up = nn.Parameter(normal(outputs, 4, seed=seed + 1) / 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T  # type: ignore[no-any-return]


def models(scheme: str) -> tuple[nn.Module, nn.Module]:
    """An adapted network with quantised layers, and with those of their decoded weights."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).requires_grad_(False)
    quant.quantize_(mlp, quant.QuantConfig(scheme), progress=False)
    plain = copy.deepcopy(mlp)
    for model, is_plain in ((mlp, False), (plain, True)):
        for n, (inputs, outputs) in ((0, (64, 128)), (2, (128, 64))):
            layer = model[n]
            if is_plain:
                layer = nn.Linear(inputs, outputs).requires_grad_(False)
                layer.weight.copy_(model[n].packed.dequantize())
                layer.bias.copy_(model[n].bias)
            model[n] = Adapted(layer, inputs, outputs, seed=n)
    return mlp, plain


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def loss_of(model: nn.Module) -> Tensor:
    return (model(normal(16, 64)) - normal(16, 64, seed=1)).square().mean()


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("scheme", ["int4", "int8_weight", "bf16", "fp8_weight"])
def test_adapters_have_the_gradients_of_the_decoded_model(scheme: str) -> None:
    quantised, plain = models(scheme)
    want = torch.autograd.grad(loss_of(plain), trained(plain))
    got = torch.autograd.grad(loss_of(quantised), trained(quantised))
    assert len(got) == 4
    assert max(map(relative, got, want)) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.autograd.grad(loss_of(quantised), trained(quantised))
    assert {g.dtype for g in half} == {F32}
    assert max(map(relative, half, want)) < 0.03


@pytest.mark.parametrize("scheme", ["int4", "fp8"])
@pytest.mark.parametrize("compiled", [False, True])
def test_adapters_train(compiled: bool, scheme: str) -> None:
    model, _ = models(scheme)
    run = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    frozen = {name: t.clone() for name, t in model.named_buffers()}
    optimizer = torch.optim.Adam(trained(model), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(run)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    torch._dynamo.reset()
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(t, frozen[name]) for name, t in model.named_buffers())


def test_adapters_train_inside_the_layer() -> None:
    """The branch of the operator, and the same factors beside it."""
    packed, x = packed_as("int4", 40, 64), normal(16, 64)
    down, up = normal(4, 64, seed=2).requires_grad_(), normal(40, 4, seed=3).requires_grad_()
    inside = weight_linear(x, packed, lowrank=(down, up))
    beside = weight_linear(x, packed) + x @ down.T @ up.T
    found = [torch.autograd.grad(y.square().sum(), (down, up)) for y in (inside, beside)]
    assert max(map(relative, *found)) < 1e-5


def test_a_weight_that_changes_meanwhile_is_an_error() -> None:
    packed = packed_as("fp8", 40, 70)
    x, scale = normal(4, 70).requires_grad_(), torch.tensor(0.01)
    y = weight_linear(x, packed, round_x=True, x_scale=scale, activation="silu")
    scale.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = weight_linear(x, packed)
    packed.scale.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_columns_begin_at_multiples() -> None:
    with pytest.raises(ValueError, match="first must be a multiple of 128, got 64"):
        packed_as("int4", 40, 300).columns(64, 200)
