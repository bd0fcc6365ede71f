# SPDX-License-Identifier: Apache-2.0
"""AttentionPlan: every pattern against a mask made token by token, the packing of bits, what can be asked, refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from fastdiff.attention import AttentionPlan, block_sparse_attention, tile_order
from torch import Tensor

from tests.attention.test_block_sparse_attention import qkv, random_mask
from tests.kit.compare import assert_same_bits

Plan, Shape = AttentionPlan, tuple[int, ...]


def places(shape: Shape) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(n) for n in shape)))


def mask_of(tokens: list[Any], sees: Any) -> Tensor:
    return torch.tensor([[bool(sees(q, k)) for k in tokens] for q in tokens])


# ---- masks there and back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [(16, 16), (48, 32), (64, 64), (128, 16)], ids=str)
@pytest.mark.parametrize("shape", [(40, 40), (1, 1), (65, 130), (2, 33, 50), (2, 3, 17, 90)], ids=str)
def test_masks_there_and_back(shape: Shape, block: tuple[int, int]) -> None:
    for share in (0.0, 0.01, 0.5, 1.0):
        mask = random_mask(*shape, share=share)
        plan = AttentionPlan.from_mask(mask, block)
        assert plan.shape == (*(1,) * (4 - len(shape)), *shape)
        assert torch.equal(plan.to_mask().view(shape), mask)
        assert math.isclose(plan.density, mask.double().mean(), abs_tol=1e-12)
        assert (plan.masks is None) == (share in (0.0, 1.0) or mask.numel() == 1)


def test_the_last_bit_of_a_word() -> None:
    mask = torch.zeros(64, 16, dtype=torch.bool)
    mask[31, 2] = mask[63, 5] = mask[32, 9] = True
    plan = AttentionPlan.from_mask(mask, (64, 16))
    assert plan.bits is not None
    assert plan.bits[0, 2].tolist() == [-(2**31), 0]
    assert plan.bits[0, 5].tolist() == [0, -(2**31)]
    assert plan.bits[0, 9].tolist() == [0, 1]
    assert torch.equal(plan.to_mask()[0, 0], mask)


def test_blocks() -> None:
    blocks = random_mask(2, 3, 5, 4, share=0.5)
    plan = AttentionPlan.from_blocks(blocks, queries=75, keys=64, block=(16, 16))
    assert torch.equal(plan.to_blocks(), blocks)
    want = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, :75]
    assert torch.equal(plan.to_mask(), want)
    assert math.isclose(plan.density, want.double().mean())
    assert math.isclose(plan.block_density, blocks.double().mean())


# ---- patterns --------------------------------------------------------------------------------------------------


def nearest(i: int, n: int, window: int) -> range:
    start = max(0, min(i - window // 2, n - window))
    return range(start, min(n, start + window))


@pytest.mark.parametrize(
    ("shape", "window"),
    [((50,), (7,)), ((9, 11), (3, 5)), ((9, 11), (4, 40)), ((3, 6, 5), (3, 3, 1))],
    ids=str,
)
def test_neighborhood(shape: Shape, window: Shape) -> None:
    def sees(q: Shape, k: Shape) -> bool:
        return all(b in nearest(a, n, w) for a, b, n, w in zip(q, k, shape, window, strict=True))

    plan = AttentionPlan.neighborhood(shape, window=window, block=(16, 16))
    assert torch.equal(plan.to_mask()[0, 0], mask_of(places(shape), sees))
    assert set(plan.to_mask().sum(-1).flatten().tolist()) == {
        math.prod(min(w, n) for w, n in zip(window, shape, strict=True))
    }


@pytest.mark.parametrize("n", [12, 13, 14])
def test_dilated_neighborhood(n: int) -> None:
    """Of the tokens of the same residue, as NATTEN has it."""

    def sees(q: int, k: int) -> bool:
        residue = [i for i in range(n) if i % 3 == q % 3]
        return k in [residue[j] for j in nearest(residue.index(q), len(residue), 3)]

    plan = AttentionPlan.neighborhood((n,), window=(3,), dilation=(3,), block=(16, 16))
    assert torch.equal(plan.to_mask()[0, 0], mask_of(list(range(n)), sees))


def test_neighborhood_in_the_order_of_tiles() -> None:
    shape, tile = (20, 32), (4, 4)
    order = tile_order(shape, tile)
    rows = AttentionPlan.neighborhood(shape, window=(9, 9), block=(16, 16))
    tiles = AttentionPlan.neighborhood(shape, window=(9, 9), tile=tile, block=(16, 16))
    assert torch.equal(tiles.to_mask()[0, 0], rows.to_mask()[0, 0][order][:, order])
    assert tiles.block_density < rows.block_density


def test_tile_order() -> None:
    order = tile_order((4, 6), (2, 3))
    assert order.tolist()[:12] == [0, 1, 2, 6, 7, 8, 3, 4, 5, 9, 10, 11]
    assert torch.equal(order[order.argsort()], torch.arange(24))


@pytest.mark.parametrize("window", [(1, 1), (3, 1), (3, 3), (2, 9)], ids=str)
def test_sliding_tile(window: Shape) -> None:
    shape, tile = (16, 24), (4, 8)
    grid = tuple(n // t for n, t in zip(shape, tile, strict=True))
    order = tile_order(shape, tile)
    tokens = [places(shape)[n] for n in order.tolist()]

    def sees(q: Shape, k: Shape) -> bool:
        return all(
            b // t in nearest(a // t, n, w) for a, b, n, t, w in zip(q, k, grid, tile, window, strict=True)
        )

    plan = AttentionPlan.sliding_tile(shape, tile=tile, window=window)
    assert plan.block == (32, 32)
    assert plan.masks is None
    assert torch.equal(plan.to_mask()[0, 0], mask_of(tokens, sees))


@pytest.mark.parametrize(("frames", "tokens"), [(9, 8), (33, 4), (3, 20)])
def test_radial(frames: int, tokens: int) -> None:
    def sees(q: tuple[int, int], k: tuple[int, int]) -> bool:
        apart = abs(q[0] - k[0])
        spread = 2 ** int(math.log2(max(apart, 1)))
        if k[0] == 0 or (spread <= tokens and abs(q[1] - k[1]) + 1 <= tokens / spread):
            return True
        return apart % math.ceil(spread / tokens) == 0 and q[1] == k[1]

    plan = AttentionPlan.radial(frames, tokens, block=(16, 16))
    assert torch.equal(plan.to_mask()[0, 0], mask_of(places((frames, tokens)), sees))


def test_strided() -> None:
    plan = AttentionPlan.strided(50, stride=7, local=3, block=(16, 16))
    want = mask_of(list(range(50)), lambda q, k: abs(q - k) < 3 or (q - k) % 7 == 0)
    assert torch.equal(plan.to_mask()[0, 0], want)


def test_rules_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large plans are made a few rows of blocks at a time."""
    from fastdiff.attention import _patterns

    whole = AttentionPlan.from_rule(lambda q, k: k <= q, 100, block=(16, 16))
    monkeypatch.setattr(_patterns, "CHUNK", 1)
    pieces = AttentionPlan.from_rule(lambda q, k: k <= q, 100, block=(16, 16))
    assert torch.equal(whole.to_mask()[0, 0], torch.ones(100, 100, dtype=torch.bool).tril())
    assert torch.equal(whole.to_mask(), pieces.to_mask())


def test_topk_and_cumulative_mass() -> None:
    q, k, _ = qkv(2, 4, 70, 16, keys=100, kv_heads=2)
    q, k = q * 4, k * 4
    means = [torch.stack([b.mean(2) for b in t.split(16, 2)], 2) for t in (q, k)]
    scores = means[0] @ means[1].repeat_interleave(2, 1).mT / 4
    top = AttentionPlan.topk(q, k, 3, block=(16, 16)).to_blocks()
    want = torch.zeros_like(top).scatter_(-1, scores.topk(3, -1).indices, True)
    assert torch.equal(top, want)
    share = scores.softmax(-1)
    for mass in (0.3, 0.9, 1.0):
        chosen = AttentionPlan.cumulative_mass(q, k, mass, block=(16, 16)).to_blocks()
        kept = torch.where(chosen, share, 0)
        assert bool((kept.sum(-1) >= mass - 1e-5).all())
        least = torch.where(chosen, share, 2).amin(-1)
        assert bool((kept.sum(-1) - least < mass).all())
    assert_same_bits([AttentionPlan.topk(q, k, 99, block=(16, 16)).to_blocks()], [torch.ones_like(top)])


def test_a_budget_for_each_head() -> None:
    q, k, _ = qkv(1, 3, 70, 16, keys=100)
    count = torch.tensor([[1, 2, 99]])
    assert AttentionPlan.topk(q, k, count, block=(16, 16)).to_blocks().sum(-1)[0, :, 0].tolist() == [1, 2, 7]
    plan = AttentionPlan.cumulative_mass(q, k, torch.tensor([[0.1, 0.5, 1.0]]), block=(16, 16))
    each = [AttentionPlan.cumulative_mass(q, k, mass, block=(16, 16)).to_blocks() for mass in (0.1, 0.5, 1.0)]
    assert torch.equal(plan.to_blocks(), torch.cat([b[:, n : n + 1] for n, b in enumerate(each)], 1))


def test_choices_record_no_gradients() -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 2, 40, 16))
    plan = AttentionPlan.topk(q, k, 2, block=(16, 16))
    block_sparse_attention(q, k, v, plan)[0].sum().backward()
    assert q.grad is not None


def test_masks_that_are_not_compacted() -> None:
    """The bits of all blocks, wherever they are used."""
    mask = random_mask(2, 3, 50, 70, share=0.05)
    mask[0, 0, :32] = True
    plan = AttentionPlan.from_mask(mask, (32, 16), compact=False)
    assert plan.bits is not None
    assert plan.bits.shape == (2 * 3 * 2 * 5, 16, 1)
    assert torch.equal(plan.to_mask(), mask)
    tensors = qkv(2, 3, 50, 16, keys=70)
    want = block_sparse_attention(*tensors, AttentionPlan.from_mask(mask, (32, 16)))
    assert_same_bits(block_sparse_attention(*tensors, plan), want)


@pytest.mark.parametrize(
    "make",
    [
        lambda q, k, m: AttentionPlan.topk(q, k, 2, block=(16, 16)),
        lambda q, k, m: AttentionPlan.cumulative_mass(q, k, 0.9, block=(16, 16)),
        lambda q, k, m: AttentionPlan.from_mask(m, (16, 16), compact=False),
        lambda q, k, m: AttentionPlan.from_blocks(m[:3, :3], queries=40, keys=40, block=(16, 16)),
    ],
    ids=["topk", "cumulative_mass", "from_mask", "from_blocks"],
)
def test_does_not_wait_for_the_device(make: Any) -> None:
    """Nothing asks for a value: it works on tensors that have none, and in one compiled graph with its use."""
    q, k, v = qkv(1, 2, 40, 16)
    mask = random_mask(40, 40, share=0.3)
    with torch._subclasses.FakeTensorMode() as mode:
        assert make(*(mode.from_tensor(t) for t in (q, k, mask))).offsets.shape[-1] == 4

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return block_sparse_attention(q, k, v, make(q, k, mask))

    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(q, k, v, mask), attend(q, k, v, mask))
    torch._dynamo.reset()


def test_a_shorter_last_block_is_whole_in_a_union() -> None:
    halves = torch.zeros(2, 40, 50, dtype=torch.bool)
    halves[0, ::2] = halves[1, 1::2] = True
    plan = AttentionPlan.union(*(AttentionPlan.from_mask(half, (32, 16)) for half in halves))
    assert plan.masks is None
    assert plan.density == 1


def test_union() -> None:
    masks = [random_mask(*shape, 40, 50, share=0.02, seed=n) for n, shape in enumerate([(), (2, 1), (3,)])]
    masks[0][:16, :16] = True
    plan = AttentionPlan.union(*(AttentionPlan.from_mask(m, (16, 16)) for m in masks))
    assert torch.equal(plan.to_mask(), (masks[0] | masks[1]) | masks[2])
    whole = AttentionPlan.union(plan, AttentionPlan.dense(40, 50, block=(16, 16)))
    assert whole.masks is None
    assert whole.density == 1


# ---- use -------------------------------------------------------------------------------------------------------


def test_plans_move() -> None:
    plan = AttentionPlan.from_mask(random_mask(20, 20, share=0.5), (16, 16))
    assert plan.to("meta").offsets.device.type == "meta"
    assert torch.equal(plan.to("cpu").to_mask(), plan.to_mask())


def test_a_video_in_the_order_of_tiles() -> None:
    """Tokens there and back: the result is that of the mask in the tokens' own order."""
    shape, tile = (4, 8, 8), (2, 4, 4)
    q, k, v = qkv(1, 2, 256, 16)
    order = tile_order(shape, tile)
    plan = AttentionPlan.sliding_tile(shape, tile=tile, window=(1, 2, 1))
    out, _ = block_sparse_attention(*(t[:, :, order] for t in (q, k, v)), plan)
    back = order.argsort()
    mask = plan.to_mask()[0, 0][back][:, back]
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(out[:, :, back], want)


def test_plot() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    plan = AttentionPlan.neighborhood((8, 9), window=(3, 3), block=(16, 16))
    ax = plan.plot()
    (image,) = ax.get_images()
    assert image.get_array().shape == (5, 5)
    assert 0 < image.get_array().max() <= 1
    assert ax.get_xlim() == (0, 72)
    assert ax.get_ylim() == (72, 0)
    assert "%" in ax.get_title()
    other = AttentionPlan.dense(16, 16).plot(ax)
    assert other is ax
    matplotlib.pyplot.close("all")


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan.from_mask(torch.ones(3, 3)), "mask must be bool with 2 to 4 dimensions, got torch.float32"),
        (lambda: Plan.from_mask(torch.ones(3, 3, dtype=torch.bool), (8, 16)), "block must be two multiples of 16"),
        (lambda: Plan.from_blocks(torch.ones(2, 2, dtype=torch.bool), queries=300, keys=100),
         r"blocks must have shape \[..., 5, 2\], got \[1, 1, 2, 2\]"),
        (lambda: Plan.neighborhood((4, 4), window=(3,)), "window must be 2 positive numbers like shape"),
        (lambda: Plan.neighborhood((1, 2, 3, 4), window=(3,)), "shape must be 1 to 3 positive sizes"),
        (lambda: Plan.sliding_tile((6, 8), tile=(4, 4), window=(1, 1)), r"shape must be whole tiles of \(4, 4\)"),
        (lambda: Plan.sliding_tile((6, 6), tile=(3, 3), window=(1, 1)), "tile must have a multiple of 16 tokens"),
        (lambda: Plan.sliding_tile((8, 8), tile=(8, 8), window=(1, 1), block=48), "tile must have a multiple of 48"),
        (lambda: Plan.radial(0, 4), "frames and tokens must be positive, got 0 and 4"),
        (lambda: Plan.strided(10, stride=0), "stride and local must be positive, got 0 and 1"),
        (lambda: Plan.topk(*qkv(1, 1, 20, 8)[:2], 0), "count must be at least 1, got 0"),
        (lambda: Plan.cumulative_mass(*qkv(1, 1, 20, 8)[:2], 1.5), "mass must be above 0 and at most 1, got 1.5"),
        (lambda: Plan.union(), "plans must be at least one"),
        (lambda: Plan.union(Plan.dense(4, 4), Plan.dense(4, 5)), "must have the same tokens"),
        (lambda: tile_order((4, 6), (4, 4)), "shape must be whole tiles"),
    ],
)  # fmt: skip
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
