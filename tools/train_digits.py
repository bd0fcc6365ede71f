# SPDX-License-Identifier: Apache-2.0
"""Train the digits model of ``fastdiff demo`` and write its weights.

    python tools/train_digits.py                 # train on one CPU thread, write the weights
    python tools/train_digits.py --check-only    # sample those weights, have a classifier read them

The data are the 1797 handwritten digits that ship with scikit-learn (8x8, grey). One thread and one seed: the
same machine and torch give the same file. Needs fastdiff installed, scikit-learn and safetensors; the
check needs diffusers too.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from fastdiff.cli.digits import (
    BETA_END,
    BETA_START,
    IMAGE_SIZE,
    NULL_LABEL,
    NUM_CLASSES,
    NUM_TRAIN_TIMESTEPS,
    DigitsDenoiser,
    load_digits_denoiser,
)
from safetensors.torch import save as serialize
from torch import Tensor
from torch.nn import functional as F

#: The file in the source tree: an installed fastdiff reads its own copy.
WEIGHTS = Path(__file__).resolve().parents[1] / "python" / "fastdiff" / "cli" / "digits.safetensors"


@dataclass(frozen=True)
class Recipe:
    """What decides the weights; stored in the file's metadata."""

    seed: int = 0
    steps: int = 4000
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 200
    ema_decay: float = 0.999
    label_dropout: float = 0.1


def real_digits() -> tuple[Tensor, Tensor]:
    """The digits as fp32 images ``[1797, 1, 8, 8]`` in [-1, 1] and int64 labels ``[1797]``."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float() / 8 - 1
    return images[:, None], torch.from_numpy(data.target).long()


def alphas_cumprod() -> Tensor:
    """``abar_t = prod_{s <= t} (1 - beta_s)`` of the linear schedule, fp32 ``[1000]``."""
    betas = torch.linspace(BETA_START, BETA_END, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
    return (1 - betas).cumprod(0).float()


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate at ``step``: linear warm-up, then a half cosine down to zero."""
    warm = min(1.0, (step + 1) / recipe.warmup)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def spread_timesteps(count: int) -> Tensor:
    """Random timesteps, one from each of ``count`` equal parts of the schedule: less noise in the loss."""
    return ((torch.arange(count) + torch.rand(count)) * (NUM_TRAIN_TIMESTEPS / count)).long()


def batch_loss(model: DigitsDenoiser, x0: Tensor, labels: Tensor, abar: Tensor, dropout: float) -> Tensor:
    """Mean squared error of the predicted noise at random timesteps, with some labels dropped."""
    t = spread_timesteps(len(x0))
    signal = abar[t][:, None, None, None]
    noise = torch.randn_like(x0)
    labels = labels.masked_fill(torch.rand(len(labels)) < dropout, NULL_LABEL)
    return F.mse_loss(model(signal.sqrt() * x0 + (1 - signal).sqrt() * noise, t, labels), noise)


@torch.no_grad()
def update_average(average: DigitsDenoiser, model: DigitsDenoiser, decay: float) -> None:
    """``average = decay * average + (1 - decay) * model``, parameter by parameter."""
    for kept, new in zip(average.parameters(), model.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def report(done: int, steps: int, loss: float, seconds: float) -> None:
    """Print one line of progress."""
    left = seconds / done * (steps - done)
    print(f"step {done}/{steps}  loss {loss:.4f}  {seconds:.0f} s, {left:.0f} s left", flush=True)


def train(recipe: Recipe) -> tuple[DigitsDenoiser, float]:
    """Train from scratch; returns the averaged network and the mean loss of the last 500 steps."""
    torch.manual_seed(recipe.seed)
    images, labels = real_digits()
    abar = alphas_cumprod()
    model = DigitsDenoiser()
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    losses: list[float] = []
    start = time.perf_counter()
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = rate_at(step, recipe)
        pick = torch.randint(len(images), (recipe.batch,))
        loss = batch_loss(model, images[pick], labels[pick], abar, recipe.label_dropout)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # A short memory at first: else the average would still hold the random start.
        update_average(average, model, min(recipe.ema_decay, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            report(step + 1, recipe.steps, sum(losses[-100:]) / 100, time.perf_counter() - start)
    tail = losses[-500:]
    return average, sum(tail) / len(tail)


def save(model: DigitsDenoiser, path: Path, recipe: Recipe, final_loss: float) -> None:
    """Write the weights in fp16 with what made them as metadata."""
    schedule = {
        "name": "linear",
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
        "prediction": "epsilon",
    }
    origin = {
        "data": "scikit-learn load_digits",
        "recipe": asdict(recipe),
        "schedule": schedule,
        "final_loss": round(final_loss, 5),
        "torch": torch.__version__.split("+")[0],
    }
    tensors = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    # One key only: safetensors writes several in random order, and equal runs should give equal files.
    path.write_bytes(serialize(tensors, metadata={"training": json.dumps(origin)}))


@torch.no_grad()
def sample(model: DigitsDenoiser, labels: Tensor, solver: str, steps: int, scale: float, seed: int) -> Tensor:
    """Sample one image per label, with a diffusers scheduler and guidance: ``[B, 1, 8, 8]`` in [-1, 1]."""
    import diffusers

    schedule = {"beta_schedule": "linear", "beta_start": BETA_START, "beta_end": BETA_END}
    if solver == "DDIMScheduler":
        # Clipping x0 without the noise that belongs to it, as DDIMScheduler does by default, ruins guidance.
        schedule["clip_sample"] = False
    scheduler = getattr(diffusers, solver)(num_train_timesteps=NUM_TRAIN_TIMESTEPS, **schedule)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(labels), 1, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    both = torch.cat([torch.full_like(labels, NULL_LABEL), labels])
    for t in scheduler.timesteps:
        uncond, cond = model(torch.cat([x, x]), t, both).chunk(2)
        x = scheduler.step(uncond + scale * (cond - uncond), t, x).prev_sample
    return x.clamp(-1, 1)


def check(model: DigitsDenoiser, per_class: int = 50, scale: float = 3.0) -> None:
    """Print how often a classifier trained on the real digits reads a sample as its label."""
    from sklearn.svm import SVC

    images, targets = real_digits()
    reader = SVC().fit(images.flatten(1).numpy(), targets.numpy())
    labels = torch.arange(NUM_CLASSES).repeat_interleave(per_class)
    for solver, steps in (("DPMSolverMultistepScheduler", 20), ("DDIMScheduler", 50)):
        x = sample(model, labels, solver, steps, scale, seed=1)
        right = torch.from_numpy(reader.predict(x.flatten(1).numpy())) == labels
        shares = right.view(NUM_CLASSES, -1).float().mean(1)
        each = " ".join(f"{digit}:{share:.2f}" for digit, share in enumerate(shares))
        print(f"{solver}, {steps} steps, guidance {scale}: {right.float().mean():.1%} right ({each})")


def main() -> None:
    """Train, save and check; or only check."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="file to write, or to check")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--check-only", action="store_true", help="do not train; sample the weights in --out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check_only:
        recipe = Recipe(seed=args.seed, steps=args.steps, batch=args.batch)
        model, final_loss = train(recipe)
        save(model, args.out, recipe, final_loss)
        print(f"{args.out.name}: {args.out.stat().st_size} bytes, loss {final_loss:.4f}")
    check(load_digits_denoiser(args.out))


if __name__ == "__main__":
    main()
