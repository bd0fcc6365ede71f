# SPDX-License-Identifier: Apache-2.0
"""Uniform attention without attention."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.attention.cached_residual_add import cached_residual_add
from fastdiff.attention.normed_token_mean import normed_token_mean


def uniform_mixer(
    x: Tensor,
    *,
    shift: Tensor | None,
    scale: Tensor | None,
    gate: Tensor | None,
    value: tuple[Tensor, Tensor | None],
    output: tuple[Tensor, Tensor | None],
    eps: float = 1e-6,
) -> Tensor:
    r"""The token mixer of FlexDiT's Poolingformer: attention in which every token sees all others alike.

    .. math::
        y_n = x_n + \text{gate} \odot (W_o (W_v \bar m + b_v) + b_o), \qquad
        \bar m = (1 + \text{scale}) \odot \tfrac1N \sum_n \mathrm{LN}(x_n) + \text{shift}

    The published code forms the matrix of ones, its softmax and its product with the values of all tokens. A mean
    commutes with all that is linear, so that two passes over the tokens are left, one that reads and one that reads and
    writes, and two products of one row per sample: exact but for rounding.

    Args:
        x: ``[B, N, D]``: float32, float16, bfloat16 or float64.
        shift, scale, gate: of adaptive layer norm, ``[B or 1, D]``; None: 0, 0 and 1.
        value: W_v ``[D_v, D]`` and b_v ``[D_v]`` or None: the rows of the values in a projection to queries, keys and
            values.
        output: W_o ``[D, D_v]`` and b_o ``[D]`` or None.
        eps: of the layer norm.

    Returns: y ``[B, N, D]``, like x.

    Raises: as :func:`normed_token_mean` and :func:`cached_residual_add`.

    Differentiable with respect to all tensors.

    Source: FlexDiT (SparseDiT), ``PoolingAttention``.
    """
    mean = normed_token_mean(x, scale=scale, shift=shift, eps=eps)
    mixed = torch.nn.functional.linear(torch.nn.functional.linear(mean, *value), *output)
    return cached_residual_add(x, [mixed[:, None].expand_as(x)], [None if gate is None else gate[:, None]])
