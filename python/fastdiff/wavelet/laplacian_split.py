# SPDX-License-Identifier: Apache-2.0
"""laplacian_split: an image as the bands of its Laplacian pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.wavelet._pyramid import reference_down, reference_up

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor x, int levels"


def _fake(x: Tensor, levels: int) -> list[Tensor]:
    height, width = x.shape[-2:]
    bands = [torch.empty_like(x)]
    for _ in range(levels - 1):
        height, width = (height + 1) // 2, (width + 1) // 2
        # The dimensions lie in memory as those of x do; empty_like has the rule for what "as" means.
        bands.append(torch.empty_like(x.new_empty_strided((*x.shape[:-2], height, width), x.stride())))
    return bands


def _fake_out(x: Tensor, levels: int, *, results: Sequence[Tensor]) -> None:
    for n, result in enumerate(results):
        if (
            result.device != x.device
        ):  # the meta device brings a real call here, where nothing would be computed
            raise RuntimeError(
                f"fastdiff::laplacian_split: out[{n}] must be on {x.device} like x, got {result.device}"
            )


_native.define(f"laplacian_split({_ARGUMENTS}) -> Tensor[]", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"laplacian_split.out({_ARGUMENTS}, *, Tensor(a!)[] results) -> ()", _fake_out)


def laplacian_split(x: Tensor, levels: int, *, out: Sequence[Tensor] | None = None) -> list[Tensor]:
    r"""The bands of the Laplacian pyramid of an image: details from fine to coarse, and the coarsest image.

    With :math:`G_0 = x` and for each level l = 0 ... levels - 2:

    .. math::
        G_{l+1} = \mathrm{down}(G_l), \qquad \mathrm{band}_l = G_l - \mathrm{up}(G_{l+1})

    and the last band is the last G. ``down`` is a blur by the binomial (1, 4, 6, 4, 1)/16 along rows and columns and
    a bilinear resize by 1/2; ``up`` a bilinear resize by 2 and the same blur; beyond the ends the blur sees a
    reflection without the end itself. :func:`fastdiff.laplacian_merge` is the inverse, for bands of any values
    between.

    Both stencils of a level are one pass, as their compositions: (1, 5, 10, 10, 5, 1)/32 for ``down``, (1, 21, 35,
    7)/64 and its mirror image for the even and the odd rows of ``up``. All arithmetic is in float32 (float64 for
    float64) with fused multiply-adds in one order, rounded once, at the store; what lies between two levels is not
    rounded to a 16-bit dtype. The result has the same bits on CPU (any instruction set, any number of threads) and
    CUDA, for any layout.

    **Sizes.** A level of n rows has ceil(n / 2) below it. An odd n is taken as n + 1 rows, the last of which is the
    reflection of the last but one, and is cut off again. For even sizes this is what kornia's ``pyrdown`` and
    ``pyrup`` give, and for images that it does not pad ``build_laplacian_pyramid(x, levels)``.

    Trap: that function pads an image at its right and lower border to powers of two where neither side is one, or a
    side is no multiple of 2^(levels - 1), and returns bands of the padded size; guidance built on it gives an image
    larger than the prediction (diffusers 0.42: latents of 104 x 152 come back as 128 x 256). Here no side is padded,
    and :func:`fastdiff.laplacian_merge` gives back the size of x.

    Equivalent to, for even sizes::

        pyramid = [x]
        for _ in range(levels - 1):
            pyramid.append(kornia.geometry.pyrdown(pyramid[-1]))
        bands = [g - kornia.geometry.pyrup(h) for g, h in zip(pyramid, pyramid[1:])] + pyramid[-1:]

    Args:
        x: the image, ``[*, H, W]``, such as ``[B, C, H, W]``: float32, float16, bfloat16 or float64, any strides whose
            dimensions before the last two merge to at most 6. Sides of 1 to 2^30; the fast path has rows of
            consecutive elements.
        levels: how many bands, 2 to 32. Sides of 1 stay at 1.
        out: where to write the bands, that many tensors of their shapes and of the dtype of x, any strides; they share
            no memory with x or each other.

    Returns:
        ``[*, H, W]``, ``[*, ceil(H / 2), ceil(W / 2)]``, ..., with dimensions in memory as in x (or ``out``). NaN and
        inf propagate as in the expression, to the pixels whose stencils cover them.

    Raises:
        RuntimeError: a wrong dtype, shape, device, overlap or number of levels. Nothing is written then.
        NotImplementedError: a gradient is asked for.

    Source: Burt & Adelson 1983 (the pyramid); Sadat et al. 2025 (frequency-decoupled guidance, arXiv 2506.19713),
    algorithm 2, and its release in diffusers, with kornia's ``build_laplacian_pyramid``.
    """
    given = [x, *(out or ())]
    if torch.is_grad_enabled() and any([t.requires_grad for t in given]):  # noqa: C419  (a generator costs 0.3 us)
        raise NotImplementedError(
            "fastdiff.laplacian_split: no gradient is defined; detach the tensors or call it under torch.no_grad()"
        )
    if out is None:
        bands: list[Tensor] = torch.ops.fastdiff.laplacian_split.default(x, levels)
        return bands
    results = list(out)
    torch.ops.fastdiff.laplacian_split.out(x, levels, results=results)
    _native.mark_written(results)
    return results


def reference(x: Tensor, levels: int) -> list[Tensor]:
    """:func:`laplacian_split` in plain PyTorch and float64, rounded at the end."""
    bands, image = [], x.double()
    for _ in range(levels - 1):
        coarse = reference_down(image)
        bands.append(image - reference_up(coarse, *image.shape[-2:]))
        image = coarse
    return [band.to(x.dtype) for band in (*bands, image)]


def dlpack_arguments(x: Tensor, levels: int) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``laplacian_split`` for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.laplacian_split_scratch(x, levels), dtype=torch.uint8, device=x.device)
    return {"x": x, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor, ...], *_: Any, **__: Any) -> list[Tensor]:
    """``out`` of the torch-free ``laplacian_split``."""
    return list(stored)


def tolerance(x: Tensor, levels: int) -> dict[str, float]:
    """Weights are positive and add up to 1: a level has two stencils, each of 12 roundings at most."""
    return {"scale": float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0,
            "terms": 8 * levels}  # fmt: skip


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (0.3 + torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    half, single, double, last = torch.bfloat16, torch.float32, torch.float64, torch.channels_last
    rough = normal(2, 2, 12, 20)
    rough[0, 0, 0, 0], rough[0, 1, 6, 9], rough[1, 0, 11, 19] = math.nan, math.inf, -math.inf
    sizes = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 1), (3, 3), (4, 4), (5, 6), (7, 8), (6, 41), (19, 33))
    return [
        *(Case(str(d)[6:], (normal(2, 3, 12, 20, dtype=d), 3)) for d in (single, torch.float16, half, double)),
        *(Case(f"{h} x {w}", (normal(2, h, w), 3)) for h, w in sizes),
        Case("two levels", (normal(1, 4, 16, 32), 2)),
        Case("more levels than there are sides", (normal(1, 2, 9, 5), 7)),
        Case("several strips", (normal(1, 1, 10, 520), 2)),
        Case("several strips, odd", (normal(1, 9, 517, dtype=half), 2)),
        Case("two columns in the last strip", (normal(1, 6, 259), 2)),
        Case("many rows", (normal(1, 150, 9), 3)),
        Case("nan and inf", (rough, 3)),
        Case("channels_last", (normal(2, 5, 12, 14).to(memory_format=last), 3)),
        Case("channels_last, bfloat16", (normal(1, 4, 7, 9, dtype=half).to(memory_format=last), 2)),
        Case("transposed", (normal(2, 3, 13, 11).mT, 2)),
        Case("every second column", (normal(2, 3, 8, 40)[..., ::2], 2)),
        Case("expanded", (normal(1, 2, 8, 10).expand(3, 2, 8, 10), 2)),
        Case("misaligned", (misaligned(normal(2, 9, 21)), 2)),
        Case("a video", (normal(2, 3, 2, 6, 8), 2)),
        Case("no planes", (normal(10, 12), 2)),
        Case("empty batch", (normal(0, 3, 4, 6), 3)),
    ]  # fmt: skip
