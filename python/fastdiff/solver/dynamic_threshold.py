# SPDX-License-Identifier: Apache-2.0
"""dynamic_threshold: each sample clamped to a quantile of its own magnitudes and divided by it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

_ARGUMENTS = "Tensor x, float ratio, float max_value, float min_value"


def _fake(x: Tensor, *_: float) -> Tensor:
    return torch.empty_like(x)


def _fake_out(x: Tensor, *_: float, result: Tensor) -> None:
    if result.device != x.device:  # one on the meta device brings a real call here
        raise RuntimeError(
            f"fastdiff::dynamic_threshold: out must be on {x.device} like x, got {result.device}"
        )


_native.define(f"dynamic_threshold({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"dynamic_threshold.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def dynamic_threshold(
    x: Tensor,
    ratio: float = 0.995,
    max_value: float = 1.0,
    *,
    min_value: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    r"""Clamp each sample to a quantile of its magnitudes and divide it by that quantile.

    For each sample b, over all of its elements:

    .. math::
        s_b = \mathrm{clamp}\bigl(\mathrm{quantile}(|x_b|, p),\; s_{\min},\; s_{\max}\bigr), \qquad
        y_b = \mathrm{clamp}(x_b, -s_b, s_b) / s_b

    The quantile is that of ``torch.quantile`` with linear interpolation, at p (n - 1) of n elements. It is found
    from exact order statistics by radix select, without sorting and without a limit on n, and interpolated in
    float64; the result is rounded once and has the same bits on CPU (any instruction set, any number of threads) and
    CUDA, for any layout. ``ratio``, ``max_value`` and ``min_value`` are meant to be the same in a whole run: under
    ``torch.compile`` a new value is a new graph.

    Equivalent to, for x of [B, *sample]::

        s = torch.quantile(x.double().flatten(1).abs(), ratio, dim=1).clamp(min_value, max_value)
        s = s.view(-1, *[1] * (x.dim() - 1))
        y = (x.double().clamp(-s, s) / s).to(x.dtype)

    With the defaults s is 1 and this is a plain clamp to [-1, 1], as in diffusers, where ``sample_max_value`` is
    1. For latents without a natural range give a larger ``max_value``; ``math.inf``: no cap (the published code).

    Args:
        x: ``[B, *sample]``, float32, float16, bfloat16 or float64, any strides that merge to at most 6 dimensions.
            ``[B]`` is B samples of one element each, a 0-d tensor is one sample.
        ratio: p in 0..1.
        max_value: upper bound of s, at least ``min_value``.
        min_value: lower bound of s, at least 1e-30.
        out: where to write, like x; may be exactly x (in place).

    Returns:
        y, in the shape, dtype and layout of x (or ``out``). A sample with a NaN becomes NaN, and so does one whose
        quantile is infinite or next to an infinity without a cap, as with ``torch.quantile``; other infinities
        become 1 and -1. Without elements there is nothing to do: the result is empty.

    Raises:
        RuntimeError: a wrong dtype, shape, device, overlap or number. Nothing is written then.
        NotImplementedError: a gradient with respect to x is asked for.

    Source: Saharia et al. 2022 (Imagen), section 2.3; Lu et al. 2022 (DPM-Solver++), section 4 and
    ``dynamic_thresholding_fn``; ``_threshold_sample`` of diffusers' schedulers.
    """
    if torch.is_grad_enabled() and (x.requires_grad or (out is not None and out.requires_grad)):
        raise NotImplementedError(
            "fastdiff.dynamic_threshold: no gradient is defined; detach x or call it under torch.no_grad()"
        )
    if out is None:
        result: Tensor = torch.ops.fastdiff.dynamic_threshold.default(x, ratio, max_value, min_value)
        return result
    torch.ops.fastdiff.dynamic_threshold.out(x, ratio, max_value, min_value, result=out)
    _native.mark_written([out])
    return out


def reference(x: Tensor, ratio: float = 0.995, max_value: float = 1.0, *, min_value: float = 1.0) -> Tensor:
    """:func:`dynamic_threshold` in plain PyTorch and float64, rounded at the end."""
    if x.numel() == 0:
        return x.new_empty(x.shape)
    samples = x.double().reshape(x.shape[0] if x.dim() else 1, -1)
    s = torch.quantile(samples.abs(), ratio, dim=1, keepdim=True).clamp(min_value, max_value)
    return (samples.clamp(-s, s) / s).reshape(x.shape).to(x.dtype)


def dlpack_arguments(
    x: Tensor, ratio: float = 0.995, max_value: float = 1.0, *, min_value: float = 1.0
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``dynamic_threshold`` for a call of the public one, without ``out``."""
    return {"x": x, "ratio": ratio, "max_value": max_value, "min_value": min_value, "scratch": _scratch(x)}


def _scratch(x: Tensor) -> Tensor:
    from fastdiff import _C

    return torch.empty(_C.dynamic_threshold_scratch(x), dtype=torch.uint8, device=x.device)


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``dynamic_threshold``."""
    return stored[0]


def tolerance(*_: Any, **__: Any) -> dict[str, float]:
    """|y| <= 1, rounded once: nothing beyond the roundoff of the stored dtype."""
    return {"scale": 1.0, "terms": 0}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (1.5 * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    def case(name: str, x: Tensor, *numbers: float, **options: float) -> Case:
        return Case(name, (x, *numbers), dict(options))

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    inf, nan = math.inf, math.nan
    rough = normal(4, 3, 50)
    rough[0, 1, 7], rough[1, 0, 3], rough[2, 2, :40] = nan, inf, -inf
    ties = torch.tensor([0.0, -0.0, 2.0, -2.0, 2.0, 1e-42, -1e-42, 3.0]).repeat(3, 40)
    exact = torch.arange(1.0, 202.0).sub(101).mul(0.25).repeat(2, 1)
    shapes: list[tuple[int, ...]] = [(), (5,), (0, 4), (2, 0, 3), (1, 1), (3, 2), (2, 128), (2, 129), (70, 3)]
    return [
        *(case(str(d)[6:], normal(2, 3, 9, 11, dtype=d), 0.9, 3.0)
          for d in (torch.float32, torch.float16, torch.bfloat16, torch.float64)),
        case("defaults: a clamp to 1", normal(2, 3, 8, 8)),
        case("several blocks per sample", normal(2, 3, 76, 76), 0.99, 10.0),
        case("several blocks, float64", normal(1, 17001, dtype=torch.float64), 0.99, inf),
        case("several blocks, bfloat16", normal(2, 17003, dtype=torch.bfloat16), 0.7, inf),
        case("ratio 0", normal(2, 300), 0.0, inf, min_value=1e-6),
        case("ratio 1", normal(2, 300), 1.0, inf, min_value=1e-6),
        case("exactly an order statistic", exact, 0.75, inf),
        case("bounds hold", torch.cat((normal(1, 200) * 1e-3, normal(1, 200), normal(1, 200) * 1e3)), 0.9, 2.0,
             min_value=0.5),
        case("ties, zeros and subnormals", ties, 0.5, inf, min_value=1e-30),
        case("nan and inf", rough, 0.9, 4.0),
        case("inf without a cap", rough, 0.9, inf),
        case("channels_last", normal(2, 3, 7, 9).to(memory_format=torch.channels_last), 0.9, 3.0),
        case("transposed", normal(13, 11).t(), 0.8, 3.0),
        case("every second column", normal(3, 300)[:, ::2], 0.9, 3.0),
        case("expanded", normal(3, 1, 150).expand(3, 4, 150), 0.9, 3.0),
        case("misaligned", misaligned(normal(2, 3, 67)), 0.9, 3.0),
        *(case(f"shape {list(s)}", normal(*s), 0.6, 3.0) for s in shapes),
    ]  # fmt: skip
