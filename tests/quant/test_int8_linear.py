# SPDX-License-Identifier: Apache-2.0
"""int8_linear: exact sums for every instruction set, zero points, what follows the sums, and refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastdiff import LowRank, PackedWeight, int8_linear, pack_weight
from fastdiff.quant.int8_linear import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits


@pytest.fixture(params=usable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with instruction_set(request.param):
        yield request.param


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-128, 128, shape, generator=generator(seed)).to(torch.int8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def packed_as_it_is(w: Tensor, zero_point: Tensor | None = None) -> PackedWeight:
    """Integers with the scale 1."""
    return pack_weight(w, scale=torch.ones(w.shape[0]), zero_point=zero_point)


def exact(q: Tensor, w: Tensor, zx: Tensor | int = 0, zw: Tensor | int = 0) -> Tensor:
    """The sums as int64, and as the nearest float32."""
    return ((q.long() - zx) @ (w.long() - zw).T).float()


# ---- sums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 5, 7), (17, 33, 65), (40, 16, 64), (33, 50, 1152)])
def test_sums_are_those_of_integers(isa: str, m: int, n: int, k: int) -> None:
    q, w = integers(m, k), integers(n, k, seed=1)
    y = int8_linear(q, packed_as_it_is(w), x_scale=torch.ones(1))
    assert_same_bits([y], [exact(q, w)])


def test_sums_agree_with_torch_int_mm() -> None:
    q, w = integers(32, 64), integers(48, 64, seed=1)
    y = int8_linear(q, packed_as_it_is(w), x_scale=torch.ones(1))
    assert torch.equal(y.int(), torch._int_mm(q, w.T.contiguous()))


@pytest.mark.parametrize("x", [-128, 127])
@pytest.mark.parametrize("w", [-128, 127])
def test_nothing_saturates(isa: str, x: int, w: int) -> None:
    q, weight = torch.full((5, 300), x, dtype=torch.int8), torch.full((20, 300), w, dtype=torch.int8)
    y = int8_linear(q, packed_as_it_is(weight), x_scale=torch.ones(1))
    assert_same_bits([y], [torch.full((5, 20), float(300 * x * w))])


@pytest.mark.parametrize("sign", [-1, 1])
def test_nothing_saturates_with_seven_bits(isa: str, sign: int) -> None:
    x = torch.full((3, 300), 127.0)
    w = packed_as_it_is(torch.full((20, 300), 127 * sign, dtype=torch.int8))
    y = int8_linear(x, w, x_scale=torch.ones(1), bits=7)
    assert_same_bits([y], [torch.full((3, 20), float(300 * 127 * 127 * sign))])


def test_zero_points_are_exact_up_to_the_longest_rows(isa: str) -> None:
    k = 33_000
    q, w = integers(3, k), integers(18, k, seed=1)
    zx = torch.tensor([-128, 127, 5], dtype=torch.int32)
    zw = torch.randint(-128, 128, (18,), generator=generator(2))
    y = int8_linear(q, packed_as_it_is(w, zw), x_scale=torch.ones(3), x_zero_point=zx)
    assert_same_bits([y], [exact(q, w, zx[:, None], zw[:, None])])


def test_the_largest_sum_does_not_overflow(isa: str) -> None:
    k = 33_024
    q, w = torch.full((1, k), 127, dtype=torch.int8), torch.full((16, k), 127, dtype=torch.int8)
    zero = torch.full((16,), -128)
    y = int8_linear(
        q,
        packed_as_it_is(w, zero),
        x_scale=torch.ones(1),
        x_zero_point=torch.tensor([-128], dtype=torch.int32),
    )
    assert_same_bits([y], [torch.full((1, 16), float(k * 255 * 255))])


@pytest.mark.parametrize("m", range(1, 36))
def test_any_number_of_rows(isa: str, m: int) -> None:
    q, w = integers(m, 70), integers(37, 70, seed=1)
    assert_same_bits([int8_linear(q, packed_as_it_is(w), x_scale=torch.ones(1))], [exact(q, w)])


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 200), bits=st.sampled_from([7, 8]),
       symmetric=st.booleans(), seed=st.integers(0, 9))  # fmt: skip
def test_any_shape(m: int, n: int, k: int, bits: int, symmetric: bool, seed: int) -> None:
    x, w = normal(m, k, seed=seed), normal(n, k, seed=seed + 1) + 0.3
    packed = pack_weight(w, symmetric=symmetric)
    assert_close(
        int8_linear(x, packed, bits=bits), reference(x, packed, bits=bits), scale=k * 20, what=f"{m} {n} {k}"
    )


# ---- quantisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "error"), [(8, 0.013), (7, 0.02)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_near_the_layer_it_stands_for(bits: int, error: float, dtype: torch.dtype) -> None:
    x, w, b = normal(64, 1152).to(dtype), normal(256, 1152, seed=1) / 34, normal(256, seed=2)
    want = F.linear(x.double(), w.double(), b.double())
    got = int8_linear(x, pack_weight(w), b, bits=bits).double()
    assert (got - want).norm() < error * want.norm()


def test_a_row_has_a_range_of_its_own() -> None:
    """One row's outlier does not cost another its precision, nor do rows of zeros divide by zero."""
    x, packed = normal(4, 64), pack_weight(normal(16, 64, seed=1))
    alone = int8_linear(x[1:2], packed)
    x[0] *= 1e6
    x[2] = 0
    y = int8_linear(x, packed)
    assert_same_bits([y[1:2]], [alone])
    assert_same_bits([y[2]], [torch.zeros(16)])


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_is_nan(isa: str, bad: float, bits: int) -> None:
    x, packed = normal(5, 70), pack_weight(normal(20, 70, seed=1))
    want = int8_linear(x, packed, bits=bits)
    x[3, 69] = bad
    y = int8_linear(x, packed, bits=bits)
    assert bool(y[3].isnan().all())
    keep = [0, 1, 2, 4]
    assert_same_bits([y[keep]], [want[keep]])


def test_a_given_scale_saturates_infinity_and_keeps_nan(isa: str) -> None:
    x = torch.tensor([[float("inf"), 1.0], [-float("inf"), 1.0], [float("nan"), 1.0]])
    y = int8_linear(x, packed_as_it_is(torch.tensor([[1, 1]])), x_scale=torch.tensor(1.0))
    assert y.flatten()[:2].tolist() == [128.0, -126.0]
    assert bool(y[2].isnan().all())


def test_a_scale_for_each_timestep_is_picked_on_the_device() -> None:
    table, x, packed = torch.tensor([0.01, 0.02, 0.04]), normal(6, 70), pack_weight(normal(20, 70, seed=1))
    step = torch.tensor([1])
    picked = int8_linear(x, packed, x_scale=table[step])
    assert_same_bits([picked], [int8_linear(x, packed, x_scale=torch.tensor(0.02))])


# ---- what follows the sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_activation_functions(isa: str, activation: str) -> None:
    """A weight of zeros leaves the bias."""
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-30, -1e-30, 3e38, -3e38])
    b = torch.cat([torch.linspace(-30, 30, 4001), special])
    packed = packed_as_it_is(torch.zeros(len(b), 4, dtype=torch.int8))
    y = int8_linear(torch.zeros(1, 4), packed, b, activation=activation)[0].double()
    functions = {
        "gelu": F.gelu,
        "gelu_tanh": lambda t: F.gelu(t, approximate="tanh"),
        "silu": F.silu,
    }
    want = functions[activation](b.double())
    assert torch.equal(y.isnan(), want.isnan())
    finite = ~want.isnan() & want.isfinite()
    assert torch.equal(y[~finite & ~want.isnan()], want[~finite & ~want.isnan()])
    error = (y - want)[finite].abs() / b.double()[finite].abs().clamp_min(1)
    assert float(error.max()) < 3e-7


def test_gated_layers_are_geglu(isa: str) -> None:
    x, w, b = normal(9, 70), normal(44, 70, seed=1), normal(44, seed=2)
    packed = pack_weight(w, gated=True)
    value, gate = reference(x, pack_weight(w), b).chunk(2, -1)
    y = int8_linear(x, packed, b, activation="gelu")
    assert y.shape == (9, 22)
    assert_close(y, value * F.gelu(gate), scale=200, what="GEGLU")


def test_adapters_are_those_of_spm() -> None:
    """K adapters of rank 1, each with a gate for each sample, one after the other as SPMLayer.forward adds them."""
    x, packed = normal(2, 5, 70), pack_weight(normal(33, 70, seed=1))
    down, up, gates = normal(8, 70, seed=2), normal(33, 8, seed=3), normal(2, 8, seed=4)
    want = int8_linear(x, packed).double()
    for k in range(8):
        p = x.double() @ down[k].double()
        want += gates[:, k].double().view(2, 1, 1) * p[..., None] * up[:, k].double()
    got = int8_linear(x, packed, lowrank=LowRank(down, up, gates))
    assert_close(got, want.float(), scale=500, what="SPM")


def test_difffit_folds_into_the_gate() -> None:
    """y = x + g ⊙ γ ⊙ h, in place."""
    x, packed, gamma = normal(2, 5, 48), pack_weight(normal(48, 48, seed=1)), normal(48, seed=2)
    want = x + gamma * int8_linear(x, packed)
    stream = x.clone()
    y = int8_linear(x, packed, gate=gamma, residual=stream, out=stream)
    assert y is stream
    assert_close(y, want, scale=200, what="layer scale")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_asked_for(dtype: torch.dtype) -> None:
    x, packed = normal(3, 70), pack_weight(normal(20, 70, seed=1))
    assert_close(int8_linear(x, packed, dtype=dtype), reference(x, packed, dtype=dtype), scale=500)


# ---- packing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_packing_keeps_the_weight(symmetric: bool, gated: bool) -> None:
    w = normal(44, 70) + 0.5
    packed = pack_weight(w, symmetric=symmetric, gated=gated)
    step = (w.amax(1).clamp_min(0) - w.amin(1).clamp_max(0)) / 254 if not symmetric else w.abs().amax(1) / 127
    assert bool(((packed.dequantize() - w).abs() <= 0.51 * step[:, None] + 1e-6).all())
    again = PackedWeight.from_state_dict(load(save(packed.state_dict("layer."))), "layer.")
    assert_same_bits([again.dequantize()], [packed.dequantize()])
    assert (again.scheme, again.rows, again.inner, again.gated) == ("int8", 44, 70, gated)


def test_integers_come_back_as_they_were_packed() -> None:
    w = integers(35, 130)
    assert torch.equal(packed_as_it_is(w).dequantize(), w.float())


def test_panels_are_as_documented() -> None:
    w = integers(40, 70)
    packed = packed_as_it_is(w).weight
    assert packed.shape == (3, 2, 16, 16, 4)
    assert packed[2, 1, 1, 3, 1] == w[35, 69]  # column 2 · 16 + 3, k = 64 + 4 · 1 + 1
    assert packed[2, 1, 1, 3, 2] == 0


def test_convolutions_have_channels_last() -> None:
    w = normal(8, 3, 2, 2)
    assert torch.equal(
        pack_weight(w).dequantize(), pack_weight(w.permute(0, 2, 3, 1).flatten(1)).dequantize()
    )


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        (torch.ones(4), {}, r"w must be \[N, K\] or \[N, C, \*kernel\], not empty, got \[4\]"),
        (torch.ones(0, 4), {}, r"not empty, got \[0, 4\]"),
        (torch.ones(4, 4), {"scheme": "int3"}, "scheme must be one of .*int8.*, got 'int3'"),
        (torch.ones(3, 4), {"gated": True}, "must have an even number of rows, got 3"),
        (
            torch.full((4, 4), -129, dtype=torch.int16),
            {"scale": torch.ones(4)},
            "must be integers within -128 and 127",
        ),
        (torch.full((4, 4), 128), {"scale": torch.ones(4)}, "must be integers within -128 and 127"),
        (torch.ones(4, 4), {"scale": torch.ones(4)}, "must be integers within -128 and 127"),
        (torch.ones(4, 4).int(), {"scale": torch.ones(3)}, r"scale must have shape \[4\], got \[3\]"),
    ],
)
def test_packing_refuses(w: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"fastdiff.pack_weight: .*{message}"):
        pack_weight(w, **options)


# ---- refusals --------------------------------------------------------------------------------------------------

X, W = normal(2, 3, 70), pack_weight(normal(20, 70, seed=1))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (normal(3, 69), {}, r"x must have shape \[\.\.\., 70\], got \[3, 69\]"),
        (X.double(), {}, "x must be float32, float16 or bfloat16, got float64"),
        (X.char(), {}, "x_scale must be given for x of int8"),
        (X, {"bits": 6}, "bits must be 7 or 8, got 6"),
        (X, {"x_scale": torch.ones(5)}, r"x_scale must have 1 element or one for each of the 6 rows of x, .*\[5\]"),
        (X, {"x_scale": torch.ones(1).double()}, "x_scale must be float32, got float64"),
        (X, {"x_zero_point": torch.ones(1).int()}, "x_zero_point needs x_scale"),
        (X, {"bias": torch.ones(21)}, r"bias must have shape \[20\], got \[21\]"),
        (X, {"bias": torch.ones(20).double()}, "bias must be float32, float16 or bfloat16, got float64"),
        (X, {"gate": torch.ones(3, 20)}, r"gate must have shape \[20\] or \[2 or 1, 20\], got \[3, 20\]"),
        (X, {"residual": torch.ones(3, 20)}, r"residual must have shape \(2, 3, 20\), got \[3, 20\]"),
        (X, {"lowrank": (torch.ones(4, 69), torch.ones(20, 4))}, r"down must have shape \[4, 70\], got \[4, 69\]"),
        (X, {"lowrank": (torch.ones(4, 70), torch.ones(20, 5))}, r"up must have shape \[20, 4\], got \[20, 5\]"),
        (X, {"lowrank": (torch.ones(4, 70), torch.ones(20, 4), torch.ones(5))}, r"gates must have shape \[4\] or"),
        (X, {"dtype": torch.float64}, "dtype must be float32, float16 or bfloat16, got torch.float64"),
        (X, {"out": torch.ones(2, 3, 21)}, r"out must have shape \(2, 3, 20\), got \[2, 3, 21\]"),
        (X, {"out": torch.ones(20).expand(2, 3, 20)}, "out must not have elements that share memory"),
        (X, {"out": X.flatten()[:120].view(2, 3, 20)}, "out must not share memory with x"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, options: dict[str, Any], message: str) -> None:
    before = options["out"].clone() if "out" in options else None
    with pytest.raises(RuntimeError, match=f"fastdiff::int8_linear: .*{message}"):
        int8_linear(x, W, **options)
    if before is not None:
        assert torch.equal(options["out"], before)


def test_the_result_must_not_lie_over_the_weight() -> None:
    x, packed, out = normal(40, 70), pack_weight(normal(16, 70, seed=1)), torch.zeros(40, 16)
    shared = dataclasses.replace(packed, scale=out[0].copy_(packed.scale))
    with pytest.raises(RuntimeError, match="fastdiff::int8_linear: out must not share memory with scale"):
        int8_linear(x, shared, out=out)


def test_zero_points_beyond_the_range_clamp(isa: str) -> None:
    """The zeros that fill the last piece of 64 are clamped as all others, and count for nothing."""
    x, packed = normal(3, 70), pack_weight(normal(20, 70, seed=1) + 0.5, symmetric=False)
    options = {"x_scale": torch.tensor(0.02), "x_zero_point": torch.tensor(200, dtype=torch.int32)}
    assert_close(int8_linear(x, packed, **options), reference(x, packed, **options), scale=1e4)


def test_refuses_rows_that_could_overflow() -> None:
    with pytest.raises(RuntimeError, match="the last dimension of x must be within 1 and 33024, got 33025"):
        int8_linear(torch.zeros(1, 33_025), packed_as_it_is(torch.zeros(1, 33_025, dtype=torch.int8)))


def test_refuses_an_unknown_activation() -> None:
    with pytest.raises(ValueError, match="activation must be one of None, gelu, gelu_tanh, silu, got 'relu'"):
        int8_linear(X, W, activation="relu")


def test_refuses_a_saved_weight_of_another_version() -> None:
    state = W.state_dict()
    state["format"] = state["format"] + 1
    with pytest.raises(ValueError, match="format must be version 1"):
        PackedWeight.from_state_dict(state)
