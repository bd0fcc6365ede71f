# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about weight_linear: packing, every size, float64 with the decoded weight, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fastdiff
import numpy as np
import pytest
import torch
from fastdiff import (
    _C,
    PackedWeight,
    bf16_linear,
    fp8_linear,
    fp8_weight_linear,
    int4_linear,
    int8_weight_linear,
    pack_weight,
    weight_linear,
)
from fastdiff.quant._packing import SCHEMES
from fastdiff.quant.weight_linear import reference, rounded, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.trees import at_offset

F32, BF16, F16, E4M3 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn
ISAS = usable_isas()


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def packed_as(kind: str, n: int, k: int, **options: Any) -> PackedWeight:
    scheme, *rest = kind.split()
    if rest:
        options["symmetric"] = False
    return pack_weight(normal(n, k, seed=1) + (0.5 if rest else 0), scheme, **options)


KINDS = ("int8", "int8 affine", "int4", "int4 affine", "bf16", "fp8")


def check(x: Tensor, packed: PackedWeight, *args: Any, **options: Any) -> None:
    got = weight_linear(x, packed, *args, **options)
    assert_close(got, reference(x, packed, *args, **options), **tolerance(x, packed, *args, **options))


# ---- values ----------------------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    m, n, k = draw(1, 40, "M"), draw(1, 70, "N"), draw(1, 300, "K")
    gated = data.draw(st.booleans(), "gated")
    n = 2 * n if gated else n
    kind = data.draw(st.sampled_from(KINDS))
    group = {"group": data.draw(st.sampled_from([32, 64, 128]))} if kind.startswith("int4") else {}
    packed = packed_as(kind, n, k, gated=gated, **group)
    dtypes = st.sampled_from([F32, BF16, F16])
    x = normal(m, k, dtype=data.draw(dtypes))
    if data.draw(st.booleans(), "transposed"):
        x = x.T.contiguous().T
    options: dict[str, Any] = {"activation": data.draw(st.sampled_from([None, "gelu", "silu"]))}
    if kind == "fp8" and data.draw(st.booleans(), "rounded"):
        options["round_x"] = True
        options["x_scale"] = data.draw(st.sampled_from([None, torch.tensor(0.004), torch.rand(m) + 0.01]))
    if data.draw(st.booleans(), "bias"):
        options["bias"] = normal(n, dtype=data.draw(dtypes), seed=2)
    if data.draw(st.booleans(), "residual"):
        options["residual"] = normal(m, packed.outputs, dtype=data.draw(dtypes), seed=3)
    if data.draw(st.booleans(), "branch"):
        options["lowrank"] = (normal(5, k, seed=4), normal(n, 5, seed=5))
    with instruction_set(data.draw(st.sampled_from(ISAS))):
        check(x, packed, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [*range(1, 18), 31, 260])
def test_any_number_of_rows(rows: int, kind: str) -> None:
    """Also that lanes give a row the same bits whatever the others are."""
    packed, x = packed_as(kind, 83, 1100), normal(rows, 1100)
    got = weight_linear(x, packed)
    assert_close(got, reference(x, packed), **tolerance(x, packed))
    for m in {0, rows // 2, rows - 1}:
        assert_same_bits([got[m]], [weight_linear(x[m], packed)])
    half = x.bfloat16()
    assert_close(weight_linear(half, packed), reference(half, packed), **tolerance(half, packed))


@pytest.mark.parametrize("rows", [33, 300])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_and_many_columns(kind: str, gated: bool, rows: int) -> None:
    """Tiles of AMX decode weights ahead: more than a chunk of panels, of long rows in blocks along K too."""
    for n, k in ((530, 150), (106, 2200)):
        packed, x = packed_as(kind, n, k, gated=gated), normal(rows, k, dtype=BF16)
        options = {"activation": "silu", "bias": normal(n)}
        assert_close(weight_linear(x, packed, **options), reference(x, packed, **options),
                     **tolerance(x, packed, **options))  # fmt: skip


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
def test_integers_are_exact(kind: str, isa: str) -> None:
    """Products and sums that float32 holds come out as they are."""
    packed = packed_as(kind, 40, 200)
    packed = replace(packed, scale=torch.full_like(packed.scale, 0.25))
    if kind == "bf16":
        packed = pack_weight(normal(40, 200).mul(8).round() / 4, "bf16")
    if kind == "fp8":
        packed = pack_weight(normal(40, 200).mul(4).round().clamp(-16, 16).to(E4M3), "fp8")
    for dtype in (F32, BF16, F16):
        x = normal(19, 200).mul(4).round().to(dtype)
        want = x.double() @ packed.dequantize().double().T
        with instruction_set(isa):
            got = weight_linear(x, packed, dtype=F32)
        assert_same_bits([got + 0.0], [want.float() + 0.0])


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity(kind: str) -> None:
    packed = packed_as(kind, 40, 70)
    for dtype in (F32, BF16):
        x = normal(20, 70, dtype=dtype)
        x[2, 3], x[5, 7] = float("nan"), float("inf")
        check(x, packed)


def test_misaligned_panels() -> None:
    for kind in KINDS:
        packed, x = packed_as(kind, 40, 200), normal(13, 200)
        moved = packed._changed(lambda t: at_offset(t, 1))
        assert_same_bits([weight_linear(x, moved)], [weight_linear(x, packed)])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_thread_counts_and_strides(scheme: str) -> None:
    packed, x = pack_weight(normal(300, 700), scheme), normal(2, 130, 700)
    want = weight_linear(x, packed)
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert_same_bits([weight_linear(x, packed)], [want])
    torch.set_num_threads(before)
    strided = torch.zeros(2, 260, 1400)[:, ::2, ::2].copy_(x)
    assert_same_bits([weight_linear(strided, packed)], [want])


def test_over_the_residual() -> None:
    packed, x, residual = pack_weight(normal(40, 70), "int4"), normal(9, 70), normal(9, 40)
    want = weight_linear(x, packed, residual=residual)
    assert weight_linear(x, packed, residual=residual, out=residual) is residual
    assert_same_bits([residual], [want])


def test_takes_the_weights_of_int8_linear() -> None:
    x, packed = normal(33, 256), pack_weight(normal(40, 256))
    error = fastdiff.int8_linear(x, packed) - weight_linear(x, packed)
    assert float(error.abs().max()) < 0.02 * float(weight_linear(x, packed).abs().max())


def test_numpy() -> None:
    x, packed = normal(5, 70), pack_weight(normal(40, 70), "int4")
    out = np.empty((5, 40), np.float32)
    _C.weight_linear(
        x.numpy(), packed.weight.numpy(), out, columns=40, scheme=1, group=64, scale=packed.scale.numpy()
    )
    assert_same_bits([torch.from_numpy(out)], [weight_linear(x, packed)])


# ---- e4m3 ------------------------------------------------------------------------------------------------------


def test_every_number_of_e4m3() -> None:
    """As a weight and as an activation, on every instruction set; a NaN's byte makes its row NaN."""
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes[(codes & 0x7F) != 0x7F].view(E4M3)
    for isa in ISAS:
        with instruction_set(isa):
            for rows in (1, 3, 9):
                one = torch.eye(254)[:rows]
                got = weight_linear(one, pack_weight(numbers.view(1, -1), "fp8"))
                assert torch.equal(got[:, 0], numbers[:rows].float())
            identity = pack_weight(torch.eye(256).to(E4M3), "fp8")
            for rows in (1, 7):
                x = codes.view(E4M3)[None].repeat(rows, 1)
                assert fp8_linear(x, identity, x_scale=torch.ones(1)).isnan().all()
                x = torch.cat((numbers, numbers[:2]))[None].repeat(rows, 1)
                assert torch.equal(fp8_linear(x, identity, x_scale=torch.full((rows,), 0.5)), x.float() / 2)
    nan = pack_weight(codes.view(2, 128).view(E4M3), "fp8", scale=torch.tensor(2.0))
    assert nan.dequantize().isnan().all()


@pytest.mark.parametrize("isa", ISAS)
def test_rounds_as_torch(isa: str) -> None:
    """Ties, subnormal numbers, both ends; every float16 as an activation, behind a scale of 1."""
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(F16)
    x = x[x.isfinite()]
    x = torch.nn.functional.pad(x, (0, -len(x) % 64)).view(-1, 64)
    between = (torch.arange(126).to(torch.uint8).view(E4M3).float()[:, None] + torch.zeros(64)) * 1.0625
    identity = pack_weight(torch.eye(64).to(E4M3), "fp8")
    with instruction_set(isa):
        for rows in (x, x.float(), between, between * 2.0**-100):
            for scale in (torch.ones(1), torch.tensor(2.0**-3)):
                got = fp8_linear(rows, identity, x_scale=scale, dtype=F32)
                want = (rows.float() / scale).clamp(-448, 448).to(E4M3).float() * scale
                assert torch.equal(got, want)
        got = fp8_linear(torch.full((6, 64), float("inf")), identity, x_scale=torch.ones(1))
        assert torch.equal(got, torch.full((6, 64), 448.0))


def test_rounded_activations_are_those_of_the_reference() -> None:
    x, identity = (
        normal(9, 64) * torch.logspace(-12, 12, 9)[:, None],
        pack_weight(torch.eye(64).to(E4M3), "fp8"),
    )
    x[3] = 0
    q, scale = rounded(x, None)
    assert torch.equal(fp8_linear(x, identity), (q.float() * scale.float()))
    x[5, 7], x[6, 8] = float("nan"), float("-inf")
    got = fp8_linear(x, identity)
    assert got[5:7].isnan().all() and got[[0, 1, 2, 3, 4, 7, 8]].isfinite().all()


def test_checkpoints_of_e4m3_stay_as_they_are() -> None:
    w = normal(40, 70).mul(9).to(E4M3)
    assert torch.equal(pack_weight(w, "fp8").dequantize(), w.float())
    scale = torch.tensor(0.125)
    assert torch.equal(pack_weight(w, "fp8", scale=scale, gated=True).dequantize(), w.float() / 8)
    for broken in (float("nan"), float("inf")):
        v = normal(40, 70)
        v[3, 4] = broken
        rows = pack_weight(v, "fp8").dequantize().isnan().all(1)
        assert rows[3] and int(rows.sum()) == 1


# ---- packing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shape", [(2, 1), (40, 64), (6, 33), (34, 200)])
def test_integers_come_back(shape: tuple[int, int], gated: bool) -> None:
    n, k = shape
    for group in (32, 64, 128):
        groups = -(-k // group)
        q = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(0))
        scale, zero = normal(n, groups).abs(), normal(n, groups, seed=1)
        packed = pack_weight(q, "int4", scale=scale, zero_point=zero, gated=gated, group=group)
        each = [t.repeat_interleave(group, 1)[:, :k] for t in (scale, zero)]
        assert torch.equal(packed.dequantize(), (q.float() - each[1]) * each[0])
        assert packed.weight.shape[1:] == (-(-k // 64), 8, 16, 4)
    w = normal(n, k)
    assert torch.equal(pack_weight(w, "bf16", gated=gated).dequantize(), w.bfloat16().float())


def test_halves_of_a_word_are_quadruples_of_int8() -> None:
    """Kernels of int8 products can take them as they are."""
    q = torch.randint(-8, 8, (20, 130), generator=torch.Generator().manual_seed(0))
    nibbles = pack_weight(q, "int4", scale=torch.ones(20, 3)).weight
    bytes_ = pack_weight(q, "int8", scale=torch.ones(20)).weight
    halves = torch.stack((nibbles & 15, nibbles >> 4), 3).flatten(2, 3).to(torch.int8) - 8
    assert torch.equal(halves[:1, :2], bytes_[:1, :2])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_rounding_is_half_a_step_at_most(group: int, symmetric: bool) -> None:
    w = normal(40, 200) + 0.3
    packed = pack_weight(w, "int4", group=group, symmetric=symmetric)
    steps = packed.scale.T.repeat_interleave(group, 1)[:40, :200]
    assert bool(((packed.dequantize() - w).abs() <= 0.501 * steps).all())


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_through_safetensors(kind: str, tmp_path: Path) -> None:
    packed, x = packed_as(kind, 44, 100, gated=True), normal(3, 100)
    save_file(packed.state_dict("proj."), tmp_path / "w.safetensors")
    loaded = PackedWeight.from_state_dict(load_file(tmp_path / "w.safetensors"), "proj.")
    assert_same_bits([weight_linear(x, loaded)], [weight_linear(x, packed)])
    assert torch.equal(loaded.dequantize(), packed.dequantize())


def test_a_convolution_becomes_its_matrix() -> None:
    w = normal(6, 4, 3, 3)
    assert torch.equal(
        pack_weight(w, "bf16").dequantize(), w.permute(0, 2, 3, 1).flatten(1).bfloat16().float()
    )


# ---- refusals --------------------------------------------------------------------------------------------------


X, INT8, INT4, FP8 = normal(5, 70), *(pack_weight(normal(40, 70), s) for s in ("int8", "int4", "fp8"))


@pytest.mark.parametrize(
    ("x", "packed", "options", "message"),
    [
        (normal(5, 71), INT4, {}, r"x must have shape \[..., 70\], got \[5, 71\]"),
        (X.double(), INT4, {}, "x must be float32, float16 or bfloat16, got float64"),
        (X, replace(INT4, group=48), {}, "group must be 32, 64 or 128, got 48"),
        (X, replace(INT4, scale=INT4.scale[:1]), {}, "scale must have 96 elements as pack_weight.* got 48"),
        (X, replace(INT4, scale=INT4.scale[:0]), {}, "scale must be given"),
        (X, replace(INT4, weight=INT4.weight[1:]), {}, "weight must have 3072 elements .* got 2048"),
        (X, replace(INT4, scheme="int8"), {}, "weight must be int8, got uint8"),
        (X, replace(INT8, zero_point=torch.zeros(48)), {}, "zero_point must be int32, got float32"),
        (X, replace(pack_weight(normal(40, 70), "bf16"), scale=INT8.scale), {}, "a weight of bfloat16 has neither"),
        (X, replace(FP8, zero_point=INT8.scale), {}, "a weight of e4m3 has no zero_point"),
        (X, replace(FP8, scale=FP8.scale[:0]), {}, "scale must be given for a weight of integers or e4m3"),
        (X, INT8, {"round_x": True}, r"round_x needs a weight of scheme 3 .fp8., got 0"),
        (X, FP8, {"x_scale": torch.ones(1)}, "x_scale needs round_x"),
        (X.to(E4M3), FP8, {}, "x must be float32, float16 or bfloat16, got uint8"),
        (X.to(E4M3), FP8, {"round_x": True}, "x_scale must be given for x of e4m3"),
        (X, FP8, {"round_x": True, "x_scale": torch.ones(4)}, "x_scale must have 1 element or one for each"),
        (X, FP8, {"round_x": True, "x_scale": torch.ones(5).double()}, "x_scale must be float32, got float64"),
        (X, INT4, {"bias": normal(41)}, r"bias must have shape \[40\], got \[41\]"),
        (X, INT4, {"residual": normal(5, 41)}, r"residual must have shape .5, 40., got \[5, 41\]"),
        (X, INT4, {"out": normal(5, 41)}, r"out must have shape .5, 40., got \[5, 41\]"),
        (X, INT4, {"dtype": torch.float64}, "dtype must be float32, float16 or bfloat16"),
        (X, INT4, {"dtype": F16, "out": normal(5, 40)}, "out must have the dtype that is asked for"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, packed: PackedWeight, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::weight_linear: {message}"):
        weight_linear(x, packed, **options)


NAMES = {
    int8_weight_linear: "int8",
    int4_linear: "int4",
    bf16_linear: "bf16",
    fp8_weight_linear: "fp8",
    fp8_linear: "fp8",
}


def test_names_of_schemes() -> None:
    for function, scheme in NAMES.items():
        options = {"round_x": True} if function is fp8_linear else {}
        for packed in (INT8, INT4, FP8, pack_weight(normal(40, 70), "bf16")):
            if packed.scheme == scheme:
                assert_same_bits([function(X, packed, activation="silu")],
                                 [weight_linear(X, packed, activation="silu", **options)])  # fmt: skip
            else:
                with pytest.raises(ValueError, match=f"must have the scheme {scheme}, got {packed.scheme}"):
                    function(X, packed)


@pytest.mark.parametrize(
    ("w", "scheme", "options", "message"),
    [
        (normal(4, 8), "int4", {"group": 48}, "group must be 64, 32, 128 for int4, got 48"),
        (normal(4, 8), "int8", {"group": 64}, "group must be left out for int8, got 64"),
        (normal(4, 8), "int4", {"scale": torch.ones(4, 1)}, "with scale, w must be integers within -8 and 7"),
        (torch.full((4, 8), 8), "int4", {"scale": torch.ones(4, 1)}, "with scale, w must be integers within -8 and 7"),
        (torch.ones(4, 80).int(), "int4", {"scale": torch.ones(4)}, r"scale must have shape \[4, 2\], got \[4\]"),
        (normal(4, 8), "bf16", {"symmetric": False}, "bf16 takes a floating w and neither scale nor zero_point"),
        (torch.ones(4, 8).int(), "bf16", {}, "bf16 takes a floating w"),
        (torch.ones(4, 8).int(), "fp8", {}, "fp8 takes a floating w and no zero_point"),
        (normal(4, 8), "fp8", {"symmetric": False}, "fp8 takes a floating w and no zero_point"),
        (normal(4, 8), "fp8", {"scale": torch.ones(4)}, "with scale, w must be float8_e4m3fn for fp8, got"),
        (normal(4, 8).to(E4M3), "fp8", {"scale": torch.ones(3)}, r"scale must have 1 element or 4, got shape \[3\]"),
    ],
)  # fmt: skip
def test_packing_refuses(w: Tensor, scheme: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^fastdiff.pack_weight: {message}"):
        pack_weight(w, scheme, **options)
