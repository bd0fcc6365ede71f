# SPDX-License-Identifier: Apache-2.0
"""Operations of papers that need no object of their own: one launch of linear_step each."""

from __future__ import annotations

import math

import torch
from fastdiff import guidance as G
from fastdiff import linear_step, planners, schedules
from torch import Tensor

from tests.kit import guidance as want

F64, INF = torch.float64, math.inf


def tensors(count: int, *shape: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g, dtype=F64) for _ in range(count)]


def test_fontstudio_renoises_and_concatenates() -> None:
    """x = [x_target | sqrt(ab) z_ref + sqrt(1 - ab) z], both halves written by one launch."""
    target, reference, z = tensors(3, 2, 4, 6, 5)
    ab = 0.37
    both = torch.empty(2, 4, 6, 10, dtype=F64)
    table = torch.tensor(
        [[1, 0, 0, 0, 0, 0, -INF, INF], [0, math.sqrt(ab), math.sqrt(1 - ab), 0, 0, 0, -INF, INF]], dtype=F64
    )
    linear_step([target, reference, z], table, out=[both[..., :5], both[..., 5:]])
    torch.testing.assert_close(both, torch.cat((target, ab**0.5 * reference + (1 - ab) ** 0.5 * z), -1))


def test_flexdit_guides_three_channels() -> None:
    """DiT's forward_with_cfg: eps of channels 0 to 2 is guided, the rest is the conditional half's."""
    c, u = tensors(2, 2, 4, 6, 6)
    eps = torch.cat((want.cfg(c, u, 4.0)[:, :3], c[:, 3:]), 1)
    torch.testing.assert_close(G.CFG(4.0, channels=(0, 3))(c, u), eps)


def test_ldfacenet_blends_a_guided_step_with_a_renoised_target() -> None:
    """z' = m (a z + b eps + c grad + s n) + (1 - m) (sqrt(ab) z_tgt + sqrt(1 - ab) n'), one launch, any mask."""
    z, eps, gradient, target, n1, n2 = tensors(6, 2, 4, 6, 5)
    mask = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(1), dtype=F64)
    step = [1.02, -0.31, -0.4, 0.0, 0.2, 0.0]
    paste = [0.0, 0.0, 0.0, math.sqrt(0.9), 0.0, math.sqrt(0.1)]
    table = torch.tensor([[*paste, 0.0, 0.0, -INF, INF]], dtype=F64)
    gate = torch.tensor([[*(a - b for a, b in zip(step, paste, strict=True)), 0.0, 0.0]], dtype=F64)
    (got,) = linear_step([z, eps, gradient, target, n1, n2], table, gate_table=gate, mask=mask)
    inside = 1.02 * z - 0.31 * eps - 0.4 * gradient + 0.2 * n1
    outside = math.sqrt(0.9) * target + math.sqrt(0.1) * n2
    torch.testing.assert_close(got, mask * inside + (1 - mask) * outside)


def test_trajectory_diffuser_overwrites_the_observed_state() -> None:
    """x'[:, 0] <- s after a guided posterior step over [B, horizon, state]."""
    x, u, c = tensors(3, 3, 8, 5)
    observed = torch.full((3, 8, 5), 0.7, dtype=F64)
    first = torch.zeros(1, 8, 1, dtype=torch.bool)
    first[:, 0] = True
    table = torch.tensor([[0.9, -0.1 * (1 - 1.2), -0.1 * 1.2, 0.0, 0.0, 0.0, -INF, INF]], dtype=F64)
    gate = torch.tensor([[-0.9, 0.1 * (1 - 1.2), 0.1 * 1.2, 1.0, 0.0, 0.0]], dtype=F64)
    (got,) = linear_step([x, u, c, observed], table, gate_table=gate, mask=first)
    expected = 0.9 * x - 0.1 * want.cfg(c, u, 1.2)
    expected[:, 0] = 0.7
    torch.testing.assert_close(got, expected)


def test_guide_and_rescale_is_one_step_of_ddim() -> None:
    """Both presets inside DDIM, per sample: the guider's norm becomes clip(r) times the update's."""
    plan = planners.ddim(schedules.scaled_linear(), 5, set_alpha_to_one=False)
    x, u, c, gradient = tensors(4, 3, 4, 6, 6)
    lengths = torch.tensor([0.01, 1.0, 100.0], dtype=F64).reshape(3, 1, 1, 1)
    for guidance in (G.NormBalanced(7.5), G.NormBalanced.stylisation(7.5)):
        g = gradient * lengths
        guided = want.norm_balanced(c, u, g, 7.5, guidance.lower, guidance.upper)
        ratio = want.norm(guided - want.cfg(c, u, 7.5)) / want.norm(7.5 * (c - u))
        assert bool(((ratio >= guidance.lower - 1e-9) & (ratio <= guidance.upper + 1e-9)).all())
        got, _ = plan.guided(guidance).step(2, x, (u, c, g))
        torch.testing.assert_close(got, plan.step(2, x, guided)[0])
