# SPDX-License-Identifier: Apache-2.0
"""A bias of scores that depends on where two tokens are to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RelativeBias:
    """What is added to the score of a query and a key: an entry of a table, by the difference of two codes.

    For :func:`block_sparse_attention` and :func:`token_attention`, as ``bias=``: bias[q, k] = table[h, q_code[q] −
    k_code[k]]. No tensor of pairs is formed. With lists of tokens the codes are those of the listed tokens, so a
    transformer that drops tokens at random (MDT, ITA-MDT) has no table to gather twice at every step.

    Attributes:
        table: ``[H or 1, T]``, float32, float16, bfloat16 or float64, any strides. Has a gradient.
        q_code, k_code: int64 ``[B or 1, N]``, of all tokens of q, and of k; differences are within 0 and T − 1.
    """

    table: Tensor
    q_code: Tensor
    k_code: Tensor

    @classmethod
    def grid(cls, table: Tensor, shape: Sequence[int]) -> RelativeBias:
        """The relative positions of a grid whose tokens are row by row (Swin, MDT: ``table.T`` of theirs).

        Args:
            table: ``[H or 1, prod(2 n − 1)]``; for a grid (rows, columns) the entry of query (y, x) and key (y', x') is
                (y − y' + rows − 1) (2 columns − 1) + x − x' + columns − 1.
            shape: of the grid, 1 to 3 sizes.
        """
        entries = math.prod(2 * n - 1 for n in shape)
        if not 1 <= len(shape) <= 3 or min(shape) < 1:
            raise ValueError(f"RelativeBias.grid: shape must be 1 to 3 positive sizes, got {tuple(shape)}")
        if table.dim() != 2 or table.shape[1] != entries:
            raise ValueError(
                f"RelativeBias.grid: table must have shape [heads, {entries}] for a grid {tuple(shape)}, got "
                f"{list(table.shape)}"
            )
        code = torch.zeros((), dtype=torch.int64, device=table.device)
        for n in shape:  # as the digits of a number
            code = code[..., None] * (2 * n - 1) + torch.arange(n, device=table.device)
        code = code.reshape(1, -1)
        return cls(table, code + entries // 2, code)

    def to(self, device: torch.device | str) -> RelativeBias:
        """The same bias on another device."""
        return RelativeBias(self.table.to(device), self.q_code.to(device), self.k_code.to(device))

    def bias(self) -> Tensor:
        """``[1, H or 1, 1, T]``, as operators take a table."""
        return self.table[None, :, None]

    def of_pairs(self, q_index: Tensor | None = None, kv_index: Tensor | None = None) -> Tensor:
        """``[B or 1, H or 1, N_q, N_kv]``: what it stands for, of all tokens or those of lists ``[B or 1, M]``."""
        q_code, k_code = _listed(self.q_code, q_index), _listed(self.k_code, kv_index)
        entry = q_code[:, :, None] - k_code[:, None]  # [B or 1, N_q, N_kv]
        return self.table[:, entry].transpose(0, 1)


torch.export.register_dataclass(RelativeBias, serialized_type_name="fastdiff.RelativeBias")


def _listed(code: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return code
    samples = max(code.shape[0], index.shape[0])
    return code.expand(samples, -1).gather(1, index.expand(samples, -1))
