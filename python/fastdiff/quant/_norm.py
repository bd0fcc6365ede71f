# SPDX-License-Identifier: Apache-2.0
"""What happens to a row of activations before it is quantised: a norm and a modulation, in float64."""

from __future__ import annotations

from typing import Final

from torch import Tensor

# In the schemas of all rooms that norm rows, after x and what is theirs.
ARGUMENTS: Final = (
    "float? eps=None, bool rms=False, Tensor? weight=None, Tensor? bias=None, Tensor? scale_by=None, "
    "Tensor? shift=None"
)


def normed(
    x: Tensor,
    *,
    eps: float | None = None,
    rms: bool = False,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale_by: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """``(norm(x) * weight + bias) * (1 + scale_by) + shift`` in float64."""
    y = x.double()
    if eps is not None:
        centred = y if rms else y - y.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    if weight is not None:
        y = y * weight.double()
    if bias is not None:
        y = y + bias.double()
    if scale_by is not None:
        y = y * (1 + _like_rows(scale_by.double(), x))
    return y if shift is None else y + _like_rows(shift.double(), x)


def _like_rows(t: Tensor, x: Tensor) -> Tensor:
    """``[B, K]`` is for the samples of x ``[B, ..., K]``."""
    return t.view(t.shape[0], *(1,) * (x.dim() - 2), t.shape[1]) if t.dim() == 2 and x.dim() > 2 else t
