# SPDX-License-Identifier: Apache-2.0
"""Guidance on a network: the digits model, asked for the rows that a step needs."""

from __future__ import annotations

from dataclasses import dataclass, field

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
# Batches of different sizes may be computed in different orders: 1e-6 was seen at the end of a run, with room for other
# CPUs. No cosine below comes nearer to the threshold than 5e-4.
ROUNDING = 1e-5


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


# ---- Adaptive Guidance at its default threshold ----------------------------------------------------------------
#
# On x0: this model's noise predictions agree to 0.9999 in the first step. Steps are even in log SNR. The images' change
# against full guidance, here and at most over five seeds: 0.04 and 0.044 for a scale of 1.5, 0.12 and 0.24 for 3; no
# guidance at all changes them by 0.11 and 0.26.
CHANGE = {1.5: 0.07, 3.0: 0.2}


def plan_of(steps: int) -> planners.Plan:
    return planners.dpm_solver_pp(schedules.lu(base=schedules.linear(1000)), steps)


@dataclass
class Recorder:
    """A network that keeps what it was asked: branch, sample, x and prediction of each step."""

    labels: Tensor
    calls: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Tensor, branch: Tensor, sample: Tensor) -> Tensor:
        prediction: Tensor = MODEL(x, t, self.labels[branch, sample])
        self.calls.append((branch, sample, x.clone(), prediction))
        return prediction

    def rows(self, branch: int) -> list[list[int]]:
        """The samples that each step asked for."""
        return [sample[branches == branch].tolist() for branches, sample, _, _ in self.calls]


def adaptive(
    steps: int, scale: float, *, quantity: str = "x0", digit: int | None = None
) -> tuple[Tensor, Recorder]:
    """All ten digits, or one of them alone, from the same noise."""
    chosen = slice(None) if digit is None else slice(digit, digit + 1)
    recorder = Recorder(LABELS[:, chosen])
    guide = AdaptiveGuidance(scale, prediction=quantity)
    return plan_of(steps).run(Rows(recorder), noise()[chosen], guidance=guide), recorder


def saved(recorder: Recorder) -> float:
    """The fraction of 2 B S evaluations."""
    evaluated = sum(len(branch) for branch, _, _, _ in recorder.calls)
    return 1 - evaluated / (2 * digits.NUM_CLASSES * len(recorder.calls))


def unconditional_steps(recorder: Recorder) -> list[list[int]]:
    """[sample] of the steps that evaluated it without its label."""
    asked = recorder.rows(0)
    return [[i for i, row in enumerate(asked) if n in row] for n in range(recorder.labels.shape[1])]


@pytest.mark.parametrize("scale", CHANGE)
@pytest.mark.parametrize("steps", [20, 50])
def test_a_fifth_is_saved(steps: int, scale: float) -> None:
    images, recorder = adaptive(steps, scale)
    full = plan_of(steps).run(Rows(network), noise(), guidance=guidance.CFG(scale))
    assert saved(recorder) >= 0.2
    assert relative(images, full) < CHANGE[scale]


def test_noise_predictions_agree_from_the_start() -> None:
    """Why x0 here: on epsilon the default threshold is reached at once, and nothing is guided."""
    images, recorder = adaptive(20, 3.0, quantity="epsilon")
    unguided = plan_of(20).run(Rows(network), noise(), guidance=guidance.CFG(1.0))
    assert saved(recorder) == pytest.approx(0.475)
    assert relative(images, unguided) < ROUNDING


def test_samples_latch_by_themselves() -> None:
    """Each at its own step, which is the first whose cosine reaches the threshold; after it no row without label."""
    plan, (_, recorder) = plan_of(20), adaptive(20, 3.0)
    latched = [steps[-1] for steps in unconditional_steps(recorder)]
    assert len(set(latched)) > 1
    assert unconditional_steps(recorder) == [list(range(i + 1)) for i in latched]
    assert recorder.rows(1) == [DIGITS.tolist()] * 20
    for n, last in enumerate(latched):
        reached = [cosine_of_x0(plan, recorder, i, n) >= 0.991 for i in range(last + 1)]
        assert reached == [False] * last + [True]


def cosine_of_x0(plan: planners.Plan, recorder: Recorder, i: int, n: int) -> float:
    _, sample, x, prediction = recorder.calls[i]
    x0 = (x.double() - plan.sigmas[i] * prediction.double()) / plan.alphas[i]
    uncond, cond = x0[sample == n].flatten(1)  # branches come in order
    return float(torch.cosine_similarity(uncond, cond, dim=0))


def test_a_sample_does_not_depend_on_its_batch() -> None:
    images, recorder = adaptive(20, 3.0)
    together = unconditional_steps(recorder)
    for n in range(10):
        alone, own = adaptive(20, 3.0, digit=n)
        assert unconditional_steps(own) == [together[n]]
        assert relative(alone[0], images[n]) < ROUNDING
