# SPDX-License-Identifier: Apache-2.0
"""Guidance on a network: the digits model, asked for the rows that a step needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("safetensors")

from fastdiff import guidance, planners, schedules
from fastdiff.cli import digits
from fastdiff.guidance import AdaptiveGuidance, Rows

DIGITS = torch.arange(digits.NUM_CLASSES)
#: [branch, sample]: no label, the digit, another digit.
LABELS = torch.stack([torch.full_like(DIGITS, digits.NULL_LABEL), DIGITS, (DIGITS + 3) % 10])
MODEL = digits.load_digits_denoiser()
# A convolution of more images may be computed in another order: relative 1e-6 per evaluation of this network in fp32,
# which 20 steps leave at about that.
ROUNDING = 1e-4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the model's many small kernels stall on a busy machine


def noise(seed: int = 0) -> Tensor:
    return torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor, branch: Tensor, sample: Tensor) -> Tensor:
    return MODEL(x, t, LABELS[branch, sample])


def relative(x: Tensor, reference: Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


HALVES = (lambda x: [x[..., :4], x[..., 4:]], lambda halves: torch.cat(halves, -1))
METHODS = {
    "cfg": guidance.CFG(3.0),
    "interval": guidance.CFG(3.0, start=0.25, stop=0.75),
    "apg": guidance.APG(3.0, momentum=-0.5),
    "cfg_plus_plus": guidance.CFGPlusPlus(),
    # A step that needs no prediction at all:
    "cfg_zero_star": guidance.CFGZeroStar(3.0, zero_init_steps=1),
    "perp_neg": guidance.PerpNeg(3.0),
    "compose": guidance.Compose([3.0, 1.0]),
    "banded": guidance.Banded(*HALVES, [guidance.CFG(1.0), guidance.CFG(3.0)]),
    "adaptive": AdaptiveGuidance(3.0, prediction="x0"),
}


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_the_model_of_all_branches(name: str) -> None:
    method, plan = METHODS[name], planners.ddim(schedules.linear(1000), 8)

    def every_branch(x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return tuple(MODEL(x, t, labels) for labels in LABELS[: len(method.branches)])

    reference = plan.run(every_branch, noise(), guidance=method)
    assert relative(plan.run(Rows(network), noise(), guidance=method), reference) < ROUNDING
