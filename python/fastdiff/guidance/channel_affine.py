# SPDX-License-Identifier: Apache-2.0
"""channel_affine: each channel of each sample moved to the mean and deviation of a style image, or to given ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

_ARGUMENTS = (
    "Tensor x, Tensor? style, Tensor? mean, Tensor? std, float style_weight, float content_weight, float eps"
)


def _fake(x: Tensor, style: Tensor | None, mean: Tensor | None, std: Tensor | None, *_: float) -> Tensor:
    _check_devices(x, style=style, mean=mean, std=std)
    return torch.empty_like(x)


def _fake_out(
    x: Tensor, style: Tensor | None, mean: Tensor | None, std: Tensor | None, *_: float, result: Tensor
) -> None:
    _check_devices(x, style=style, mean=mean, std=std, out=result)


def _check_devices(x: Tensor, **others: Tensor | None) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, other in others.items():
        if other is not None and other.device != x.device:
            raise RuntimeError(
                f"fastdiff::channel_affine: {name} must be on {x.device} like x, got {other.device}"
            )


_native.define(f"channel_affine({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"channel_affine.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def channel_affine(
    x: Tensor,
    style: Tensor | None = None,
    *,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
    style_weight: float = 1.0,
    content_weight: float = 0.0,
    eps: float = 1e-4,
    out: Tensor | None = None,
) -> Tensor:
    r"""Move each channel of each sample to the mean and standard deviation of a style, or to given ones.

    For each sample and channel, with :math:`\mu_c, \sigma_c` the mean and the unbiased standard deviation
    (n - 1) of x over all trailing dimensions, and :math:`\mu_s, \sigma_s` those of ``style`` (or ``mean``
    and ``std``):

    .. math::
        y = \frac{x - \mu_c}{\sigma_c + \epsilon}\,(w_s \sigma_s + w_c \sigma_c) + (w_s \mu_s + w_c \mu_c)

    - **AdaIN**: the default, w_s = 1 and w_c = 0.
    - **Content-aware AdaIN** (AttenST): ``style_weight=0.6, content_weight=0.4``.
    - **Re-standardisation** of latents: no ``style``, but ``mean`` and ``std``.

    The statistics are read in one pass, the result is written in a second one that finds small planes in the cache.
    Each 1024 elements are summed up around their own mean, in float32 (float64 for a float64 tensor, and for the
    style of one), and these sums are combined in float64, as are all numbers that belong to a plane: planes whose
    mean is much larger than their deviation keep their digits. The order is that of the elements' row-major numbers:
    the result has the same bits on CPU (any instruction set, any number of threads) and CUDA, for any layout and
    batch, and its error does not grow with n.

    Weights and ``eps`` are meant to be the same in a whole run: under ``torch.compile`` a new value is a new graph.
    So is a ``mean`` or ``std`` that is a number; the values of a tensor may change.

    Equivalent to, for x and style of [B, C, H, W]::

        mu_c, sigma_c = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
        mu_s, sigma_s = style.mean((2, 3), keepdim=True), style.std((2, 3), keepdim=True)
        normal = (x - mu_c) / (sigma_c + eps)
        y = normal * (style_weight * sigma_s + content_weight * sigma_c) + (style_weight * mu_s + content_weight * mu_c)

    Args:
        x: the content, ``[B, C, *spatial]``: float32, float16, bfloat16 or float64. Any strides whose trailing
            dimensions merge to at most 6; the fast paths are contiguous and channels_last.
        style: ``[B, C, *style_spatial]``, or one for all samples ``[1, C, *style_spatial]``. Its dtype, its layout
            and its trailing dimensions may differ from those of x, the number of them too.
        mean: instead of ``style``: the target mean, a number or a tensor ``[]``, ``[C]``, ``[1, C]`` or ``[B, C]``.
        std: the target standard deviation, likewise. Both or neither.
        style_weight: w_s, any finite number. At 0 the style (``mean``, ``std``) is not read.
        content_weight: w_c, any finite number.
        eps: added to sigma_c and to nothing else, at least 0. (The release of AdaIN adds its 1e-5 to both variances.)
        out: where to write, like x; may be exactly x (in place). Shares no memory with the other arguments.

    Returns:
        y, in the shape, dtype and layout of x (or ``out``). NaN and inf propagate as in the expression: one of them
        anywhere in a plane makes the whole plane NaN, as does a plane of one element, whose unbiased deviation is
        0/0, and a constant plane without ``eps``. A constant plane with it becomes the target mean. Without
        elements there is nothing to do: the result is empty.

    Raises:
        RuntimeError: a wrong dtype, shape, device, overlap or number. Nothing is written then.
        NotImplementedError: a gradient with respect to a tensor is asked for.

    Source: Huang & Belongie 2017 (AdaIN), equation (8); AttenST 2025, content-aware AdaIN, and its release
    (``AttenST.py``), which has the weights 0.6 and 0.4 and eps = 1e-4.
    """
    given = [t for t in (x, style, mean, std, out) if isinstance(t, Tensor)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        raise NotImplementedError(
            "fastdiff.channel_affine: no gradient is defined; detach the tensors or call it under torch.no_grad()"
        )
    arguments = (x, style, _target(x, mean), _target(x, std), style_weight, content_weight, eps)
    if out is None:
        result: Tensor = torch.ops.fastdiff.channel_affine.default(*arguments)
        return result
    torch.ops.fastdiff.channel_affine.out(*arguments, result=out)
    _native.mark_written([out])
    return out


def _target(x: Tensor, value: Tensor | float | None) -> Tensor | None:
    """A number as the tensor that the operator takes."""
    return value if value is None or isinstance(value, Tensor) else x.new_full((), value, dtype=torch.float64)


def reference(
    x: Tensor,
    style: Tensor | None = None,
    *,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
    style_weight: float = 1.0,
    content_weight: float = 0.0,
    eps: float = 1e-4,
) -> Tensor:
    """:func:`channel_affine` in plain PyTorch and float64, rounded at the end."""
    planes = _planes(x)
    mu_c, sigma_c = _moments(planes)
    if style is None:
        mu_s, sigma_s = (torch.as_tensor(t, dtype=torch.float64).to(x.device)[..., None] for t in (mean, std))
    else:
        mu_s, sigma_s = _moments(_planes(style))
    zero = torch.zeros((), dtype=torch.float64, device=x.device)
    mu, sigma = zero, zero
    for weight, mu_w, sigma_w in ((style_weight, mu_s, sigma_s), (content_weight, mu_c, sigma_c)):
        if weight != 0:
            mu, sigma = mu + weight * mu_w, sigma + weight * sigma_w
    y = (planes - mu_c) / (sigma_c + eps) * sigma + mu
    return torch.empty_like(x).copy_(y.reshape(x.shape))


def _planes(x: Tensor) -> Tensor:
    return x.double().reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _moments(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation of ``[B, C, n]``; not by ``std``, which warns at n = 1."""
    n = planes.shape[2]
    mean = planes.sum(2, keepdim=True) / n
    return mean, ((planes - mean).square().sum(2, keepdim=True) / max(n - 1, 0)).sqrt()


def dlpack_arguments(
    x: Tensor,
    style: Tensor | None = None,
    *,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
    **numbers: float,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``channel_affine`` for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.channel_affine_scratch(x, style), dtype=torch.uint8, device=x.device)
    targets = {"mean": _target(x, mean), "std": _target(x, std)}
    return {"x": x, "style": style, **targets, **numbers, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``channel_affine``."""
    return stored[0]


def tolerance(x: Tensor, style: Tensor | None = None, **options: Any) -> dict[str, float]:
    """A few roundings of what is added up: the scaled deviation from the mean, and the target mean."""
    result = reference(x, style, **options).double().nan_to_num(0, 0, 0)
    return {"scale": 2 * float(result.abs().max()) if result.numel() else 0.0, "terms": 8}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(
        *shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.3, std: float = 1.5
    ) -> Tensor:
        return (mean + std * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    def case(name: str, x: Tensor, style: Tensor | None = None, **options: Any) -> Case:
        return Case(name, (x,) if style is None else (x, style), options)

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    half, single, double, last = torch.bfloat16, torch.float32, torch.float64, torch.channels_last
    attenst: dict[str, Any] = {"style_weight": 0.6, "content_weight": 0.4}
    dtypes = (single, torch.float16, half, double)
    rough = normal(2, 4, 50)
    rough[0, 1, 7], rough[1, 0, 3], rough[1, 2, 0] = math.nan, math.inf, -math.inf
    rough_style = normal(1, 4, 30)
    rough_style[0, 3, 0] = math.nan
    shapes: list[tuple[int, ...]] = [
        (0, 3, 4), (2, 0, 5), (2, 3, 0), (1, 1, 2), (3, 1, 4), (1, 2, 127), (2, 1, 1025), (1, 2, 2, 3, 3, 2)
    ]  # fmt: skip
    return [
        *(case(str(d)[6:], normal(2, 3, 9, 11, dtype=d), normal(2, 3, 9, 11, dtype=d), **attenst) for d in dtypes),
        case("adain", normal(2, 3, 8, 9), normal(2, 3, 8, 9, mean=-2.0, std=0.1)),
        *(case(f"style in {str(d)[6:]}", normal(2, 3, 8, 9), normal(2, 3, 12, 5, dtype=d)) for d in (half, double)),
        case("float64 with a style in float32", normal(2, 2, 40, dtype=double), normal(2, 2, 50)),
        case("bfloat16 with a style in float64", normal(1, 2, 40, dtype=half), normal(1, 2, 50, dtype=double)),
        case("one style for all", normal(3, 4, 7, 8), normal(1, 4, 6, 5), **attenst),
        case("style of another rank", normal(2, 3, 4, 5, 6), normal(2, 3, 50)),
        case("mean and std", normal(2, 3, 40), mean=0.0, std=1.0),
        case("mean and std per channel", normal(2, 3, 40), mean=normal(3), std=normal(3, dtype=half).abs()),
        case("mean and std per sample", normal(2, 3, 40), mean=normal(2, 3), std=normal(1, 3, dtype=double).abs(),
             **attenst),
        case("a weight of 0 is not read", normal(2, 3, 40), torch.full((1, 3, 9), math.nan), style_weight=0.0,
             content_weight=1.0, eps=0.0),
        case("mean much larger than std", normal(2, 3, 40, 41, mean=1e3, std=1.0), normal(2, 3, 9, mean=-1e3, std=1.0)),
        case("an outlier comes first", torch.cat((normal(2, 1, 1, mean=1e4), normal(2, 1, 1500)), 2), mean=0.0,
             std=1.0),
        case("constant planes", torch.full((2, 2, 1300), 0.1), normal(1, 2, 20)),
        case("nan and inf", rough, normal(1, 4, 30)),
        case("nan in the style", normal(2, 4, 20), rough_style),
        case("several chunks", normal(1, 2, 50, 61), normal(1, 2, 47, 23), **attenst),
        case("several chunks, float64", normal(1, 2, 50, 61, dtype=double), normal(1, 2, 47, 23, dtype=double)),
        case("more chunks than one block takes", normal(1, 1, 66_001), normal(1, 1, 1100), **attenst),
        case("more chunks of the style than one block takes", normal(2, 1, 1100), normal(1, 1, 66_001, dtype=half)),
        case("channels_last", normal(2, 19, 7, 9).to(memory_format=last), normal(2, 19, 5, 4).to(memory_format=last)),
        case("channels_last, bfloat16", normal(1, 40, 33, 32, dtype=half).to(memory_format=last), mean=0.0, std=1.0),
        case("layouts differ", normal(2, 17, 7, 9).to(memory_format=last), normal(1, 17, 5, 4)),
        case("style alone in channels_last", normal(2, 35, 7, 9), normal(1, 35, 5, 4).to(memory_format=last)),
        case("transposed", normal(2, 3, 13, 11).transpose(2, 3), normal(2, 3, 40)),
        case("rows with gaps", normal(2, 3, 20, 150)[..., :140], normal(2, 3, 80)[..., ::2]),
        case("expanded", normal(1, 3, 1, 50).expand(2, 3, 4, 50), normal(1, 1, 30).expand(2, 3, 30)),
        case("misaligned", misaligned(normal(2, 3, 67)), misaligned(normal(2, 3, 71))),
        *(case(f"shape {list(s)}", normal(*s), normal(1, s[1], 6)) for s in shapes),
    ]  # fmt: skip
