# SPDX-License-Identifier: Apache-2.0
"""haar_patch: the patches of a video as channels, through a 3-D Haar wavelet packet, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor x, int patch, bool inverse, bool adjoint"


def _fake(x: Tensor, patch: int, inverse: bool, adjoint: bool) -> Tensor:
    if x.dim() != 5:
        raise RuntimeError(
            f"fastdiff::haar_patch: x must have 5 dimensions [B, C, T, H, W], got {list(x.shape)}"
        )
    if patch == 1:
        return torch.empty_like(x)
    batch, channels, frames, rows, columns = x.shape
    if inverse == adjoint:
        shape = (batch, channels * patch**3, (frames - 1) // patch + 1, rows // patch, columns // patch)
    else:
        shape = (batch, channels // patch**3, (frames - 1) * patch + 1, rows * patch, columns * patch)
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last_3d):
        return x.new_empty(shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)


def _fake_out(x: Tensor, patch: int, inverse: bool, adjoint: bool, *, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::haar_patch: out must be on {x.device} like x, got {result.device}")


_native.define(f"haar_patch({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"haar_patch.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def haar_patch(
    x: Tensor,
    patch: int,
    *,
    inverse: bool = False,
    adjoint: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    r"""The patches of a video as channels, through a 3-D Haar wavelet packet: the input of Cosmos' autoencoder.

    The first frame is repeated ``patch`` times, so that the 1 + n p frames of a causal video are n + 1 patches in time.
    Then each of log2(p) levels replaces 2 x 2 x 2 neighbours by their eight Haar bands, each of all channels so far,
    and every level is scaled by 1/8 in all (the Haar filters' 8^-1/2 and another 8^-1/2). For a patch with pixels
    x(a), a = (a_t, a_h, a_w) in 0 .. p - 1 each, this is

    .. math::
        y(f) = p^{-3} \sum_a (-1)^{|f_t \& a_t| + |f_h \& a_h| + |f_w \& a_w|}\; x(a)

    with \|.\| the number of bits that are set. Bit l of f_t, f_h and f_w says whether level l took the difference
    (first minus second) along that axis, and with C channels the band f of channel c is channel

    .. math::
        c + C \sum_l 8^l (4 f_{t,l} + 2 f_{h,l} + f_{w,l})

    which is the order of ``torch.cat`` over [lll, llh, lhl, lhh, hll, hlh, hhl, hhh] at each level.

    One pass: every pixel is read once, every band written once, nothing is stored in between. Sums are formed in
    float32 (float64 for float64) in one fixed order, the scale is a power of two, and each result is rounded once, at
    the store: the same bits on CPU (any instruction set, any number of threads) and CUDA, for any layout.

    Equivalent to, with ``level`` as one call of ``CosmosPatchEmbed3d._dwt(rescale=True)``::

        y = torch.cat((x[:, :, :1].repeat_interleave(patch, 2), x[:, :, 1:]), 2)
        for _ in range(int(math.log2(patch))):
            y = level(y)

    Trap: that code pads by reflection, which for even sizes has no effect on the result; odd ones, of which it makes
    a patch with a mirrored pixel, are an error here, because the way back could not restore their size.

    Args:
        x: the video, ``[B, C, T, H, W]``: float32, float16, bfloat16 or float64. T is 1 + a multiple of ``patch``
            (1 for images), H and W are multiples of it. Any strides; the fast path is contiguous rows.
        patch: p, 1, 2, 4 or 8. 1 changes nothing.
        inverse: from the bands to the video, as :func:`haar_unpatch`: x is then ``[B, C p^3, T', H', W']``.
        adjoint: the transpose of the linear map that the other arguments say, without its scale being inverted: what
            takes the gradient of the result to that of x. The transpose of the repetition is the sum of p frames, and
            that of dropping frames puts zeros there.
        out: where to write, any strides; shares no memory with x.

    Returns:
        y, ``[B, C p^3, (T - 1)/p + 1, H/p, W/p]``, in the dtype of x, channels_last_3d if x is and contiguous otherwise
        (or ``out``). NaN and inf propagate as in the expression: to all bands of their patch.

    Raises:
        RuntimeError: a wrong dtype, shape, patch, device or overlap. Nothing is written then.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to x (reverse mode, any order); see :mod:`fastdiff.wavelet.haar_patch_grad`.

    Source: NVIDIA 2025, Cosmos World Foundation Model Platform for Physical AI (the wavelet space of its tokenizer);
    ``CosmosPatchEmbed3d`` of diffusers, ``patch_method="haar"``.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (out is not None and out.requires_grad)):
        from fastdiff.wavelet.haar_patch_grad import differentiable_haar_patch

        if out is not None:
            raise NotImplementedError(
                "fastdiff.haar_patch: out= does not record gradients; detach x or omit out"
            )
        return differentiable_haar_patch(x, patch, inverse, adjoint)
    if out is None:
        result: Tensor = torch.ops.fastdiff.haar_patch.default(x, patch, inverse, adjoint)
        return result
    torch.ops.fastdiff.haar_patch.out(x, patch, inverse, adjoint, result=out)
    _native.mark_written([out])
    return out


def haar_unpatch(y: Tensor, patch: int, *, out: Tensor | None = None) -> Tensor:
    r"""The video whose patches have these bands: the way back of :func:`haar_patch`.

    .. math::
        x(a) = \sum_f (-1)^{|f_t \& a_t| + |f_h \& a_h| + |f_w \& a_w|}\; y(f)

    for each patch, and then without the first p - 1 frames, which were repetitions. They are dropped whatever they are:
    bands that are of no video give a video all the same, as with ``CosmosUnpatcher3d`` of diffusers.

    Args:
        y: the bands, ``[B, C p^3, T', H', W']``: float32, float16, bfloat16 or float64, T' at least 1. Any strides; the
            fast path is contiguous rows.
        patch: p, 1, 2, 4 or 8.
        out: where to write, any strides; shares no memory with y.

    Returns:
        x, ``[B, C, (T' - 1) p + 1, H' p, W' p]``, in the dtype of y, channels_last_3d if y is and contiguous otherwise
        (or ``out``). Rounded once, at the store; the same bits everywhere. The videos of ``haar_patch`` are restored
        to a few roundings, and exactly where its sums and their storage are exact, such as 8-bit pixels in float32.

    Raises:
        RuntimeError, NotImplementedError: as :func:`haar_patch`.

    Differentiable with respect to y (reverse mode, any order).

    Source: ``CosmosUnpatcher3d`` of diffusers, ``patch_method="haar"``.
    """
    return haar_patch(y, patch, inverse=True, out=out)


# ---- the reference ---------------------------------------------------------------------------------------------


def reference(x: Tensor, patch: int, *, inverse: bool = False, adjoint: bool = False) -> Tensor:
    """:func:`haar_patch` in plain PyTorch and float64, level by level; rounded at the end."""
    scale = 1.0 if inverse else float(patch) ** -3
    if inverse == adjoint:
        first = x[:, :, :1].double()
        lead = torch.zeros_like(first) if inverse else first
        y = torch.cat((*(lead for _ in range(patch - 1)), x.double()), 2)
        for _ in range(round(math.log2(patch))):
            y = _level(y)
        y = scale * y
    else:
        y = scale * x.double()
        for _ in range(round(math.log2(patch))):
            y = _level_back(y)
        kept = y[:, :, patch - 1 :]
        y = kept if inverse else torch.cat((y[:, :, :patch].sum(2, keepdim=True), kept[:, :, 1:]), 2)
    return _fake(x, patch, inverse, adjoint).copy_(y)


def _level(x: Tensor) -> Tensor:
    """Sums and differences of neighbours along t, h and w, the eight bands as channels."""
    bands = [x]
    for dim in (2, 3, 4):
        bands = [
            combined
            for band in bands
            for even, odd in [_halves(band, dim)]
            for combined in (even + odd, even - odd)
        ]
    return torch.cat(bands, 1)


def _halves(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    even, odd = x.unflatten(dim, (x.shape[dim] // 2, 2)).unbind(dim + 1)
    return even, odd


def _level_back(y: Tensor) -> Tensor:
    bands: list[Tensor] = list(y.unflatten(1, (8, y.shape[1] // 8)).unbind(1))
    for dim in (4, 3, 2):
        pairs = zip(bands[::2], bands[1::2], strict=True)
        bands = [torch.stack((low + high, low - high), dim + 1).flatten(dim, dim + 1) for low, high in pairs]
    return bands[0]


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    x: Tensor, patch: int, *, inverse: bool = False, adjoint: bool = False
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``haar_patch`` for a call of the public one, without ``out``."""
    return {"x": x, "patch": patch, "inverse": inverse, "adjoint": adjoint}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``haar_patch``."""
    return stored[0]


def tolerance(x: Tensor, patch: int, *, inverse: bool = False, adjoint: bool = False) -> dict[str, float]:
    """Sums of p^3 terms in a tree of 3 log2(p) additions, and the p frames that are added up."""
    largest = float(x.double().nan_to_num(0, 0, 0).abs().max()) if x.numel() else 0.0
    frames = patch if adjoint and not inverse else 1
    return {
        "scale": largest * (patch**3 if inverse else 1) * frames,
        "terms": 3 * round(math.log2(patch)) + frames,
    }


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (0.3 + 1.5 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    dtypes = (single, torch.float16, half, double)
    last = torch.channels_last_3d
    maps: dict[str, dict[str, bool]] = {
        "inverse": {"inverse": True}, "forward": {}, "adjoint": {"adjoint": True},
        "adjoint of the inverse": {"inverse": True, "adjoint": True},
    }  # fmt: skip
    rough = normal(1, 2, 5, 8, 8)
    rough[0, 0, 0, 1, 2], rough[0, 1, 3, 6, 1] = math.nan, math.inf
    rough_bands = normal(1, 64, 2, 2, 3)
    rough_bands[0, 5, 0, 1, 2], rough_bands[0, 40, 1, 0, 0] = math.nan, -math.inf

    def video(*shape: int, patch: int, **options: Any) -> tuple[Tensor, int]:
        """Patches [B, C, T', H', W'] as a video."""
        b, c, t, h, w = shape
        return normal(b, c, (t - 1) * patch + 1, h * patch, w * patch, **options), patch

    def bands(*shape: int, patch: int, **options: Any) -> tuple[Tensor, int]:
        b, c, t, h, w = shape
        return normal(b, c * patch**3, t, h, w, **options), patch

    def source(name: str) -> Any:
        return video if name in ("forward", "adjoint of the inverse") else bands

    def as_last(made: tuple[Tensor, int]) -> tuple[Tensor, int]:
        return made[0].to(memory_format=last), made[1]

    return [
        *(Case(f"{name}, patch {p}", source(name)(2, 3 if p < 4 else 1, 2, 2, 3, patch=p), options)
          for name, options in maps.items() for p in (4, 2, 1)),
        *(Case(f"{name}, patch 8", source(name)(1, 1, 2, 1, 2, patch=8), options) for name, options in maps.items()),
        *(Case(f"{name}, {str(d)[6:]}, patch {p}", source(name)(1, 2, 2, 1, 9, patch=p, dtype=d), options)
          for name, options in list(maps.items())[:2] for d in dtypes for p in (2, 4)),
        *(Case(f"{name}, wider than a tile, patch {p}", source(name)(1, 1, 1, 1, w, patch=p), options)
          for name, options in list(maps.items())[:2] for p, w in ((1, 261), (2, 259), (4, 67), (8, 18))),
        Case("an image", video(1, 3, 1, 3, 5, patch=4)),
        Case("an image back", bands(2, 1, 1, 3, 5, patch=4), maps["inverse"]),
        Case("one line, many frames", video(1, 1, 5, 1, 1, patch=2)),
        Case("nan and inf", (rough, 4)),
        Case("nan and inf back", (rough_bands, 4), maps["inverse"]),
        Case("channels_last_3d", as_last(video(2, 3, 2, 2, 5, patch=2))),
        Case("channels_last_3d, back", as_last(bands(2, 3, 2, 2, 5, patch=2)), maps["inverse"]),
        Case("channels_last_3d, gradient", as_last(bands(1, 2, 2, 1, 3, patch=4, dtype=half)), maps["adjoint"]),
        Case("transposed", (normal(1, 2, 5, 12, 16).transpose(3, 4), 4)),
        Case("rows with gaps", (normal(1, 16, 2, 2, 20)[..., :17], 2), maps["inverse"]),
        Case("rows of a wider video", (normal(1, 2, 5, 8, 19)[..., :16], 4)),
        Case("shared by samples and channels", (normal(1, 1, 3, 4, 6).expand(2, 3, 3, 4, 6), 2)),
        Case("misaligned", (misaligned(normal(1, 1, 5, 4, 72)), 4)),
        Case("misaligned, bfloat16, back", (misaligned(normal(1, 64, 2, 1, 19, dtype=half)), 4), maps["inverse"]),
        *(Case(f"shape {list(s)}", (normal(*s), 2)) for s in ((0, 3, 3, 2, 2), (1, 0, 1, 2, 2), (1, 1, 1, 0, 2))),
        Case("shape [1, 8, 2, 1, 0], back", (normal(1, 8, 2, 1, 0), 2), maps["inverse"]),
    ]  # fmt: skip
