# SPDX-License-Identifier: Apache-2.0
"""A photograph, its wavelet decomposition, and the photograph again with less noise than it was given.

Thresholds shrink the details while the inverse reads them: a third of Donoho and Johnstone's sigma sqrt(2 ln n), which
keeps more detail, with sigma from the finest diagonal details of each colour.
"""

import math

import matplotlib.pyplot as plt
import torch
from fastdiff import wavedec, waverec
from sklearn.datasets import load_sample_image

WAVELET = {"wavelet": "bior4.4", "ndim": 2, "mode": "symmetric"}
LEVELS = 3


def psnr(image: torch.Tensor, clean: torch.Tensor) -> float:
    return -10 * math.log10(float((image - clean).square().mean()))


def mosaic(coefficients: list[torch.Tensor]) -> torch.Tensor:
    """[C, H, W]: the approximation at the top left, details beside it, each in a range of its own."""
    image = coefficients[0] / 2**LEVELS
    for level, bands in enumerate(coefficients[1:]):
        h, w = bands.shape[-2:]
        ad, da, dd = (bands * 2 ** (level - LEVELS + 2) + 0.5).unbind(1)
        low = torch.nn.functional.interpolate(image[None], (h, w))[0]
        image = torch.cat([torch.cat([low, ad], -1), torch.cat([da, dd], -1)], -2)
    return image


def main() -> None:
    clean = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1) / 255  # [3, 427, 640]
    noisy = clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    coefficients = wavedec(noisy, **WAVELET, level=LEVELS)
    back = waverec(coefficients, **WAVELET, size=clean.shape[-2:])
    sigma = coefficients[-1][:, 2].flatten(1).abs().median(dim=1).values / 0.6745  # [3]
    threshold = sigma * math.sqrt(2 * math.log(clean[0].numel())) / 3
    shrunk = {"threshold": threshold[:, None].expand(3, 3), "size": clean.shape[-2:]}
    denoised = waverec(coefficients, **WAVELET, **shrunk)

    print(f"largest reconstruction error {float((back - noisy).abs().max()):.1e}")
    print(f"noisy {psnr(noisy, clean):.1f} dB, denoised {psnr(denoised, clean):.1f} dB")
    details = mosaic(wavedec(clean, **WAVELET, level=LEVELS))
    parts = {"given": noisy, "wavelet coefficients": details, "denoised": denoised}
    figure, axes = plt.subplots(1, len(parts), figsize=(15, 3.6), layout="constrained")
    for ax, (title, image) in zip(axes, parts.items(), strict=True):
        ax.imshow(image.permute(1, 2, 0).clamp(0, 1))
        ax.set_title(title)
        ax.axis("off")
    figure.savefig("wavelet-denoising.png", dpi=110)
    print("saved wavelet-denoising.png")


if __name__ == "__main__":
    main()
