# SPDX-License-Identifier: Apache-2.0
"""int8_conv2d: exact sums against F.conv2d in float64, padding, strides, dilation, layouts, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastdiff import PackedWeight, int8_conv2d, int8_linear, pack_weight
from fastdiff.quant.int8_conv2d import reference
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


ONE = torch.ones(1)


def exact(q: Tensor, w: Tensor, zx: Tensor | int = 0, zw: Tensor | int = 0, **geometry: Any) -> Tensor:
    """The sums as the nearest float32; + 0, because products of zero have signs."""
    return F.conv2d(q.double() - zx, w.double() - zw, **geometry).float() + 0.0


# ---- sums ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 3, 17, 64])
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 3)])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), ((1, 2), (2, 3), (1, 2)), (3, 4, 2)]
)
def test_sums_are_those_of_integers(
    isa: str, c: int, size: tuple[int, int], stride: Any, padding: Any, dilation: Any
) -> None:
    q, w = integers(2, c, 9, 7), integers(19, c, *size, seed=1)
    if dilation == (1, 2) or dilation == 2:
        padding = (4, 4)  # large kernels reach further than the image
    geometry = {"stride": stride, "padding": padding, "dilation": dilation}
    y = int8_conv2d(q, packed_as_it_is(w), x_scale=ONE, **geometry)
    assert_same_bits([y], [exact(q, w, **geometry)])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_zero_points_are_exact_and_padding_is_zero(isa: str, layout: torch.memory_format) -> None:
    """The byte around the image is the zero point, of each sample its own."""
    q, w = integers(3, 17, 6, 11).contiguous(memory_format=layout), integers(35, 17, 3, 3, seed=1)
    zx = torch.tensor([-128, 127, 5], dtype=torch.int32)
    zw = torch.randint(-128, 128, (35,), generator=generator(2))
    y = int8_conv2d(q, packed_as_it_is(w, zw), x_scale=torch.ones(3), x_zero_point=zx, padding=1)
    assert_same_bits([y], [exact(q, w, zx.view(3, 1, 1, 1), zw.view(35, 1, 1, 1), padding=1)])


def test_the_longest_kernels_do_not_overflow(isa: str) -> None:
    c = 33_024 // 9 + 1
    with pytest.raises(RuntimeError, match="a kernel must have at most 33024 elements, got 33030"):
        int8_conv2d(torch.zeros(1, c, 3, 3), packed_as_it_is(torch.zeros(1, c, 3, 3, dtype=torch.int8)))
    q = torch.full((1, 1032, 4, 8), 127, dtype=torch.int8)
    w = torch.full((1, 1032, 4, 8), 127, dtype=torch.int8)
    y = int8_conv2d(
        q,
        packed_as_it_is(w, torch.tensor([-128])),
        x_scale=ONE,
        x_zero_point=torch.tensor([-128], dtype=torch.int32),
    )
    assert y.item() == float(torch.tensor(33_024 * 255 * 255, dtype=torch.float32))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_share_of_the_rows(threads: int) -> None:
    """More threads than rows: panels are shared out as well."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for n, h in ((19, 3), (200, 3), (70, 40)):
        q, w = integers(1, 8, h, h), integers(n, 8, 3, 3, seed=1)
        y = int8_conv2d(q, packed_as_it_is(w), x_scale=ONE, padding=1)
        assert_same_bits([y], [exact(q, w, padding=1)], f"{n} {h}")
    torch.set_num_threads(before)


def test_more_rows_than_a_block_has(isa: str) -> None:
    """Blocks of 96 rows of 10368 bytes, and an image wider than what is transposed together."""
    q, w = integers(1, 1152, 2, 260), integers(3, 1152, 3, 3, seed=1)
    y = int8_conv2d(q, packed_as_it_is(w), x_scale=ONE, padding=1)
    assert_same_bits([y], [exact(q, w, padding=1)])


@pytest.mark.parametrize(
    ("c", "size", "geometry"),
    [
        (64, (3, 3), {"padding": 1}),
        (128, (1, 1), {"stride": 2}),
        (192, (2, 3), {"stride": (2, 1), "padding": (3, 0)}),
        (64, (3, 3), {"padding": (0, 1), "stride": (1, 3), "dilation": (2, 1)}),
        (128, (2, 3), {"dilation": (1, 4)}),
        (16, (3, 4), {"dilation": (3, 1)}),
    ],
)
@pytest.mark.parametrize(("h", "out"), [(3, 16), (5, 48)])
def test_lines_of_whole_tiles(
    isa: str, c: int, size: tuple[int, int], geometry: dict[str, Any], h: int, out: int
) -> None:
    """Runs of 64 bytes along K and of 16 pixels along a line, which tiles read where they lie."""
    stride, padding, dilation = (
        pair if isinstance(pair, tuple) else (pair, pair)
        for pair in (geometry.get("stride", 1), geometry.get("padding", 0), geometry.get("dilation", 1))
    )
    width = stride[1] * (out - 1) + dilation[1] * (size[1] - 1) + 1 - 2 * padding[1]
    height = stride[0] * (h - 1) + dilation[0] * (size[0] - 1) + 1 - 2 * padding[0]
    q, w = integers(2, c, max(1, height), width), integers(35, c, *size, seed=1)
    y = int8_conv2d(q, packed_as_it_is(w), x_scale=torch.ones(2), **geometry)
    assert y.shape[3] == out
    assert_same_bits([y], [exact(q, w, **geometry)])


@settings(max_examples=40, deadline=None)
@given(b=st.integers(1, 3), c=st.integers(1, 20), n=st.integers(1, 40), h=st.integers(1, 12), w=st.integers(1, 12),
       kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
       padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
       dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
       bits=st.sampled_from([7, 8]), symmetric=st.booleans(), last=st.booleans())  # fmt: skip
def test_any_geometry(
    b: int, c: int, n: int, h: int, w: int, kernel: tuple[int, int], stride: tuple[int, int],
    padding: tuple[int, int], dilation: tuple[int, int], bits: int, symmetric: bool, last: bool,
) -> None:  # fmt: skip
    x, weight = normal(b, c, h, w), normal(n, c, *kernel, seed=1) + 0.3
    packed = pack_weight(weight, symmetric=symmetric)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "bits": bits}
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if reach[0] > h + 2 * padding[0] or reach[1] > w + 2 * padding[1]:
        with pytest.raises(RuntimeError, match="the kernel reaches over"):
            int8_conv2d(x, packed, **options)
        return
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    y = int8_conv2d(x, packed, **options)
    assert_close(y, reference(x, packed, **options), scale=packed.inner * 20, what=f"{options}")


def test_agrees_with_the_quantised_convolution_of_torch() -> None:
    """Of torch.ao, which rounds the very same sums to 8 bits again."""
    x, w, b = normal(2, 16, 9, 8), normal(24, 16, 3, 3, seed=1), normal(24, seed=2)
    scale, w_scale, out_scale = torch.tensor(0.03), float(w.abs().max() / 127), 0.25
    qx = torch.quantize_per_tensor(x, float(scale), 10, torch.quint8)
    qw = torch.quantize_per_tensor(w, w_scale, 0, torch.qint8)
    want = torch.ao.nn.quantized.functional.conv2d(qx, qw, b, padding=1, scale=out_scale, zero_point=128)
    q = (qx.int_repr().int() - 128).to(torch.int8)
    packed = pack_weight(qw.int_repr(), scale=torch.full((24,), w_scale))
    zero = torch.tensor(10 - 128, dtype=torch.int32)
    y = int8_conv2d(q, packed, b, padding=1, x_scale=scale, x_zero_point=zero)
    assert float((y.clamp(-32, 31.75) - want.dequantize()).abs().max()) <= out_scale / 2 + 1e-3


# ---- quantisation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (7, 0.03)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_is_near_the_convolution_it_stands_for(bits: int, error: float, dtype: torch.dtype) -> None:
    x, w, b = normal(2, 64, 16, 16).to(dtype), normal(32, 64, 3, 3, seed=1) / 24, normal(32, seed=2)
    want = F.conv2d(x.double(), w.double(), b.double(), padding=1)
    got = int8_conv2d(x, pack_weight(w), b, padding=1, bits=bits).double()
    assert (got - want).norm() < error * want.norm()


def test_a_sample_has_a_range_of_its_own() -> None:
    x, packed = normal(3, 17, 5, 6), pack_weight(normal(16, 17, 3, 3, seed=1))
    alone = int8_conv2d(x[1:2], packed, padding=1)
    x[0] *= 1e6
    x[2] = 0
    y = int8_conv2d(x, packed, padding=1)
    assert_same_bits([y[1:2]], [alone])
    assert_same_bits([y[2]], [torch.zeros(16, 5, 6)])


@pytest.mark.parametrize("where", [(0, 0, 0), (16, 4, 5), (8, 2, 3)])
def test_every_element_counts_for_the_range(isa: str, where: tuple[int, int, int]) -> None:
    """Of a sample in several parts, in three layouts."""
    x, packed = normal(2, 17, 5, 6), pack_weight(normal(16, 17, 3, 3, seed=1))
    x[1][where] = 100.0
    large = torch.cat([x] * 300, -1)
    for t in (
        x,
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        large,
    ):
        scale = t.abs().amax((1, 2, 3)) / 127
        assert_close(int8_conv2d(t, packed), reference(t, packed), scale=1e5, what=f"{t.stride()}")
        assert float(scale[1]) == pytest.approx(100 / 127)


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sample_that_is_not_finite_is_nan(
    isa: str, bad: float, bits: int, layout: torch.memory_format
) -> None:
    x, packed = normal(3, 17, 5, 6), pack_weight(normal(20, 17, 3, 3, seed=1))
    want = int8_conv2d(x, packed, bits=bits, padding=1)
    x[1, 16, 4, 5] = bad
    y = int8_conv2d(x.contiguous(memory_format=layout), packed, bits=bits, padding=1)
    assert bool(y[1].isnan().all())
    assert_same_bits([y[[0, 2]]], [want[[0, 2]]])


def test_a_scale_for_each_timestep_is_picked_on_the_device() -> None:
    table, x = torch.tensor([0.01, 0.02, 0.04]), normal(2, 17, 5, 6)
    packed = pack_weight(normal(20, 17, 3, 3, seed=1))
    picked = int8_conv2d(x, packed, x_scale=table[torch.tensor([1])])
    assert_same_bits([picked], [int8_conv2d(x, packed, x_scale=torch.tensor(0.02))])


# ---- layouts and what follows the sums -------------------------------------------------------------------------


def test_one_by_one_is_a_linear_layer(isa: str) -> None:
    """Of the pixels, with a scale that is given; the same bits."""
    x, w, b = normal(2, 70, 5, 6), normal(33, 70, seed=1), normal(33, seed=2)
    scale = torch.tensor(0.03)
    y = int8_conv2d(x, pack_weight(w[:, :, None, None]), b, x_scale=scale, activation="gelu")
    want = int8_linear(x.permute(0, 2, 3, 1), pack_weight(w), b, x_scale=scale, activation="gelu")
    assert_same_bits([y], [want.permute(0, 3, 1, 2)])


def test_the_result_is_channels_last() -> None:
    x, packed = normal(2, 17, 5, 6), pack_weight(normal(17, 17, 3, 3, seed=1))
    for t in (x, x.contiguous(memory_format=torch.channels_last)):
        y = int8_conv2d(t, packed, padding=1)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert y.shape == x.shape


def test_channels_of_a_wider_tensor(isa: str) -> None:
    """Views with gaps between pixels, rows and samples, in both orders."""
    wide = normal(3, 40, 9, 11)
    packed = pack_weight(normal(20, 17, 3, 3, seed=1))
    for t in (wide, wide.contiguous(memory_format=torch.channels_last)):
        view = t[1:, 5:22, 1:8:2, 2:10]
        assert_same_bits(
            [int8_conv2d(view, packed, padding=1)], [int8_conv2d(view.contiguous(), packed, padding=1)]
        )


def test_gated_convolutions(isa: str) -> None:
    x, w, b = normal(2, 17, 5, 6), normal(44, 17, 3, 3, seed=1), normal(44, seed=2)
    value, gate = reference(x, pack_weight(w), b).chunk(2, 1)
    y = int8_conv2d(x, pack_weight(w, gated=True), b, activation="silu")
    assert y.shape == (2, 22, 3, 4)
    assert_close(y, value * F.silu(gate), scale=2000, what="gated")


def test_a_residual_is_added_in_place() -> None:
    """y = x + g ⊙ h, a residual block's end, with a gate for each sample."""
    x, packed, gamma = normal(2, 20, 5, 6), pack_weight(normal(20, 20, 3, 3, seed=1)), normal(2, 20, seed=2)
    want = x + gamma[:, :, None, None] * int8_conv2d(x, packed, padding=1)
    for stream in (x.clone(), x.contiguous(memory_format=torch.channels_last)):
        y = int8_conv2d(x, packed, padding=1, gate=gamma, residual=stream, out=stream)
        assert y is stream
        assert_close(y, want, scale=200, what="residual")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_asked_for(dtype: torch.dtype) -> None:
    x, packed = normal(2, 17, 5, 6), pack_weight(normal(20, 17, 3, 3, seed=1))
    assert_close(int8_conv2d(x, packed, dtype=dtype), reference(x, packed, dtype=dtype), scale=500)


def test_a_saved_weight_knows_its_kernel() -> None:
    packed = pack_weight(normal(8, 3, 5, 2))
    again = PackedWeight.from_state_dict(load(save(packed.state_dict("conv."))), "conv.")
    assert packed.kernel == again.kernel == (5, 2)
    assert PackedWeight.from_state_dict(pack_weight(normal(8, 3)).state_dict()).kernel is None
    assert packed.to("cpu").kernel == (5, 2)


# ---- refusals --------------------------------------------------------------------------------------------------

X, W = normal(2, 17, 5, 6), pack_weight(normal(20, 17, 3, 3, seed=1))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (normal(2, 16, 5, 6), {}, r"x must have shape \[B, 17, H, W\] for kernels \[3, 3\] of 153 elements, got"),
        (normal(17, 5, 6), {}, r"x must have shape \[B, 17, H, W\] .* got \[17, 5, 6\]"),
        (normal(2, 17, 0, 6), {}, r"x must have shape \[B, C, H, W\] with C, H and W of at least 1, got \[2, 17,"),
        (normal(2, 17, 2, 6), {}, "the kernel reaches over 3 rows, more than x has with its padding: 2"),
        (X, {"dilation": (1, 3)}, "the kernel reaches over 7 columns, more than x has with its padding: 6"),
        (X, {"stride": 0}, r"stride must be 2 numbers within 1 and 33024, got \(0, 0\)"),
        (X, {"padding": (0, -1)}, r"padding must be 2 numbers within 0 and 33024, got \(0, -1\)"),
        (X, {"stride": (1, 2, 3)}, r"stride must be 2 numbers within 1 and 33024, got \(1, 2, 3\)"),
        (X.double(), {}, "x must be float32, float16 or bfloat16, got float64"),
        (X.char(), {}, "x_scale must be given for x of int8"),
        (X, {"bits": 6}, "bits must be 7 or 8, got 6"),
        (X, {"x_scale": torch.ones(5)}, r"x_scale must have 1 element or one for each of the 2 samples of x, .*\[5\]"),
        (X, {"x_scale": torch.ones(1).double()}, "x_scale must be float32, got float64"),
        (X, {"x_zero_point": torch.ones(1).int()}, "x_zero_point needs x_scale"),
        (X, {"bias": torch.ones(21)}, r"bias must have shape \[20\], got \[21\]"),
        (X, {"gate": torch.ones(3, 20)}, r"gate must have shape \[20\] or \[2 or 1, 20\], got \[3, 20\]"),
        (X, {"residual": torch.ones(2, 20, 3, 5)}, r"residual must have shape \(2, 20, 3, 4\), got \[2, 20, 3, 5\]"),
        (X, {"residual": torch.ones(2, 20, 3, 4).double()}, "residual must be float32, float16 or bfloat16"),
        (X, {"dtype": torch.float64}, "dtype must be float32, float16 or bfloat16, got torch.float64"),
        (X, {"out": torch.ones(2, 3, 4, 20)}, r"out must have shape \(2, 20, 3, 4\), got \[2, 3, 4, 20\]"),
        (X, {"out": torch.ones(4).expand(2, 20, 3, 4)}, "out must not have elements that share memory"),
        (X, {"out": X.flatten()[:480].view(2, 20, 3, 4)}, "out must not share memory with x"),
    ],
)  # fmt: skip
def test_refuses(x: Tensor, options: dict[str, Any], message: str) -> None:
    before = options["out"].clone() if "out" in options else None
    with pytest.raises(RuntimeError, match=f"fastdiff::int8_conv2d: .*{message}"):
        int8_conv2d(x, W, **options)
    if before is not None:
        assert torch.equal(options["out"], before)


def test_refuses_to_guess_the_kernel() -> None:
    matrix = pack_weight(W.dequantize())
    with pytest.raises(ValueError, match="kernel must be given for a weight that was packed as a matrix"):
        int8_conv2d(X, matrix)
    assert_same_bits([int8_conv2d(X, matrix, kernel=3)], [int8_conv2d(X, pack_weight(_as_image(W)))])


def _as_image(packed: PackedWeight) -> Tensor:
    return packed.dequantize().view(20, 3, 3, 17).permute(0, 3, 1, 2)
