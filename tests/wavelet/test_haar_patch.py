# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about haar_patch: diffusers' modules, the order of channels and sums, its refusals."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_cosmos import CosmosPatchEmbed3d, CosmosUnpatcher3d
from fastdiff import _C, haar_patch, haar_unpatch
from fastdiff.wavelet.haar_patch import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kit.backends import instruction_set, usable_isas
from tests.kit.compare import assert_close, assert_same_bits
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import Canary

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
DTYPES = [F32, torch.float16, BF16, F64]
LAST = torch.channels_last_3d
MAPS = [
    {"inverse": inverse, "adjoint": adjoint}
    for inverse, adjoint in itertools.product((False, True), repeat=2)
]
each_isa = pytest.mark.parametrize("isa", usable_isas())
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_patch = pytest.mark.parametrize("patch", [1, 2, 4, 8])
each_map = pytest.mark.parametrize("options", MAPS, ids=["A", "A^T", "A^-1", "A^-T"])


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g, dtype=F64).to(dtype)


def pixels(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    """Numbers of 8 bits, whose sums over a patch are exact."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def source(options: dict[str, bool], patch: int, *shape: int, dtype: torch.dtype = F32) -> Tensor:
    """What a map takes: [B, C, T', H', W'] patches as a video, or their bands."""
    b, c, t, h, w = shape
    if options["inverse"] == options["adjoint"]:
        return normal(b, c, (t - 1) * patch + 1, h * patch, w * patch, dtype=dtype)
    return normal(b, c * patch**3, t, h, w, dtype=dtype)


# ---- refusals --------------------------------------------------------------------------------------------------

X, Y = torch.ones(1, 2, 5, 8, 12), torch.ones(1, 64, 2, 2, 3)
BACK = {"inverse": True}
TO_PIXELS = {"adjoint": True}

REFUSALS: list[tuple[str, Tensor, int, dict[str, Any], str]] = [
    ("integers", X.long(), 4, {}, "x must be float32, float16, bfloat16 or float64, got int64"),
    ("complex", X.cfloat(), 4, {}, "x must be float32, float16, bfloat16 or float64, got complex64"),
    ("no batch", X[0], 4, {}, r"x must have 5 dimensions \[B, C, T, H, W\], got \[2, 5, 8, 12\]"),
    ("too many dimensions", X[None], 4, {}, r"x must have 5 dimensions .*, got \[1, 1, 2, 5, 8, 12\]"),
    *((f"patch {p}", X, p, {}, f"patch must be 1, 2, 4 or 8, got {p}") for p in (0, 3, 16, -1)),
    ("frames", X[:, :, :4], 4, {},
     r"x must have 1 \+ a multiple of 4 frames \(dimension 2 of \[B, C, T, H, W\]\), got \[1, 2, 4, 8, 12\]"),
    ("no frames", X[:, :, :0], 4, {}, r"x must have 1 \+ a multiple of 4 frames .*, got \[1, 2, 0, 8, 12\]"),
    ("rows", X[..., :6, :], 4, {}, r"x must have a multiple of 4 rows \(dim.*3 of.*\), got \[1, 2, 5, 6, 12\]"),
    ("columns", X[..., :10], 4, {}, r"x must have a multiple of 4 columns \(dim.*4 of.*\), got \[1, 2, 5, 8, 10\]"),
    ("bands", Y[:, :63], 4, BACK,
     r"x must have a multiple of patch\^3 = 64 channels \(dim.*1 of.*\), got \[1, 63, 2, 2, 3\]"),
    ("no frames of bands", Y[:, :, :0], 4, BACK, r"x must have at least 1 frame .*, got \[1, 64, 0, 2, 3\]"),
    ("rows, transposed map", X[..., :6, :], 4, {"inverse": True, "adjoint": True}, "x must have a multiple of 4 rows"),
    ("bands, transposed map", Y[:, :9], 4, TO_PIXELS, r"x must have a multiple of patch\^3 = 64 channels"),
    ("dtype of out", X, 4, {"out": torch.ones(1, 128, 2, 2, 3).double()}, "out must be float32 like x, got float64"),
    ("shape of out", X, 4, {"out": Y}, r"out must have shape \[1, 128, 2, 2, 3\], got \[1, 64, 2, 2, 3\]"),
    ("rank of out", X, 1, {"out": X[0]}, r"out must have shape \[1, 2, 5, 8, 12\], got \[2, 5, 8, 12\]"),
    ("device of out", X, 4, {"out": torch.ones(1, 128, 2, 2, 3, device="meta")}, "out must be on cpu like x, got meta"),
    ("expanded out", Y, 4, {"out": torch.ones(()).expand(1, 1, 5, 8, 12), **BACK},
     "out must not have elements that share memory"),
    ("in place", X, 1, {"out": X}, "out must not share memory with x"),
    ("partial overlap", Y, 4, {"out": Y.flatten()[4:484].view(1, 1, 5, 8, 12), **BACK},
     "out must not share memory with x"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("x", "patch", "options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refusal(x: Tensor, patch: int, options: dict[str, Any], message: str) -> None:
    before = x.clone()
    with pytest.raises(RuntimeError, match=r"fastdiff::haar_patch: " + message):
        haar_patch(x, patch, **options)
    assert_same_bits([x], [before], "a refused call wrote")


def test_refused_call_writes_nothing() -> None:
    canary = Canary(torch.ones(1, 64, 2, 2, 3))
    before = canary.tensor.clone()
    with pytest.raises(RuntimeError, match="out must have shape"):
        haar_patch(X, 4, out=canary.tensor)
    assert_same_bits([canary.tensor], [before])
    assert canary.is_alive()


def test_out_records_no_gradients() -> None:
    x = X.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=r"fastdiff.haar_patch: out= does not record gradients"):
        haar_patch(x, 4, out=torch.empty(1, 128, 2, 2, 3))
    with torch.no_grad():
        haar_patch(x, 4, out=torch.empty(1, 128, 2, 2, 3))


# ---- diffusers -------------------------------------------------------------------------------------------------

SHAPES = [(1, 3, 1, 16, 24), (2, 3, 9, 32, 16), (1, 2, 17, 8, 40)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@each_shape
@each_patch
def test_equals_diffusers(patch: int, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    bands = CosmosPatchEmbed3d(patch)(x)
    torch.testing.assert_close(haar_patch(x, patch), bands, rtol=0, atol=3e-6)
    video = CosmosUnpatcher3d(patch)(bands)
    torch.testing.assert_close(haar_unpatch(bands, patch), video, rtol=0, atol=2e-5)
    noise = normal(*bands.shape, seed=1)  # bands of no video
    want = CosmosUnpatcher3d(patch)(noise)
    torch.testing.assert_close(haar_unpatch(noise, patch), want, rtol=0, atol=1e-6 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [F32, torch.float16, BF16], ids=str)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_no_worse_than_diffusers(patch: int, dtype: torch.dtype) -> None:
    """Their convolutions round after every axis of every level, and their taps are rounded too."""
    x = normal(1, 3, 9, 32, 32).to(dtype)
    bands = haar_patch(x, patch)
    embed, back = CosmosPatchEmbed3d(patch), CosmosUnpatcher3d(patch)
    for ours, theirs, want in (
        (bands, embed(x), reference(x.double(), patch)),
        (haar_unpatch(bands, patch), back(bands), reference(bands.double(), patch, inverse=True)),
    ):
        mine, other = ((t.double() - want).abs() for t in (ours, theirs))
        assert mine.max() <= other.max()
        assert mine.mean() <= other.mean()


def test_stays_finite_where_diffusers_does() -> None:
    """The scale comes first: sums of a patch stay within the range of its pixels."""
    x = torch.full((1, 1, 1, 8, 8), 3e38)
    want = torch.zeros(512)
    want[0] = 3e38
    assert torch.equal(haar_patch(x, 8).flatten(), want)


# ---- the definition --------------------------------------------------------------------------------------------


def documented_channel(f: tuple[int, int, int], channels: int, c: int) -> int:
    """c + C sum_l 8^l (4 f_t,l + 2 f_h,l + f_w,l)."""
    digits = [4 * (f[0] >> level & 1) + 2 * (f[1] >> level & 1) + (f[2] >> level & 1) for level in range(3)]
    return c + channels * sum(digit * 8**level for level, digit in enumerate(digits))


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_channels_and_signs_are_the_documented_ones(patch: int) -> None:
    """Of single pixels, in the second frame of patches: each is +-p^-3 in every band of its channel."""
    g = torch.Generator().manual_seed(patch)
    for _ in range(3):
        a = [int(n) for n in torch.randint(0, patch, (3,), generator=g)]
        x = torch.zeros(1, 2, 1 + patch, patch, 2 * patch)
        x[0, 1, 1 + a[0], a[1], patch + a[2]] = 1.0
        want = torch.zeros(1, 2 * patch**3, 2, 1, 2)
        for f in itertools.product(range(patch), repeat=3):
            flips = sum((i & j).bit_count() for i, j in zip(f, a, strict=True))
            want[0, documented_channel(f, 2, 1), 1, 0, 1] = (-1.0) ** flips / patch**3
        assert torch.equal(haar_patch(x, patch), want)


def ordered_sums(v: np.ndarray, patch: int, axes: tuple[int, ...]) -> np.ndarray:
    """Along each axis in turn, bit by bit: sums and differences in the dtype of v ``[p, p, p, n]``."""
    for axis in axes:
        v = np.moveaxis(v.copy(), axis, 0)
        for bit in (1, 2, 4)[: patch.bit_length() - 1]:
            low = [a for a in range(patch) if not a & bit]
            high = [a | bit for a in low]
            v[low], v[high] = v[low] + v[high], v[low] - v[high]
        v = np.moveaxis(v, 0, axis)
    return v


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_sums_are_in_the_documented_order(patch: int) -> None:
    """Bit for bit: w, h, t towards the bands; t, the first frames added up, h, w towards the pixels."""
    x = normal(1, 1, 1 + patch, patch, 3 * patch)
    blocks = x[0, 0, 1:].unflatten(2, (3, patch)).permute(0, 1, 3, 2).numpy()  # [t, h, w, patches]
    sums = ordered_sums(blocks * np.float32(patch**-3), patch, (2, 1, 0))
    got = haar_patch(x, patch)
    for f in itertools.product(range(patch), repeat=3):
        assert np.array_equal(got[0, documented_channel(f, 1, 0), 1, 0].numpy(), sums[f])

    y = normal(1, patch**3, 1, 1, 3)
    bands = np.empty((patch, patch, patch, 3), np.float32)
    for f in itertools.product(range(patch), repeat=3):
        bands[f] = y[0, documented_channel(f, 1, 0), 0, 0].numpy() * np.float32(patch**-3)
    frames = ordered_sums(bands, patch, (0,))
    total = frames[0]
    for frame in frames[1:]:
        total = total + frame
    first = ordered_sums(total[None], patch, (1, 2))[0]
    want = torch.from_numpy(first).permute(0, 2, 1).flatten(1)
    assert torch.equal(haar_patch(y, patch, adjoint=True)[0, 0, 0], want)


@each_dtype
@each_patch
def test_the_way_back_restores_pixels(patch: int, dtype: torch.dtype) -> None:
    """Exactly, where float16 and bfloat16 hold the bands: not where they would need more than their digits."""
    exact = dtype in (F32, F64)
    x = pixels(2, 3, 1 + 2 * patch, 2 * patch, 5 * patch, dtype=dtype)
    back = haar_unpatch(haar_patch(x, patch), patch)
    if exact or patch == 1:
        assert torch.equal(back, x)
    else:
        eps = torch.finfo(dtype).eps
        assert float((back.double() - x.double()).abs().max()) <= patch**3 * eps * 255


@each_map
@each_patch
def test_adjoint_is_the_transpose(patch: int, options: dict[str, bool]) -> None:
    x = source(options, patch, 2, 2, 3, 2, 3, dtype=F64)
    y = haar_patch(x, patch, **options)
    z = normal(*y.shape, dtype=F64, seed=1)
    transposed = haar_patch(z, patch, inverse=options["inverse"], adjoint=not options["adjoint"])
    assert transposed.shape == x.shape
    torch.testing.assert_close((y * z).sum(), (x * transposed).sum(), rtol=1e-12, atol=1e-12)


@each_map
def test_gradients_are_one_launch_in_the_dtype_of_x(options: dict[str, bool]) -> None:
    x = source(options, 4, 1, 2, 2, 2, 3, dtype=BF16).requires_grad_()
    y = haar_patch(x, 4, **options)
    g = normal(*y.shape, dtype=BF16, seed=1)
    (gradient,) = torch.autograd.grad(y, x, g)
    want = haar_patch(g, 4, inverse=options["inverse"], adjoint=not options["adjoint"])
    assert_same_bits([gradient], [want])
    with torch.no_grad():
        assert_same_bits([y], [haar_patch(x, 4, **options)])


def test_gradients_equal_those_of_diffusers() -> None:
    x, g = normal(1, 3, 9, 16, 16), normal(1, 192, 3, 4, 4, seed=1)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    haar_patch(leaves[0], 4).backward(g)
    CosmosPatchEmbed3d(4)(leaves[1]).backward(g)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=1e-6)
    leaves = [g.clone().requires_grad_() for _ in range(2)]
    haar_unpatch(leaves[0], 4).backward(x)
    CosmosUnpatcher3d(4)(leaves[1]).backward(x)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=0, atol=1e-4)


# ---- layouts and sizes -----------------------------------------------------------------------------------------


def strided(x: Tensor, order: tuple[int, ...], gap: int) -> Tensor:
    """The same values with the dimensions in this order in memory, the innermost with gaps."""
    back = [order.index(d) for d in range(5)]
    dense = x.permute(order).contiguous()
    return torch.stack([dense] * gap, -1)[..., 0].permute(back)


@settings(max_examples=60, deadline=None)
@given(
    patch=st.sampled_from([1, 2, 4, 8]),
    shape=st.tuples(*(st.integers(0 if d != 2 else 1, (2, 3, 3, 3, 21)[d]) for d in range(5))),
    options=st.sampled_from(MAPS),
    dtype=st.sampled_from(DTYPES),
    order=st.permutations(range(5)),
    gap=st.integers(1, 2),
)
def test_any_shape_and_strides(
    patch: int,
    shape: tuple[int, ...],
    options: dict[str, bool],
    dtype: torch.dtype,
    order: list[int],
    gap: int,
) -> None:
    x = source(options, patch, *shape, dtype=dtype)
    got, want = haar_patch(strided(x, tuple(order), gap), patch, **options), reference(x, patch, **options)
    scale = tolerance(x, patch, **options)
    assert_close(got, want, **scale, what=f"{shape} {order}")  # type: ignore[arg-type]


@each_patch
def test_layout_of_the_result(patch: int) -> None:
    x = normal(2, 3, 1 + patch, 2 * patch, 3 * patch)
    y = haar_patch(x, patch)
    assert y.is_contiguous()
    last = haar_patch(x.to(memory_format=LAST), patch)
    assert last.is_contiguous(memory_format=LAST)
    assert haar_unpatch(last, patch).is_contiguous(memory_format=LAST)
    assert haar_unpatch(y, patch).is_contiguous()
    assert_same_bits([last], [y])
    if patch > 1:
        assert haar_patch(x.transpose(3, 4), patch).is_contiguous()


@each_isa
@each_map
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_any_thread_count(patch: int, dtype: torch.dtype, options: dict[str, bool], isa: str) -> None:
    """Enough elements to be shared out."""
    x = source(options, patch, 1, 3, max(1, 8 // patch), 64 // patch, 72 // patch, dtype=dtype)
    with instruction_set(isa):
        parts = x.shape[1] // 3
        channels = [
            haar_patch(x.unflatten(1, (parts, 3))[:, :, c].contiguous(), patch, **options) for c in range(3)
        ]
        want = torch.stack([c.unflatten(1, (c.shape[1], 1)).squeeze(2) for c in channels], 2).flatten(1, 2)
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            assert_same_bits([haar_patch(x, patch, **options)], [want], f"{threads} threads")


@each_isa
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("columns", [64, 67], ids=["whole lines", "cut lines"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_past_the_caches(patch: int, columns: int, dtype: torch.dtype, isa: str) -> None:
    """Large results are stored another way; rows in between, alone, are not."""
    rows = (24 << 20) // dtype.itemsize // (columns * patch**3) // 2
    x = pixels(1, 1, 1 + patch, rows * patch, columns * patch, dtype=dtype)
    with instruction_set(isa):
        y = haar_patch(x, patch)
        back = haar_unpatch(y, patch)
        for row in (0, 1, rows // 2, rows - 1):
            part = haar_patch(x[..., row * patch : (row + 1) * patch, :].contiguous(), patch)
            assert_same_bits([y[..., row : row + 1, :]], [part], f"row {row}")
            part = haar_unpatch(y[..., row : row + 1, :].contiguous(), patch)
            assert_same_bits([back[..., row * patch : (row + 1) * patch, :]], [part], f"row {row} back")
        if dtype != BF16:
            assert torch.equal(back, x)


@pytest.mark.slow
@pytest.mark.skipif(
    os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") < 7 << 30, reason="needs 7 GiB of free memory"
)
def test_more_than_2_to_the_31_elements() -> None:
    """An image whose rows share memory: all rows of each band are alike."""
    columns = 2**11
    rows = 2**31 // (8 * columns) + 8
    x = pixels(1, 1, 1, 1, 2 * columns, dtype=BF16)
    y = haar_patch(x.expand(1, 1, 1, 2 * rows, 2 * columns), 2)
    assert y.numel() > 2**31
    want = haar_patch(x.expand(1, 1, 1, 2, 2 * columns), 2)
    for row in (0, 1, rows // 2, rows - 1):
        assert_same_bits([y[..., row : row + 1, :]], [want], f"row {row}")


def test_video_of_one_frame_is_an_image() -> None:
    x = normal(2, 3, 1, 8, 8)
    y = haar_patch(x, 4)
    assert torch.equal(y, haar_patch(x.expand(2, 3, 5, 8, 8), 4)[:, :, :1])
    assert torch.equal(y.unflatten(1, (2, 32, 3))[:, 1], torch.zeros(2, 32, 3, 1, 2, 2))  # no change in time
    torch.testing.assert_close(haar_unpatch(y, 4), x, rtol=0, atol=2e-6)


def test_compiles_with_gradients() -> None:
    def loss(x: Tensor) -> Tensor:
        return haar_unpatch(haar_patch(2 * x, 2).square(), 2).sum()

    x = normal(1, 2, 3, 4, 4).requires_grad_()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    want = torch.autograd.grad(loss(x), x)
    torch.testing.assert_close(torch.autograd.grad(compiled(x), x), want, rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()


# ---- without torch, and the kernels under the emulator ---------------------------------------------------------


def test_numpy_arrays() -> None:
    x = normal(1, 3, 5, 8, 12)
    want = haar_patch(x, 4)
    y = np.empty(want.shape, np.float32)
    _C.haar_patch(x.numpy(), 4, y)
    assert np.array_equal(y, want.numpy())
    back = np.empty(x.shape, np.float32)
    _C.haar_patch(y, 4, back, inverse=True)
    assert np.array_equal(back, haar_unpatch(want, 4).numpy())
    flipped = np.ascontiguousarray(x.numpy()[..., ::-1])
    _C.haar_patch(flipped[..., ::-1], 4, y)
    assert np.array_equal(y, want.numpy())
    with pytest.raises(RuntimeError, match="patch must be 1, 2, 4 or 8, got 5"):
        _C.haar_patch(x.numpy(), 5, y)


def test_no_races_on_shared_memory() -> None:
    with SimtWorker("races") as simt:
        for seed, (patch, options) in enumerate(itertools.product((2, 8), MAPS)):
            simt.seed = seed + 1
            x = source(options, patch, 1, 1, 2, 1, 3)
            want = haar_patch(x, patch, **options)
            y = torch.empty_like(want)
            simt.call("haar_patch", x=x, patch=patch, **options, out=y)
            assert_same_bits([y], [want], f"{patch} {options}")
