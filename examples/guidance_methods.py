# SPDX-License-Identifier: Apache-2.0
"""A picture of what guidance does: a row per method, a column per digit, one seed and one solver for all.

The model is that of `fastdiff demo`. Its branches are labels: none, the digit n, and n + 3, which PerpNeg keeps away
from, Compose adds, and Regional puts into the right half of the image. An argument is the path of the picture.
"""

import sys

import torch
from fastdiff import guidance as g
from fastdiff import planners, schedules
from fastdiff.cli import digits
from matplotlib.figure import Figure

SCALE, DIGITS = 5.0, torch.arange(10)
LABELS = torch.stack([0 * DIGITS + digits.NULL_LABEL, DIGITS, (DIGITS + 3) % 10])  # [branch, sample]
RIGHT = (torch.arange(8) >= 4).expand(1, 1, 8, 8)
OTHER_DIGIT = g.Compose.of_terms(("uncond", "cond", "other"), {("other", "uncond"): SCALE})
METHODS = {
    "no guidance": g.CFG(1.0),
    "CFG": g.CFG(SCALE),
    "CFG, middle steps": g.CFG(SCALE, start=0.2, stop=0.7),
    "RescaledCFG": g.RescaledCFG(SCALE),
    "PowerCosine": g.PowerCosine(SCALE),
    "APG": g.APG(SCALE, eta=0.0, norm_threshold=2.0, momentum=-0.5),
    "CFGZeroStar": g.CFGZeroStar(SCALE, zero_init_steps=0),  # zero steps are for flows: here 0 means no noise
    "TCFG": g.TCFG(SCALE),
    "MagnitudeAware": g.MagnitudeAware(SCALE),
    "CFGPlusPlus": g.CFGPlusPlus(0.6),
    "AdaptiveGuidance": g.AdaptiveGuidance(SCALE, prediction="x0"),
    "PerpNeg, not n + 3": g.PerpNeg(SCALE, 0.25),
    "Compose with n + 3": g.Compose([SCALE / 2, SCALE / 2]),
    "Regional, right n + 3": g.Regional(RIGHT, OTHER_DIGIT, g.CFG(SCALE)),
}


def main(path: str = "guidance-methods.png") -> None:
    torch.set_num_threads(1)  # kernels this small only wait for a second one
    model, plan = digits.load_digits_denoiser(), planners.ddim(schedules.linear(1000), 20)
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, method in METHODS.items():
        network = g.Rows(lambda x, t, branch, sample: model(x, t, LABELS[branch, sample]))
        rows.append(plan.run(network, x, guidance=method)[:, 0])
        print(f"{name}: {network.evaluations} evaluations")

    images = torch.nn.functional.pad(torch.stack(rows), (1, 1, 1, 1), value=-1.0)  # [row, digit, 10, 10]
    axis = Figure(figsize=(6, 8)).subplots(subplot_kw={"frame_on": False})
    axis.imshow(images.transpose(1, 2).flatten(0, 1).flatten(1), cmap="gray_r", vmin=-1, vmax=1)
    axis.set_xticks(10 * DIGITS + 4.5, range(10))
    axis.set_yticks(10 * torch.arange(len(rows)) + 4.5, METHODS)
    axis.tick_params(length=0)
    axis.figure.savefig(path, dpi=150, bbox_inches="tight")
    print(f"saved {path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
