# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about lowrank_apply: adapters, the closed form of a Gaussian, gradients, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fastdiff import _C
from fastdiff.quant import facilitated_gate, gaussian_teleport, lowrank_apply, stack_adapters, wiener_denoise
from fastdiff.quant.lowrank_apply import reference, tolerance
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import linear

from tests.kit.compare import assert_close, assert_same_bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def normal(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_call(data: st.DataObject) -> None:
    def draw(low: int, high: int, name: str) -> int:
        return data.draw(st.integers(low, high), name)

    b, m, r = draw(1, 3, "B"), draw(1, 70, "M"), draw(1, 70, "r")
    k = data.draw(st.sampled_from([1, 3, 16, 65, 255, 256, 257, 530]), "K")
    n = data.draw(st.sampled_from([k, 1, 7, 64, 100]), "N")
    dtypes = st.sampled_from([F32, BF16, F16, F64])
    x = normal(b, m, k, dtype=data.draw(dtypes))
    if data.draw(st.booleans(), "channels first"):
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    down, up = normal(r, k, dtype=data.draw(dtypes), seed=1), normal(n, r, dtype=data.draw(dtypes), seed=2)
    if data.draw(st.booleans(), "transposed"):
        down, up = down.T.contiguous().T, up.T.contiguous().T
    some = st.sampled_from([1, b])
    shapes = {"gates": (data.draw(some), r), "offset": (data.draw(some), r), "mu": (n,), "base": (b, m, n)}
    if n == k:
        shapes["a"] = data.draw(st.sampled_from([(), (1,), (b,)]), "a")
    options = {
        name: normal(*shape, dtype=data.draw(dtypes), seed=seed)
        for seed, (name, shape) in enumerate(shapes.items())
        if data.draw(st.booleans(), name)
    }
    if "mu" in options and data.draw(st.booleans(), "b"):
        options["b"] = normal(*data.draw(st.sampled_from([(), (1,), (b,)])), seed=9)
    got, want = lowrank_apply(x, down, up, **options), reference(x, down, up, **options)
    assert_close(got, want, **tolerance(x, down, up, **options))


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(3, 5000, 3000), (200, 600, 400), (70, 9000, 9000)])
def test_threads_share_what_there_is_most_of(rows: int, inputs: int, outputs: int) -> None:
    """Rows, or the columns of factors; of which there are more than are copied in the last case."""
    rank = 33 if rows != 70 else 470
    x, down, up = normal(rows, inputs), normal(rank, inputs, seed=1) / 60, normal(outputs, rank, seed=2)
    got = lowrank_apply(x, down, up)
    assert_close(got, reference(x, down, up), **tolerance(x, down, up))
    torch.set_num_threads(1)
    assert_same_bits([lowrank_apply(x, down, up)], [got])
    assert_same_bits([lowrank_apply(x[:2], down, up)], [got[:2]])  # whoever shares the batch


@pytest.mark.parametrize("rank", [1, 16, 17, 33, 128, 129])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (40, 70), (257, 64), (320, 320), (530, 200)])
def test_factors_of_bfloat16(inputs: int, outputs: int, rank: int) -> None:
    """All rows of several blocks, which AMX takes by tiles; every option that changes p or what is behind it."""
    x, down = normal(3, 37, inputs, dtype=BF16), normal(rank, inputs, dtype=BF16, seed=1)
    up = normal(outputs, rank, dtype=BF16, seed=2)
    options = {
        "gates": normal(3, rank), "offset": normal(1, rank, seed=3), "mu": normal(outputs), "b": normal(3),
        "base": normal(3, 37, outputs, dtype=BF16, seed=4), **({"a": normal(3)} if inputs == outputs else {}),
    }  # fmt: skip
    for extra in ({}, options):
        got = lowrank_apply(x, down, up, **extra)
        assert_close(got, reference(x, down, up, **extra), **tolerance(x, down, up, **extra))
        strided = x.transpose(1, 2).contiguous().transpose(1, 2)
        assert_same_bits([lowrank_apply(strided, down.T.contiguous().T, up.T.contiguous().T, **extra)], [got])


def test_products_with_the_rank_are_not_rounded_to_bfloat16() -> None:
    x, base = torch.ones(70, 257, dtype=BF16), torch.full((70, 5), -256.0, dtype=BF16)
    got = lowrank_apply(x, torch.ones(1, 257, dtype=BF16), torch.ones(5, 1, dtype=BF16), base=base)
    assert torch.equal(got, torch.ones_like(base))  # 257 has nine bits


def test_infinity_in_factors_of_bfloat16() -> None:
    """What p loses as bfloat16 may be 0, which must not meet an infinity."""
    x, down, up = torch.ones(1, 70, 8, dtype=BF16), torch.ones(2, 8, dtype=BF16), normal(9, 2, dtype=BF16)
    up[3, 1] = float("inf")
    assert_close(lowrank_apply(x, down, up), reference(x, down, up), **tolerance(x, down, up))
    near = {"offset": torch.tensor([[3.4e38, -3.4e38]])}  # finite, and not as bfloat16
    small = torch.full((9, 2), 2.0**-20, dtype=BF16)
    small[:, 1] = 0
    assert_close(
        lowrank_apply(x, down, small, **near),
        reference(x, down, small, **near),
        **tolerance(x, down, small, **near),
    )
    x[0, 5, 2], up = float("-inf"), up.clamp(-1, 1).abs()
    assert_close(lowrank_apply(x, down, up), reference(x, down, up), **tolerance(x, down, up))


def test_over_base_and_over_x() -> None:
    x, down, up, base = normal(2, 70, 50), normal(5, 50), normal(50, 5), normal(2, 70, 50, seed=3)
    want = lowrank_apply(x, down, up, base=base, a=normal())
    assert lowrank_apply(x, down, up, base=base, a=normal(), out=base) is base
    assert_same_bits([base], [want])
    want = lowrank_apply(x, down, up, a=normal())
    assert_same_bits([lowrank_apply(x, down, up, a=normal(), out=x)], [want])


def test_strides_beyond_32_bits() -> None:
    """The memory between the samples is never touched, so that the system need not have it."""
    room = torch.empty(2**31 + 200, dtype=BF16)
    x = room.as_strided((2, 3, 8), (2**31 + 7, 8, 1)).copy_(normal(2, 3, 8, dtype=BF16))
    down, up = normal(2, 8), normal(5, 2)
    want = lowrank_apply(x.contiguous(), down, up)
    out = torch.empty_like(room).as_strided((2, 3, 5), (2**31 + 7, 5, 1))
    assert_same_bits([lowrank_apply(x, down, up), lowrank_apply(x, down, up, out=out)], [want, want])


# ---- adapters --------------------------------------------------------------------------------------------------


def test_is_the_sum_of_spm_layers() -> None:
    """SPMLayer.forward of each concept, added up, with gates for each sample: what weights merged cannot do."""
    x, weight = normal(3, 20, 40, dtype=F64), normal(24, 40, dtype=F64, seed=1)
    adapters = [
        (normal(1, 40, dtype=F64, seed=2 + k), normal(24, 1, dtype=F64, seed=9 + k), 0.5 + k)
        for k in range(5)
    ]
    gates = normal(3, 5, dtype=F64).abs()
    layer = linear(x, weight)
    want = layer.clone()
    for k, (down, up, alpha) in enumerate(adapters):
        want += gates[:, k, None, None] * linear(linear(x, down), up) * alpha
    got = lowrank_apply(x, *stack_adapters(adapters), gates=gates, base=layer)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


def test_is_lora_of_several_ranks() -> None:
    """As PEFT adds active adapters: result + lora_B(lora_A(x)) * scaling, scaling = weight alpha / r."""
    x = normal(2, 20, 40, dtype=F64)
    adapters = [
        (normal(r, 40, dtype=F64, seed=r), normal(24, r, dtype=F64, seed=2 * r), 8 * weight)
        for r, weight in ((4, 1.0), (16, 0.7))
    ]
    want = sum(linear(linear(x, down), up) * (alpha / down.shape[0]) for down, up, alpha in adapters)
    torch.testing.assert_close(lowrank_apply(x, *stack_adapters(adapters)), want, rtol=1e-13, atol=1e-13)


def test_facilitated_gate() -> None:
    prompt, concepts = normal(7, 4), torch.stack([normal(7, 4, seed=1), -normal(7, 4)])
    cosine = torch.cosine_similarity(prompt.flatten(), concepts[0].flatten(), dim=0)
    assert float(facilitated_gate(prompt, concepts, [5, 6], [[7], [5, 8, 9, 9]])) == pytest.approx(
        max(float(cosine), 1 / 3)
    )
    assert float(facilitated_gate(prompt, prompt[None], [], [[1]])) == pytest.approx(1)
    assert float(facilitated_gate(prompt, -prompt[None], [], [[1]])) == 0


# ---- a Gaussian ------------------------------------------------------------------------------------------------


class Gaussian:
    dimension, rank = 60, 7
    mean = normal(60, dtype=F64)
    basis = torch.linalg.qr(normal(60, 7, dtype=F64)).Q
    variances = normal(7, dtype=F64).square()

    def covariance(self, level: tuple[float, float]) -> Tensor:
        alpha, sigma = level
        return alpha**2 * self.basis @ self.variances.diag() @ self.basis.T + sigma**2 * torch.eye(
            60, dtype=F64
        )

    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.basis, self.variances


def numbers(*level: float) -> tuple[Tensor, Tensor]:
    alpha, sigma = (torch.tensor(v, dtype=F64) for v in level)
    return alpha, sigma


def test_teleport_carries_one_gaussian_to_the_other() -> None:
    """The map is affine and symmetric, and its matrix takes the one covariance to the other."""
    g, start, end = Gaussian(), (0.3, 0.95), (0.8, 0.6)
    points = torch.cat([torch.zeros(1, 60, dtype=F64), torch.eye(60, dtype=F64)])
    moved = gaussian_teleport(points, *g.arguments(), start=numbers(*start), end=numbers(*end))
    matrix = (moved[1:] - moved[0]).T
    torch.testing.assert_close(moved[0] + matrix @ (start[0] * g.mean), end[0] * g.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix @ g.covariance(start) @ matrix.T, g.covariance(end), rtol=0, atol=1e-6)


def test_teleport_to_the_data_forgets_what_is_outside_the_span() -> None:
    g = Gaussian()
    x = gaussian_teleport(normal(4, 60), *g.arguments(), start=numbers(0.1, 1.0), end=numbers(1.0, 0.0))
    rest = (x.double() - g.mean) @ (torch.eye(60, dtype=F64) - g.basis @ g.basis.T)
    assert float(rest.abs().max()) < 1e-5


def test_wiener_denoiser_is_the_conditional_expectation() -> None:
    g, (alpha, sigma) = Gaussian(), (0.7, 0.5)
    x = normal(4, 60, dtype=F64)
    data = g.basis @ g.variances.diag() @ g.basis.T
    gain = alpha * data @ torch.linalg.inv(g.covariance((alpha, sigma)))
    want = g.mean + (x - alpha * g.mean) @ gain.T
    got = wiener_denoise(x, *g.arguments(), numbers(alpha, sigma))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    known = wiener_denoise(x, *g.arguments(), numbers(alpha, sigma), mean_in_basis=g.basis.T @ g.mean)
    assert_same_bits([known], [got])


# ---- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per sample"])
def test_gradients(batch: tuple[int, ...], shared: bool) -> None:
    b = 1 if shared or not batch else batch[0]
    shapes = [(*batch, 5), (3, 5), (5, 3), (b, 3), (b, 3), () if shared else (b,), (5,), (b,), (*batch, 5)]
    leaves = [normal(*s, dtype=F64, seed=n).requires_grad_() for n, s in enumerate(shapes)]

    def function(x: Tensor, down: Tensor, up: Tensor, *options: Tensor) -> Tensor:
        names = ("gates", "offset", "a", "mu", "b", "base")
        return lowrank_apply(x, down, up, **dict(zip(names, options, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("trained", range(3))
def test_gradients_of_a_factor_alone(trained: int) -> None:
    """What trains a LoRA: neither gates nor coefficients, and one tensor at a time."""
    tensors = [normal(2, 3, 5, dtype=F64), normal(2, 5, dtype=F64), normal(4, 2, dtype=F64)]
    leaf = tensors[trained].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda t: lowrank_apply(*(t if n == trained else other for n, other in enumerate(tensors))), leaf
    )


def test_gradients_have_their_tensors_dtypes() -> None:
    x, down = normal(2, 4, 8, dtype=BF16).requires_grad_(), normal(3, 8).requires_grad_()
    up, gates = normal(8, 3, dtype=F16).requires_grad_(), normal(2, 3).requires_grad_()
    lowrank_apply(x, down, up, gates=gates).sum().backward()
    assert [t.grad.dtype for t in (x, down, up, gates)] == [BF16, F32, F16, F32]


# ---- the rest --------------------------------------------------------------------------------------------------


def test_numpy() -> None:
    x, down, up, base = normal(2, 70, 24), normal(3, 24), normal(10, 3), normal(2, 70, 10)
    out = np.empty((2, 70, 10), np.float32)
    _C.lowrank_apply(x.numpy(), down.numpy(), up.numpy(), out, base=base.numpy())
    assert_same_bits([torch.from_numpy(out)], [lowrank_apply(x, down, up, base=base)])


X, DOWN, UP = normal(2, 3, 8), normal(4, 8), normal(6, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0, 0, 0], DOWN, UP), {}, r"x must have at least 1 dimension|x and up must be"),
        ((X.int(), DOWN, UP), {}, "x must be float32, float16, bfloat16 or float64, got int32"),
        ((X, DOWN[:, :7], UP), {}, r"down must have shape \[r, 8\], got \[4, 7\]"),
        ((X, DOWN, UP[:, :3]), {}, r"up must have shape \[N, 4\], got \[6, 3\]"),
        ((X, DOWN, UP.long()), {}, "up must be float32.*got int64"),
        ((X, DOWN, UP), {"gates": normal(4)}, r"gates must have shape \[2 or 1, 4\], got \[4\]"),
        ((X, DOWN, UP), {"offset": normal(3, 4)}, r"offset must have shape \[2 or 1, 4\], got \[3, 4\]"),
        ((X, DOWN, UP), {"a": normal()}, "a needs as many outputs as inputs, got 6 and 8"),
        ((X, DOWN, UP), {"b": normal()}, "b is the coefficient of mu, which is not given"),
        ((X, DOWN, UP), {"mu": normal(6), "b": normal(3)}, r"b must have shape \[\] or \[2 or 1\], got \[3\]"),
        ((X, DOWN, UP), {"mu": normal(8)}, r"mu must have shape \[6\], got \[8\]"),
        ((X, DOWN, UP), {"base": X}, r"base must have shape \[2, 3, 6\], got \[2, 3, 8\]"),
        ((X, DOWN, UP), {"out": normal(2, 3, 8)}, r"out must have shape \[2, 3, 6\], got \[2, 3, 8\]"),
        ((X, DOWN, UP), {"out": normal(2, 3, 6).half()}, "out must be float32 like x, got float16"),
        ((X, DOWN, UP), {"out": torch.zeros(6).expand(2, 3, 6)}, "out must not have elements that share memory"),
    ],
)  # fmt: skip
def test_refuses(arguments: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::lowrank_apply: ({message})"):
        lowrank_apply(*arguments, **options)


def test_refuses_overlap_and_gradients_with_out() -> None:
    room = normal(60)
    base, out = room[:36].view(2, 3, 6), room[6:42].view(2, 3, 6)
    with pytest.raises(RuntimeError, match="out must be exactly base or not share memory with base"):
        lowrank_apply(X, DOWN, UP, base=base, out=out)
    with pytest.raises(RuntimeError, match="out must not share memory with gates"):
        lowrank_apply(X, DOWN, UP, gates=room[8:12].view(1, 4), out=out)
    with pytest.raises(NotImplementedError, match="out= does not record gradients"):
        lowrank_apply(X, DOWN.clone().requires_grad_(), UP, out=torch.empty(2, 3, 6))
