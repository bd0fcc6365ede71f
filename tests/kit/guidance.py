# SPDX-License-Identifier: Apache-2.0
"""The papers' guidance formulas in float64, one tensor operation after the other: what fastdiff.guidance is held to."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each sample, [B, 1, ...]."""
    return (a * b).sum(tuple(range(1, a.dim())), keepdim=True)


def norm(a: Tensor) -> Tensor:
    return dot(a, a).sqrt()


def std(a: Tensor) -> Tensor:
    return a.std(tuple(range(1, a.dim())), keepdim=True)


def cfg(c: Tensor, u: Tensor, scale: float | Tensor, from_cond: bool = False) -> Tensor:
    return (c if from_cond else u) + scale * (c - u)


def rescale(guided: Tensor, c: Tensor, phi: float) -> Tensor:
    return phi * guided * std(c) / std(guided) + (1 - phi) * guided


def apg(
    c: Tensor, u: Tensor, scale: float, eta: float, threshold: float, average: Tensor | None = None,
    from_cond: bool = False,
) -> Tensor:  # fmt: skip
    v = c - u if average is None else average
    if threshold > 0:
        v = v * torch.minimum(torch.ones_like(norm(v)), threshold / norm(v))
    unit = c / norm(c).clamp_min(1e-12)
    parallel = dot(v, unit) * unit
    return (c if from_cond else u) + scale * (v - parallel + eta * parallel)


def zero_star(c: Tensor, u: Tensor, scale: float, from_cond: bool = False) -> Tensor:
    fit = dot(c, u) / (dot(u, u) + 1e-8) * u
    return (c if from_cond else fit) + scale * (c - fit)


def tangential(c: Tensor, u: Tensor, scale: float, from_cond: bool = False) -> Tensor:
    pair = torch.stack((c.flatten(1), u.flatten(1)), 1)
    first = torch.linalg.svd(pair, full_matrices=False).Vh[:, :1]  # [B, 1, n]
    kept = ((u.flatten(1)[:, None] @ first.mT) @ first).reshape(u.shape)
    return (c if from_cond else kept) + scale * (c - kept)


def magnitude_aware(c: Tensor, u: Tensor, scale: float, alpha: float, from_cond: bool = False) -> Tensor:
    fade = torch.exp(-alpha * norm(c - u) / norm(u))
    return c + scale * fade * (c - u) if from_cond else u + (1 + (scale - 1) * fade) * (c - u)


def norm_balanced(c: Tensor, u: Tensor, g: Tensor, scale: float, lower: float, upper: float) -> Tensor:
    change = scale * (c - u)
    ratio = torch.where(norm(change) == 0, 1.0, norm(g) / norm(change))
    kappa = torch.where(norm(g) == 0, 1.0, ratio.clamp(lower, upper) / ratio)
    return u + change + kappa * g


def perpendicular(
    c: Tensor, u: Tensor, negatives: list[Tensor], scale: float, weights: list[float]
) -> Tensor:
    d, total = c - u, c - u
    for n, w in zip(negatives, weights, strict=True):
        total = total - w * ((n - u) - dot(n - u, d) / dot(d, d) * d)
    return u + scale * total


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """[B]."""
    return (dot(a, b) / (norm(a).clamp_min(1e-8) * norm(b).clamp_min(1e-8))).flatten()


def power_cosine(scale: float, power: float, t: float, total: float = 1000.0) -> float:
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (1 - t / total) ** power)) / 2
