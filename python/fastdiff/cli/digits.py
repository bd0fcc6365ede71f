# SPDX-License-Identifier: Apache-2.0
"""A small diffusion model of handwritten digits: the real model behind ``fastdiff demo``.

It is a class-conditional UNet that predicts the noise in 8x8 grey images of the digits 0 to 9. Its weights
lie beside this file; ``tools/train_digits.py`` made them from the digits that scikit-learn ships. It is small
enough to sample a grid within seconds on a CPU, and real enough that guidance and the solver show.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Height and width of an image; pixels lie in [-1, 1], ink is +1.
IMAGE_SIZE = 8
#: Labels 0 to 9 are the digits.
NUM_CLASSES = 10
#: The label that stands for "no class": the unconditional half of classifier-free guidance.
NULL_LABEL = NUM_CLASSES
#: The variance-preserving schedule that the weights were trained on: betas evenly spaced from start to end.
NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 1e-4
BETA_END = 2e-2
#: The committed weights, stored in fp16.
WEIGHTS = Path(__file__).with_name("digits.safetensors")

_GROUPS = 8


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features of the timestep: ``[cos(t f_i), sin(t f_i)]``, ``f_i = 10000^(-2 i / width)``.

    Args:
        t: float tensor ``[B]``, in steps of training (0 to 999).
        width: number of features, even.

    Returns:
        fp32 tensor ``[B, width]``.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / half))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a skip; time and class scale and shift the second normalisation.

    ``y = skip(x) + conv2(silu(norm2(conv1(silu(norm1(x)))) (1 + scale) + shift))``; the last
    convolution starts at zero, so that the block starts as its skip.
    """

    def __init__(self, channels_in: int, channels_out: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * channels_out)
        self.norm2 = nn.GroupNorm(_GROUPS, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map ``[B, channels_in, H, W]`` to ``[B, channels_out, H, W]``; ``condition`` is ``[B, width]``."""
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        y: Tensor = self.skip(x) + h
        return y


class SelfAttention(nn.Module):
    """Self-attention over the pixels, around a skip: strokes that are far apart must agree on one digit."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[B, channels, H, W]`` to the same shape."""
        batch, channels, height, width = x.shape
        shape = (batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = self.qkv(self.norm(x)).reshape(shape).transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)
        y: Tensor = x + self.out(h)
        return y


class DigitsDenoiser(nn.Module):
    """Class-conditional UNet ``epsilon(x_t, t, label)`` for 1x8x8 images, on two levels (8x8 and 4x4).

    Args:
        channels: channels at 8x8; twice as many at 4x4.
        width: width of the vector that carries time and class.

    Sources: Ho et al., "Denoising diffusion probabilistic models", 2020 (the UNet and the target); Ho and
    Salimans, "Classifier-free diffusion guidance", 2022 (the null label).
    """

    def __init__(self, channels: int = 40, width: int = 128) -> None:
        super().__init__()
        low = 2 * channels
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(NUM_CLASSES + 1, width)
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.encode = ResidualBlock(channels, channels, width)
        self.down = nn.Conv2d(channels, low, 3, stride=2, padding=1)
        self.middle1 = ResidualBlock(low, low, width)
        self.attention = SelfAttention(low, heads=4)
        self.middle2 = ResidualBlock(low, low, width)
        self.up = nn.Conv2d(low, 4 * channels, 1)
        self.decode1 = ResidualBlock(2 * channels, channels, width)
        self.decode2 = ResidualBlock(2 * channels, channels, width)
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.head = nn.Conv2d(channels, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, t: Tensor | float, labels: Tensor) -> Tensor:
        """Predict the noise ``epsilon`` in ``x = sqrt(abar_t) x0 + sqrt(1 - abar_t) epsilon``.

        Args:
            x: noisy images ``[B, 1, 8, 8]``, in the dtype of the weights.
            t: timestep in 0 to 999, one number, a 0-d tensor or ``[B]``; any real dtype.
            labels: int64 ``[B]``; 0 to 9 is the digit, 10 (``NULL_LABEL``) no class.

        Returns:
            Tensor ``[B, 1, 8, 8]`` in the dtype of ``x``.

        Raises:
            ValueError: ``x`` is not ``[B, 1, 8, 8]``, or ``labels`` is not ``[B]``.
        """
        self._check(x, labels)
        steps = torch.as_tensor(t, device=x.device).expand(x.shape[0])
        time = self.time(timestep_features(steps, self.width).to(x.dtype))
        condition = F.silu(time + self.label(labels))
        stem = self.stem(x)
        encoded = self.encode(stem, condition)
        h = self.middle1(self.down(encoded), condition)
        h = self.middle2(self.attention(h), condition)
        h = F.pixel_shuffle(self.up(h), 2)
        h = self.decode1(torch.cat([h, encoded], dim=1), condition)
        h = self.decode2(torch.cat([h, stem], dim=1), condition)
        epsilon: Tensor = self.head(F.silu(self.norm(h)))
        return epsilon

    @staticmethod
    def _check(x: Tensor, labels: Tensor) -> None:
        if x.ndim != 4 or tuple(x.shape[1:]) != (1, IMAGE_SIZE, IMAGE_SIZE):
            raise ValueError(f"x must be [B, 1, {IMAGE_SIZE}, {IMAGE_SIZE}], got {list(x.shape)}")
        if tuple(labels.shape) != (x.shape[0],):
            raise ValueError(f"labels must be [{x.shape[0]}], one per image of x, got {list(labels.shape)}")


def load_digits_denoiser(path: str | Path | None = None) -> DigitsDenoiser:
    """Load the trained network: fp32, on the CPU, in eval mode, its parameters without gradients.

    Args:
        path: a safetensors file that ``tools/train_digits.py`` wrote; default: the one beside this module.

    Raises:
        ImportError: safetensors is not installed.
        FileNotFoundError: there is no such file.
        RuntimeError: the file does not hold this network's weights.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            'the digits model needs the safetensors package: pip install "torch-fastdiff[demo]"'
        ) from error
    model = DigitsDenoiser()
    model.load_state_dict(load_file(WEIGHTS if path is None else path))
    return model.eval().requires_grad_(False)
