# SPDX-License-Identifier: Apache-2.0
"""Which blocks of keys each block of queries attends to."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff.attention._patterns import (
    Rule,
    check_grid,
    check_tiles,
    kinds_of,
    neighborhood,
    pooled_scores,
    radial,
    strided,
)
from fastdiff.attention.list_blocks import IN_PART, WHOLE, list_blocks
from fastdiff.attention.mask_blocks import mask_blocks
from fastdiff.attention.select_blocks import select_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCK = (64, 64)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """The pairs of tokens that see each other, as blocks: for each block of queries a list of blocks of keys.

    Make one with :meth:`from_mask`, :meth:`from_blocks` or one of the patterns below, keep it, and hand it to
    :func:`block_sparse_attention` at every layer and step that has this pattern. Its tensors may be used as they are;
    they can be replaced as long as their shapes stay, in a captured CUDA graph too.

    Attributes:
        queries, keys: N_q and N_kv.
        block: tokens of a block of queries, and of one of keys: multiples of 16, at most 256.
        offsets: int32 ``[B or 1, H or 1, R + 1]``, R = ceil(N_q / block[0]): row r of a head has the entries
            offsets[r] ... offsets[r + 1] - 1.
        columns: int32 ``[E]``: the block of keys of each entry, ascending within a row. There may be more than are
            used, between lists too.
        masks: int32 ``[E]``: -1 where a block is seen whole, else which of ``bits`` says what is seen. None: all whole.
        bits: int32 ``[M, block[1], ceil(block[0] / 32)]``: bit q % 32 of word q // 32 of a key, for query q of the
            block.
        parts: the plans that :meth:`beside` has put together; none otherwise.
    """

    queries: int
    keys: int
    block: tuple[int, int]
    offsets: Tensor
    columns: Tensor
    masks: Tensor | None = None
    bits: Tensor | None = None
    parts: tuple[AttentionPlan, ...] = ()

    # ---- what can be asked

    @property
    def sets(self) -> list[int]:
        """The keys of each set that has a softmax of its own; none: all keys are one."""
        return [part.keys for part in self.parts]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B or 1, H or 1, N_q, N_kv."""
        return (self.offsets.shape[0], self.offsets.shape[1], self.queries, self.keys)

    @property
    def density(self) -> float:
        """The share of all pairs of tokens that see each other. Waits for the device."""
        if self.parts:
            return sum(part.density * part.keys for part in self.parts) / max(1, self.keys)
        pairs = math.prod(self.shape)
        row, entry = self._entries()
        row, column = row % max(1, self._grid()[0]), self.columns[entry].long()
        inside = _sizes(self.queries, self.block[0], row) * _sizes(self.keys, self.block[1], column)
        if self.masks is not None and self.bits is not None:
            partial = self.masks[entry].long()
            counts = torch.cat([_unpacked(b, self.block[0]).sum((1, 2)) for b in self.bits.split(4096)])
            inside = torch.where(partial >= 0, counts[partial.clamp(min=0)], inside)
        return float(inside.sum()) / pairs if pairs else 0.0

    @property
    def block_density(self) -> float:
        """The share of all blocks that are computed: what time goes with. Waits for the device."""
        blocks = self.offsets[..., -1] - self.offsets[..., 0]
        rows, columns = self._grid()
        lists = self.offsets.shape[0] * self.offsets.shape[1]
        return float(blocks.sum()) / max(1, lists * rows * columns)

    def to(self, device: torch.device | str) -> AttentionPlan:
        """The same plan on another device."""
        masks, bits = (None if t is None else t.to(device) for t in (self.masks, self.bits))
        lists = self.offsets.to(device), self.columns.to(device), masks, bits
        return AttentionPlan(
            self.queries, self.keys, self.block, *lists, tuple(part.to(device) for part in self.parts)
        )

    def to_blocks(self) -> Tensor:
        """bool ``[B or 1, H or 1, R, C]``: which blocks are computed."""
        rows, columns = self._grid()
        samples, heads = self.offsets.shape[:2]
        blocks = torch.zeros(samples, heads, rows, columns, dtype=torch.bool, device=self.offsets.device)
        row, entry = self._entries()
        blocks.view(-1, columns)[row, self.columns[entry].long()] = True
        return blocks

    def to_mask(self) -> Tensor:
        """bool ``[B or 1, H or 1, N_q, N_kv]``, as ``scaled_dot_product_attention`` takes it."""
        if self.parts:
            return torch.cat([part.to_mask().expand(*self.shape[:2], -1, -1) for part in self.parts], -1)
        (block_q, block_k), (rows, columns) = self.block, self._grid()
        samples, heads = self.offsets.shape[:2]
        device = self.offsets.device
        tiles = torch.zeros(
            samples * heads * rows, columns, block_q, block_k, dtype=torch.bool, device=device
        )
        row, entry = self._entries()
        tiles[row, self.columns[entry].long()] = self._seen(entry)
        whole = tiles.view(samples, heads, rows, columns, block_q, block_k).transpose(3, 4)
        return whole.reshape(samples, heads, rows * block_q, columns * block_k)[
            ..., : self.queries, : self.keys
        ]

    def plot(self, ax: Axes | None = None, *, sample: int = 0, head: int = 0) -> Axes:
        """Draw the blocks of one head, with matplotlib: dark where all of a block is seen, lighter where some is.

        Args:
            ax: where; default: new axes.
            sample, head: which list, where they differ.

        Returns: the axes.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        samples, heads = self.offsets.shape[:2]
        rows, columns = self._grid()
        mask = self.to_mask()[min(sample, samples - 1), min(head, heads - 1)].float()
        margins = (0, columns * self.block[1] - self.keys, 0, rows * self.block[0] - self.queries)
        whole = torch.nn.functional.pad(mask, margins).view(rows, self.block[0], columns, self.block[1])
        share = whole.mean((1, 3)).cpu()
        extent = (0, columns * self.block[1], rows * self.block[0], 0)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1, extent=extent, interpolation="nearest", aspect="auto")
        ax.set(xlabel="key", ylabel="query", title=f"{self.block_density:.1%} of the blocks")
        ax.set(xlim=(0, self.keys), ylim=(self.queries, 0))
        return ax

    def _grid(self) -> tuple[int, int]:
        columns = sum(-(-keys // self.block[1]) for keys in self.sets or [self.keys])
        return -(-self.queries // self.block[0]), columns

    def _entries(self) -> tuple[Tensor, Tensor]:
        """Of all entries in use: the row of blocks, counted over all heads, and the entry's number."""
        begin, end = self.offsets[..., :-1].reshape(-1).long(), self.offsets[..., 1:].reshape(-1).long()
        counts = end - begin
        row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        first = torch.repeat_interleave(begin - (counts.cumsum(0) - counts), counts)
        return row, first + torch.arange(len(row), device=row.device)

    # ---- how it is made

    @classmethod
    def from_blocks(
        cls, blocks: Tensor, *, queries: int, keys: int, block: tuple[int, int] = BLOCK
    ) -> AttentionPlan:
        """Blocks that are seen whole. Does not wait for the device.

        Args:
            blocks: bool ``[R, C]``, ``[H, R, C]`` or ``[B, H, R, C]`` (sizes of 1 for all samples or heads): which
                blocks of C = ceil(keys / block[1]) are seen by which of R = ceil(queries / block[0]).
            queries, keys, block: as in the plan.
        """
        blocks = _four_dimensions("blocks", blocks)
        _check_block(block)
        want = (-(-queries // block[0]), -(-keys // block[1]))
        if tuple(blocks.shape[2:]) != want:
            raise ValueError(
                f"AttentionPlan: blocks must have shape [..., {want[0]}, {want[1]}], got {list(blocks.shape)}"
            )
        offsets, columns, _ = list_blocks(blocks)
        return cls(queries, keys, block, offsets, columns)

    @classmethod
    def from_mask(
        cls, mask: Tensor, block: tuple[int, int] = BLOCK, *, compact: bool = True
    ) -> AttentionPlan:
        """Any pattern: blocks of which nothing is seen are left out, the others keep their bits.

        Args:
            mask: bool ``[N_q, N_kv]``, ``[H, N_q, N_kv]`` or ``[B, H, N_q, N_kv]``, True where a query sees a key, as
                for ``scaled_dot_product_attention``. Sizes of 1 stand for all samples or heads.
            block: tokens of a block of queries, and of one of keys.
            compact: keep bits only of blocks that are seen in part, and none if there are none. Waits for the device.
                False: keep bits of all blocks, an eighth of the mask's bytes, and do not wait, so that the mask may
                change at every step.
        """
        mask = _four_dimensions("mask", mask)
        _check_block(block)
        queries, keys = mask.shape[2:]
        kinds, bits = mask_blocks(mask, block)
        if compact:
            return cls._from_kinds(kinds, bits[kinds.flatten() == IN_PART], queries, keys, block)
        return cls(queries, keys, block, *list_blocks(kinds), bits)

    @classmethod
    def _from_kinds(
        cls, kinds: Tensor, bits: Tensor, queries: int, keys: int, block: tuple[int, int]
    ) -> AttentionPlan:
        """Of kinds as :func:`mask_blocks` gives them, and the bits of the blocks that are seen in part."""
        offsets, columns, masks = list_blocks(kinds)
        if not len(bits):
            return cls(queries, keys, block, offsets, columns)
        rank = (kinds.flatten() == IN_PART).cumsum(0) - 1
        masks = torch.where(masks < 0, -1, rank[masks.clamp(min=0)]).int()
        return cls(queries, keys, block, offsets, columns, masks, bits)

    @classmethod
    def dense(
        cls, queries: int, keys: int, *, block: tuple[int, int] = BLOCK, device: Any = None
    ) -> AttentionPlan:
        """Every query sees every key."""
        shape = (-(-queries // block[0]), -(-keys // block[1]))
        every = torch.ones(shape, dtype=torch.bool, device=device)
        return cls.from_blocks(every, queries=queries, keys=keys, block=block)

    # ---- patterns, whose rules are in _patterns.py

    @classmethod
    def sliding_tile(
        cls,
        shape: Sequence[int],
        *,
        tile: Sequence[int],
        window: Sequence[int],
        block: int | None = None,
        device: torch.device | str | None = None,
    ) -> AttentionPlan:
        """Tiles that see the tiles around them, whole: no block is seen in part (Zhang et al. 2025, STA).

        Args:
            shape: of the grid of tokens, 1 to 3 sizes such as (T, H, W): whole tiles. The tokens are in the order of
                :func:`tile_order`.
            tile: its size, such as (6, 8, 8). Its tokens are a multiple of 16.
            window: how many tiles are seen along each axis, at the edges too: there the window does not move on.
            block: tokens of a block; default: the largest multiple of 16 up to 128 that divides a tile's tokens.
            device: of the plan.
        """
        check_grid("sliding_tile", shape, tile=tile, window=window)
        check_tiles("sliding_tile", shape, tile)
        tokens = math.prod(tile)
        size = block or max((n for n in range(16, 129, 16) if tokens % n == 0), default=0)
        if size == 0 or tokens % size:
            raise ValueError(
                f"AttentionPlan.sliding_tile: tile must have a multiple of {size or 16} tokens, got {tuple(tile)}"
            )
        grid = tuple(n // t for n, t in zip(shape, tile, strict=True))
        numbers = torch.arange(math.prod(grid), device=device)
        seen = neighborhood(grid, window, (1,) * len(grid), None)(numbers[:, None], numbers)
        each = tokens // size
        blocks = seen.repeat_interleave(each, 0).repeat_interleave(each, 1)
        count = math.prod(shape)
        return cls.from_blocks(blocks, queries=count, keys=count, block=(size, size))

    @classmethod
    def neighborhood(
        cls,
        shape: Sequence[int],
        *,
        window: Sequence[int],
        dilation: Sequence[int] | None = None,
        tile: Sequence[int] | None = None,
        block: tuple[int, int] = BLOCK,
        device: torch.device | str | None = None,
    ) -> AttentionPlan:
        """Each token sees the nearest tokens along each axis (Hassani et al. 2023, Neighborhood Attention).

        Args:
            shape: of the grid of tokens, 1 to 3 sizes.
            window: how many are seen along each axis, at the edges too: there the window does not move on.
            dilation: how far apart they are along each axis; default: 1.
            tile: the order of the tokens: None: row by row; else that of :func:`tile_order` with such tiles, of which
                fewer blocks are seen in part.
            block, device: of the plan.
        """
        apart = (1,) * len(shape) if dilation is None else dilation
        check_grid("neighborhood", shape, window=window, dilation=apart)
        if tile is not None:
            check_grid("neighborhood", shape, tile=tile)
            check_tiles("neighborhood", shape, tile)
        return cls.from_rule(
            neighborhood(shape, window, apart, tile), math.prod(shape), block=block, device=device
        )

    @classmethod
    def radial(
        cls,
        frames: int,
        tokens: int,
        *,
        block: tuple[int, int] = BLOCK,
        device: torch.device | str | None = None,
    ) -> AttentionPlan:
        """Of a video: the farther apart two frames are, the fewer tokens see each other (Li et al. 2025, Radial
        Attention).

        Between frames d apart, with s = 2^floor(log2 max(d, 1)), tokens see those at most tokens/s - 1 places away;
        where s is more than ``tokens``, only the same place in every ceil(s / tokens)-th frame. All see the first
        frame.

        Args:
            frames: how many frames.
            tokens: of one frame.
            block, device: of the plan.
        """
        if frames < 1 or tokens < 1:
            raise ValueError(
                f"AttentionPlan.radial: frames and tokens must be positive, got {frames} and {tokens}"
            )
        return cls.from_rule(radial(frames, tokens), frames * tokens, block=block, device=device)

    @classmethod
    def strided(
        cls,
        tokens: int,
        *,
        stride: int,
        local: int = 1,
        block: tuple[int, int] = BLOCK,
        device: torch.device | str | None = None,
    ) -> AttentionPlan:
        """Tokens see those less than ``local`` away, and those a multiple of ``stride`` away (Child et al. 2019).

        Args:
            tokens: how many there are.
            stride, local: at least 1.
            block, device: of the plan.
        """
        if stride < 1 or local < 1:
            raise ValueError(
                f"AttentionPlan.strided: stride and local must be positive, got {stride} and {local}"
            )
        return cls.from_rule(strided(stride, local), tokens, block=block, device=device)

    @classmethod
    def from_rule(
        cls,
        rule: Rule,
        queries: int,
        keys: int | None = None,
        *,
        block: tuple[int, int] = BLOCK,
        device: torch.device | str | None = None,
    ) -> AttentionPlan:
        """Any pattern that is a function of two tokens' numbers, without a mask of all pairs in memory.

        Args:
            rule: rule(q, k) with int64 ``[n, 1]`` and ``[m]`` gives bool ``[n, m]``: which of these queries see which
                of these keys.
            queries, keys: how many; default: as many keys as queries.
            block, device: of the plan.
        """
        keys = queries if keys is None else keys
        _check_block(block)
        kinds, bits = kinds_of(rule, queries, keys, block, device)
        return cls._from_kinds(kinds, bits, queries, keys, block)

    @classmethod
    def topk(
        cls,
        q: Tensor,
        k: Tensor,
        count: int | Tensor,
        *,
        block: tuple[int, int] = BLOCK,
        scale: float | None = None,
    ) -> AttentionPlan:
        """For each block of queries the blocks of keys with the largest scores between means. Does not wait for the
        device.

        Args:
            q, k: queries and keys, as for :func:`block_sparse_attention`; a list for each sample and head.
            count: how many blocks of keys, at least 1; or int64 ``[B or 1, H or 1]``.
            block: of the plan.
            scale: of the scores; default: 1/sqrt(D).
        """
        if not isinstance(count, Tensor) and count < 1:
            raise ValueError(f"AttentionPlan.topk: count must be at least 1, got {count}")
        chosen = select_blocks(pooled_scores(q, k, block, scale), count=count)
        return cls.from_blocks(chosen, queries=q.shape[2], keys=k.shape[2], block=block)

    @classmethod
    def cumulative_mass(
        cls,
        q: Tensor,
        k: Tensor,
        mass: float | Tensor,
        *,
        block: tuple[int, int] = BLOCK,
        scale: float | None = None,
    ) -> AttentionPlan:
        """For each block of queries the fewest blocks of keys whose scores between means have this share of their
        softmax.

        Does not wait for the device.

        Args:
            q, k, block, scale: as for :meth:`topk`.
            mass: the share, above 0 and at most 1; or float32 or float64 ``[B or 1, H or 1]``.
        """
        if not isinstance(mass, Tensor) and not 0 < mass <= 1:
            raise ValueError(f"AttentionPlan.cumulative_mass: mass must be above 0 and at most 1, got {mass}")
        chosen = select_blocks(pooled_scores(q, k, block, scale), mass=mass)
        return cls.from_blocks(chosen, queries=q.shape[2], keys=k.shape[2], block=block)

    @classmethod
    def union(cls, *plans: AttentionPlan) -> AttentionPlan:
        """What any of several plans lets see each other. Waits for the device.

        Args:
            plans: at least one, all for as many tokens and of the same block; lists are broadcast.
        """
        if not plans:
            raise ValueError("AttentionPlan.union: plans must be at least one, got none")
        first = plans[0]
        if any(plan.parts for plan in plans):
            raise ValueError(
                "AttentionPlan.union: plans must have no parts; unite those, and then put them beside"
            )
        for plan in plans[1:]:
            if (plan.queries, plan.keys, plan.block) != (first.queries, first.keys, first.block):
                raise ValueError(
                    "AttentionPlan.union: plans must have the same tokens and blocks, got "
                    f"{(first.queries, first.keys, first.block)} and {(plan.queries, plan.keys, plan.block)}"
                )
        shape = torch.broadcast_shapes(*(plan.offsets.shape[:2] for plan in plans))
        blocks = torch.stack([plan.to_blocks().expand(*shape, -1, -1) for plan in plans]).any(0)
        used = blocks.nonzero(as_tuple=True)
        whole = first._whole_bits(used[2], used[3])
        bits = functools.reduce(torch.bitwise_or, (plan._bits_at(used, whole) for plan in plans))
        partial = (bits != whole).flatten(1).any(1)
        kinds = blocks.to(torch.uint8)
        kinds[used] = torch.where(partial, IN_PART, WHOLE).to(torch.uint8)
        return cls._from_kinds(kinds, bits[partial], first.queries, first.keys, first.block)

    @classmethod
    def beside(cls, *plans: AttentionPlan) -> AttentionPlan:
        """Sets of keys side by side, each with a softmax of its own: see ``weights`` of
        :func:`block_sparse_attention`. Does not wait for the device.

        Args:
            plans: one for each set, at most 8, for the same queries, with blocks of the same size; lists are broadcast.
                Their keys follow each other in k and v, or in the list of keys.
        """
        first = plans[0] if plans else None
        if first is None or len(plans) > 8:
            raise ValueError(f"AttentionPlan.beside: plans must be 1 to 8, got {len(plans)}")
        for plan in plans:
            if (plan.queries, plan.block) != (first.queries, first.block) or plan.parts:
                raise ValueError(
                    "AttentionPlan.beside: plans must be for the same queries and blocks and have no parts, got "
                    f"{(first.queries, first.block)} and {(plan.queries, plan.block)}, {len(plan.parts)} parts"
                )
        shape = torch.broadcast_shapes(*(plan.offsets.shape[:2] for plan in plans))
        lists = [_Lists.of(plan, *shape) for plan in plans]
        counts = torch.stack([each.counts for each in lists], -1)  # [rows of all lists, plans]
        ends = counts.flatten().cumsum(0).view_as(counts)
        begins, room = ends - counts, sum(each.room for each in lists)
        columns = torch.zeros(
            room + 1, dtype=torch.int32, device=counts.device
        )  # the last takes what is unused
        masks = torch.full_like(columns, -1)
        blocks = bits = 0
        for n, (plan, each) in enumerate(zip(plans, lists, strict=True)):
            place = torch.where(each.used, begins[each.row, n] + each.within, room)
            columns[place] = plan.columns[each.entry] + blocks
            if plan.masks is not None and plan.bits is not None:
                own = plan.masks[each.entry]
                masks[place] = torch.where(own < 0, own, own + bits)
                bits += len(plan.bits)
            blocks += plan._grid()[1]
        rows = first._grid()[0]
        begin = begins[:, 0].view(*shape, rows)
        last = ends[:, -1].view(*shape, rows)[..., -1:] if rows else ends.new_zeros(*shape, 1)
        offsets = torch.cat([begin, last], -1).int()
        some = [plan.bits for plan in plans if plan.bits is not None]
        bits_of_all = torch.cat(some) if some else None
        masks_of_all = masks[:-1] if some else None
        keys = sum(plan.keys for plan in plans)
        return cls(first.queries, keys, first.block, offsets, columns[:-1], masks_of_all, bits_of_all, plans)

    def _whole_bits(self, row: Tensor, column: Tensor) -> Tensor:
        """int32 [E, block_k, words]: the bits of all tokens that there are in these blocks."""
        sizes = _sizes(self.queries, self.block[0], row), _sizes(self.keys, self.block[1], column)
        first = 32 * torch.arange(-(-self.block[0] // 32), device=row.device)
        words = (1 << (sizes[0][:, None] - first).clamp(0, 32)) - 1
        there = torch.arange(self.block[1], device=row.device) < sizes[1][:, None]
        words = torch.where(words >= 2**31, words - 2**32, words).int()
        return torch.where(there[:, :, None], words[:, None], 0)

    def _bits_at(self, blocks: tuple[Tensor, ...], whole: Tensor) -> Tensor:
        """int32 [E, block_k, words]: what is seen in these blocks, by sample, head, row and column, of their whole
        bits."""
        sample, head, row, column = blocks
        samples, heads = self.offsets.shape[:2]
        rows, columns = self._grid()
        entries = torch.full((samples * heads * rows, columns), -1, device=column.device)
        of_row, entry = self._entries()
        entries[of_row, self.columns[entry].long()] = entry
        at = entries[(sample % samples * heads + head % heads) * rows + row, column]
        bits = torch.where(at[:, None, None] < 0, 0, whole)
        if self.masks is not None and self.bits is not None:
            partial = (at >= 0) & (self.masks[at.clamp(min=0)] >= 0)
            bits[partial] &= self.bits[self.masks[at[partial]]]
        return bits

    def _seen(self, entry: Tensor) -> Tensor:
        """bool [E, block_q, block_k]: what is seen in these entries."""
        seen = torch.ones(len(entry), *self.block, dtype=torch.bool, device=entry.device)
        if self.masks is not None and self.bits is not None:
            partial = self.masks[entry].long()
            has = (partial >= 0).nonzero().squeeze(1)
            seen[has] = _unpacked(self.bits[partial[has]], self.block[0])
        return seen


torch.export.register_dataclass(AttentionPlan, serialized_type_name="fastdiff.AttentionPlan")
torch.serialization.add_safe_globals([AttentionPlan])  # its tensors and numbers are all there is to load


@dataclass(frozen=True)
class _Lists:
    """Entries of a plan's lists, repeated for all samples and heads; as many as there may be, so that nobody waits."""

    row: Tensor  # int64 [room]: the row of blocks, counted over all lists
    within: Tensor  # the place in the row
    entry: Tensor  # the number in the plan
    used: Tensor  # bool
    counts: Tensor  # int64 [rows of all lists]
    room: int

    @classmethod
    def of(cls, plan: AttentionPlan, samples: int, heads: int) -> _Lists:
        offsets = plan.offsets.expand(samples, heads, -1).long()
        begin, counts = offsets[..., :-1].flatten(), offsets.diff(dim=-1).flatten()
        each = len(plan.columns) * samples * heads // max(1, math.prod(plan.offsets.shape[:2]))
        room = each if len(counts) else 0
        number = torch.arange(room, device=offsets.device)
        ends = counts.cumsum(0)
        row = torch.searchsorted(ends, number, right=True).clamp(max=max(0, len(counts) - 1))
        used = number < ends[-1:] if len(counts) else number < 0
        within = torch.where(used, number - (ends - counts)[row], 0)
        return cls(row, within, torch.where(used, begin[row] + within, 0), used, counts, room)


def _check_block(block: Sequence[int]) -> None:
    if len(block) != 2 or any(size % 16 or not 16 <= size <= 256 for size in block):
        raise ValueError(
            f"AttentionPlan: block must be two multiples of 16 from 16 to 256, got {tuple(block)}"
        )


def _four_dimensions(argument: str, t: Tensor) -> Tensor:
    if t.dtype != torch.bool or not 2 <= t.dim() <= 4:
        raise ValueError(
            f"AttentionPlan: {argument} must be bool with 2 to 4 dimensions, got {t.dtype} {list(t.shape)}"
        )
    return t.reshape(*(1,) * (4 - t.dim()), *t.shape)


def _sizes(tokens: int, block: int, number: Tensor) -> Tensor:
    """Tokens of a block by its number: fewer in the last one."""
    return torch.clamp(tokens - number * block, max=block)


def _unpacked(bits: Tensor, block_q: int) -> Tensor:
    """Of bits int32 [M, block_k, words] bool [M, block_q, block_k]."""
    each = bits[..., None] >> torch.arange(32, device=bits.device) & 1  # [M, block_k, words, 32]
    return each.flatten(2)[..., :block_q].transpose(1, 2).bool()
