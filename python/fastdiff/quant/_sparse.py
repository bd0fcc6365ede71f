# SPDX-License-Identifier: Apache-2.0
"""Sparse deltas of weights (SaRA): checkpoints without indices, which the base weights and a threshold imply."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastdiff.quant.sparse_fill import is_below, sparse_fill

_VALUES, _THRESHOLD, _MASK = ".values", ".threshold", ".mask"


def sparse_take(w: Tensor, threshold: Tensor, *, like: Tensor | None = None) -> Tensor:
    """The values ``[M]`` that :func:`fastdiff.sparse_fill` puts in place, row-major: its inverse.

    Args:
        w: the tensor that they are read from.
        threshold: τ ``[]``.
        like: the base tensor whose elements below τ they replace; default: w itself.
    """
    return w[is_below(w if like is None else like, threshold)]


def sparse_checksum(w: Tensor, threshold: Tensor) -> Tensor:
    """How many elements are below τ, and a checksum of which they are: int64 ``[2]``, the same on every device.

    Ranks shift without a sign if the base weights differ in one bit, their dtype above all; this shows it.
    """
    places = is_below(w, threshold).reshape(-1).nonzero()[:, 0]
    # Products wrap around. Mixed twice, because a sum of multiples would be blind to opposite shifts.
    mixed = (places + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 31)) * 0x3C79AC492BA7B653
    return torch.stack([torch.tensor(places.shape[0], device=w.device), (mixed ^ (mixed >> 29)).sum()])


def sara_state(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], threshold: float
) -> dict[str, Tensor]:
    """A checkpoint of the weights that differ from their base, as flat tensors that safetensors can hold.

    Args:
        base: the weights that training began with, ``state_dict()`` of the model.
        tuned: those after it; weights that are the same are left out.
        threshold: τ of the training, SaRA's 2e-3.

    Returns:
        For each weight its values below τ, τ itself, and the checksum of their places. What differs above τ is an
        error: it is no sparse delta of this base.

    Raises:
        ValueError: a weight changed above the threshold, or its shape or dtype did.
    """
    state: dict[str, Tensor] = {}
    for name, w in tuned.items():
        before = base[name]
        if before.shape != w.shape or before.dtype != w.dtype:
            raise ValueError(
                f"fastdiff.quant.sara_state: {name} must be {before.dtype} {list(before.shape)} as in base, "
                f"got {w.dtype} {list(w.shape)}"
            )
        if torch.equal(before, w):
            continue
        tau = torch.tensor(threshold, dtype=torch.float64, device=w.device)
        if not torch.equal(*(t.masked_fill(is_below(before, tau), 0) for t in (before, w))):
            raise ValueError(f"fastdiff.quant.sara_state: {name} changed where it is not below {threshold}")
        state[name + _VALUES] = sparse_take(w, tau, like=before).clone()
        state[name + _THRESHOLD] = tau
        state[name + _MASK] = sparse_checksum(before, tau)
    return state


@torch.no_grad()
def load_sparse_delta(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a checkpoint of :func:`sara_state` into a model that has the base weights, in place.

    All weights are checked before the first is changed.

    Raises:
        ValueError: a weight is not the one, bit for bit, that the values were taken of.
    """
    names = [key.removesuffix(_VALUES) for key in state if key.endswith(_VALUES)]
    weights = {name: model.get_parameter(name) for name in names}
    taus = {name: state[name + _THRESHOLD].to(w.device) for name, w in weights.items()}
    for name, w in weights.items():
        found, expected = sparse_checksum(w, taus[name]), state[name + _MASK].to(w.device)
        if not torch.equal(found, expected):
            raise ValueError(
                f"fastdiff.quant.load_sparse_delta: {name} is not the weight that the values were taken of: "
                f"{int(found[0])} elements below the threshold, expected {int(expected[0])}, or other ones"
            )
    for name, w in weights.items():
        sparse_fill(w, taus[name], state[name + _VALUES].to(w.device), out=w)
