# SPDX-License-Identifier: Apache-2.0
"""What users run today: the guidance methods as diffusers 0.42's guiders and published code write them.

The order of operations and the casts are theirs; what they cast to float32 is float64 here if it was before, so that
an expression is its own reference. Each takes (cond, uncond, *others, *state) and returns (guided, *next state).
"""

from __future__ import annotations

import torch
from fastdiff.bench.linear_step_peers import guided as classifier_free
from torch import Tensor
from torch.nn import functional

SCALE = 7.5
RESCALE = 0.7
ETA, NORM_THRESHOLD, MOMENTUM = 0.5, 15.0, -0.5
COSINE = 0.991
ALPHA = 8.0
LOWER, UPPER = 0.33, 3.0
NEGATIVE = 1.0


def cfg(cond: Tensor, uncond: Tensor) -> tuple[Tensor]:
    """`ClassifierFreeGuidance.forward`."""
    return (classifier_free(uncond, cond, SCALE),)


def rescaled_cfg(cond: Tensor, uncond: Tensor) -> tuple[Tensor]:
    """The same with `guidance_rescale`: `rescale_noise_cfg`."""
    (pred,) = cfg(cond, uncond)
    std_text = cond.std(dim=_sample(cond), keepdim=True)
    std_cfg = pred.std(dim=_sample(pred), keepdim=True)
    pred_rescaled = pred * (std_text / std_cfg)
    return (RESCALE * pred_rescaled + (1 - RESCALE) * pred,)


def apg(cond: Tensor, uncond: Tensor) -> tuple[Tensor]:
    """`normalized_guidance` of `AdaptiveProjectedGuidance`."""
    return (_projected(cond, uncond, cond - uncond),)


def apg_with_momentum(cond: Tensor, uncond: Tensor, average: Tensor | float) -> tuple[Tensor, Tensor]:
    """The same with a `MomentumBuffer`."""
    update = cond - uncond
    new_average = MOMENTUM * average
    average = update + new_average
    return _projected(cond, uncond, average), average


def _projected(cond: Tensor, uncond: Tensor, diff: Tensor) -> Tensor:
    dim = _sample(diff)
    ones = torch.ones_like(diff)
    diff_norm = diff.norm(p=2, dim=dim, keepdim=True)
    diff = diff * torch.minimum(ones, NORM_THRESHOLD / diff_norm)
    v0, v1 = diff.double(), cond.double()
    v1 = functional.normalize(v1, dim=dim)  # type: ignore[arg-type]  # it takes several, as diffusers knows
    v0_parallel = (v0 * v1).sum(dim=dim, keepdim=True) * v1
    v0_orthogonal = v0 - v0_parallel
    update = v0_orthogonal.to(diff.dtype) + ETA * v0_parallel.to(diff.dtype)
    return uncond + SCALE * update


def cfg_zero_star(cond: Tensor, uncond: Tensor) -> tuple[Tensor]:
    """`ClassifierFreeZeroStarGuidance.forward`, after the first step."""
    c, u = _wide(cond.flatten(1)), _wide(uncond.flatten(1))
    dot_product = torch.sum(c * u, dim=1, keepdim=True)
    squared_norm = torch.sum(u**2, dim=1, keepdim=True) + 1e-8
    alpha = (dot_product / squared_norm).to(cond.dtype)
    uncond = uncond * alpha.view(-1, *(1,) * (cond.ndim - 1))
    return cfg(cond, uncond)


def tcfg(cond: Tensor, uncond: Tensor) -> tuple[Tensor]:
    """`normalized_guidance` of `TangentialClassifierFreeGuidance`."""
    preds = _wide(torch.stack([cond, uncond], dim=1)).flatten(2)
    _, _, vh = torch.linalg.svd(preds, full_matrices=False)
    vh_modified = vh.clone()
    vh_modified[:, 1] = 0
    uncond_flat = _wide(uncond.reshape(uncond.size(0), 1, -1))
    x_vh = torch.matmul(uncond_flat, vh.transpose(-2, -1))
    x_vh_v = torch.matmul(x_vh, vh_modified)
    return cfg(cond, x_vh_v.reshape(uncond.shape).to(cond.dtype))


def adaptive_guidance(cond: Tensor, uncond: Tensor, is_latched: Tensor | bool) -> tuple[Tensor, Tensor]:
    """Adaptive Guidance, per sample and without waiting for the device; diffusers has none."""
    similarity = functional.cosine_similarity(cond.flatten(1), uncond.flatten(1), dim=1)
    latched = is_latched | (similarity >= COSINE)
    (pred,) = cfg(cond, uncond)
    return torch.where(latched.view(-1, *(1,) * (cond.ndim - 1)), cond, pred), latched


def magnitude_aware(cond: Tensor, uncond: Tensor) -> tuple[Tensor]:
    """`mambo_guidance` of `MagnitudeAwareGuidance`; p is named: torch refuses its default for three dimensions."""
    dim = _sample(cond)
    diff = cond - uncond
    ratio = torch.norm(diff, p=2, dim=dim, keepdim=True) / torch.norm(uncond, p=2, dim=dim, keepdim=True)
    scale = 1.0 + (SCALE - 1.0) * torch.exp(-ALPHA * ratio)
    return (uncond + scale * diff,)


def norm_balanced(cond: Tensor, uncond: Tensor, gradient: Tensor) -> tuple[Tensor]:
    """Guide-and-Rescale, per sample, without the published code's branches for norms that are 0."""
    dim = _sample(cond)
    update = SCALE * (cond - uncond)
    ratio = gradient.norm(p=2, dim=dim, keepdim=True) / update.norm(p=2, dim=dim, keepdim=True)
    factor = torch.clip(ratio, LOWER, UPPER) / ratio
    return (uncond + update + factor * gradient,)


def perp_neg(cond: Tensor, uncond: Tensor, negative: Tensor) -> tuple[Tensor]:
    """Perp-Neg's `get_perpendicular_component`, per sample."""
    dim = _sample(cond)
    main, negative = cond - uncond, negative - uncond
    along = (
        torch.mul(negative, main).sum(dim=dim, keepdim=True)
        / torch.norm(main, p=2, dim=dim, keepdim=True) ** 2
    )
    return (uncond + SCALE * (main - NEGATIVE * (negative - along * main)),)


def _sample(x: Tensor) -> list[int]:
    return list(range(1, x.ndim))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
