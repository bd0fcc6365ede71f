# SPDX-License-Identifier: Apache-2.0
"""guidance_stats: what a guidance has to know of its predictions, per sample, in one pass over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False
MAX_EXTRAS: Final = 2

_ARGUMENTS = "Tensor uncond, Tensor cond, Tensor[] extras, float[] mix"


def sums_of(features: int) -> int:
    """How many sums there are of so many features: 5, 9 or 14 for 2, 3 or 4."""
    return features * (features + 3) // 2


def _fake(uncond: Tensor, cond: Tensor, extras: Sequence[Tensor], _: Sequence[float]) -> Tensor:
    _check_devices(uncond, cond, *extras)
    return uncond.new_empty((uncond.shape[0], sums_of(2 + len(extras))), dtype=torch.float64)


def _fake_out(
    uncond: Tensor, cond: Tensor, extras: Sequence[Tensor], _: Sequence[float], *, result: Tensor
) -> None:
    _check_devices(uncond, cond, *extras, result)


def _check_devices(uncond: Tensor, *others: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for x in others:
        if x.device != uncond.device:
            raise RuntimeError(
                f"fastdiff::guidance_stats: every tensor must be on {uncond.device} like uncond, "
                f"got one on {x.device}"
            )


_native.define(f"guidance_stats({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"guidance_stats.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def guidance_stats(
    uncond: Tensor,
    cond: Tensor,
    extras: Sequence[Tensor] = (),
    *,
    mix: Sequence[Sequence[float]] | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Sums and products of a sample's predictions: all that any adaptive guidance needs of them.

    With the features of each element

    .. math::
        f_0 = u, \qquad f_1 = d = c - u, \qquad f_{2+j} = m_{j0}\, e_j + m_{j1}\, u + m_{j2}\, d

    and sums over a sample's elements, the result is, feature by feature (5, 9 or 14 numbers)::

        sum f0, f0.f0 | sum f1, f0.f1, f1.f1 | sum f2, f0.f2, f1.f2, f2.f2 | sum f3, ...

    One pass over the inputs. Products are of d, not of c: where u and c are nearly parallel, as they are late in
    sampling, ``|c - u|^2`` from ``c.c - 2 c.u + u.u`` in float32 has lost 4 digits at a cosine of 0.99995, while
    ``d.d`` keeps a relative error of 1e-7. Terms are formed in float32 (float64 if an input is float64) and added in
    an order that is fixed by the elements' row-major numbers, chunk by chunk and the chunks' sums in float64: the
    result has the same bits on CPU (any instruction set, any number of threads) and CUDA, for any layout and batch.

    Args:
        uncond: u ``[B, *sample]``: float32, float16, bfloat16 or float64, in any mix with the others. Strides that
            merge to at most 6 dimensions; the fast path is contiguous.
        cond: c, the same shape.
        extras: up to 2 more tensors e_j of the same shape: a gradient, a negative prompt's prediction, a momentum.
        mix: for each of them (m_j0, m_j1, m_j2). Default (1, 0, 0): the tensor itself. (1, -1, 0) is e - u, and
            (beta, 0, 1) a running average d + beta e.
        out: where to write, float64 ``[B, sums]``; shares no memory with the inputs.

    Returns:
        float64 ``[B, 5]``, ``[B, 9]`` or ``[B, 14]``. NaN and inf propagate; an empty sample has zeros.

    Raises:
        RuntimeError: a wrong count, dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: a gradient with respect to an input is asked for.

    Source: the moments that the methods of :mod:`fastdiff.guidance` have in common; see
    :func:`fastdiff.guidance_coefficients` for each.
    """
    extras = list(extras)
    flat = [float(m) for row in mix for m in row] if mix is not None else [1.0, 0.0, 0.0] * len(extras)
    written = () if out is None else (out,)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (uncond, cond, *extras, *written)):
        raise NotImplementedError(
            "fastdiff.guidance_stats: no gradient is defined; detach the inputs or call it under torch.no_grad()"
        )
    if out is None:
        result: Tensor = torch.ops.fastdiff.guidance_stats.default(uncond, cond, extras, flat)
        return result
    torch.ops.fastdiff.guidance_stats.out(uncond, cond, extras, flat, result=out)
    _native.mark_written([out])
    return out


def cosine(stats: Tensor) -> Tensor:
    """The cosine of u and c, float64 ``[B]``, of the result of :func:`guidance_stats`."""
    uu, ud, dd = stats[:, 1], stats[:, 3], stats[:, 4]
    cc = (uu + 2 * ud + dd).clamp_min(0)
    return (uu + ud) / (uu.sqrt().clamp_min(1e-8) * cc.sqrt().clamp_min(1e-8))


def reference(
    uncond: Tensor,
    cond: Tensor,
    extras: Sequence[Tensor] = (),
    *,
    mix: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """:func:`guidance_stats` in plain PyTorch and float64."""
    samples = uncond.shape[0]
    u, c, *rest = ((x.double().reshape(samples, -1) if x.numel() else x.double().new_zeros(samples, 0))
                   for x in (uncond, cond, *extras))  # fmt: skip
    features = [u, c - u]
    for e, (a, b, d) in zip(rest, mix or [(1.0, 0.0, 0.0)] * len(rest), strict=True):
        features.append(a * e + b * u + d * features[1])
    sums = []
    for j, f in enumerate(features):
        sums += [f.sum(1), *((f * g).sum(1) for g in features[: j + 1])]
    return torch.stack(sums, 1)


def dlpack_arguments(
    uncond: Tensor,
    cond: Tensor,
    extras: Sequence[Tensor] = (),
    *,
    mix: Sequence[Sequence[float]] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``guidance_stats`` for a call of the public one, without ``out``."""
    from fastdiff import _C

    bytes_needed = _C.guidance_stats_scratch(uncond, len(extras))
    scratch = torch.empty(bytes_needed, dtype=torch.uint8, device=uncond.device)
    flat = [m for row in mix or [(1.0, 0.0, 0.0)] * len(extras) for m in row]
    return {"uncond": uncond, "cond": cond, "extras": list(extras), "mix": flat, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``guidance_stats``."""
    return stored[0]


def tolerance(
    uncond: Tensor,
    cond: Tensor,
    extras: Sequence[Tensor] = (),
    *,
    mix: Sequence[Sequence[float]] | None = None,
) -> dict[str, float]:
    """A lane adds 8 terms, 7 levels join the lanes: the error is relative to the sum of magnitudes, whatever n."""
    finite = [x.double().nan_to_num(0, 0, 0).abs() for x in (uncond, cond, *extras)]
    magnitudes = reference(finite[0], finite[1] + 2 * finite[0], finite[2:],
                           mix=None if mix is None else [[abs(m) for m in row] for row in mix])  # fmt: skip
    scale = float(magnitudes.max()) if magnitudes.numel() else 0.0
    wide = any(x.dtype == torch.float64 for x in (uncond, cond, *extras))
    # The result is float64 in either case, the arithmetic behind it is not.
    return {"scale": scale, "terms": 20 if wide else 20 * 2**29}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def predictions(*shape: int, count: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        base = torch.randn(shape, generator=g, dtype=torch.float64)
        noise = [0.3 * torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count - 1)]
        return [x.to(dtype) for x in (base, *(base + n for n in noise))]

    def case(name: str, tensors: list[Tensor], **options: Any) -> Case:
        extras = (tensors[2:],) if len(tensors) > 2 else ()
        return Case(name, (tensors[0], tensors[1], *extras), dict(options))

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    shapes: list[tuple[int, ...]] = [
        (5,),
        (0, 4),
        (3, 0, 2),
        (1, 1),
        (3, 2),
        (2, 127),
        (2, 129),
        (1, 1025),
        (9, 2, 3),
    ]
    rough = predictions(4, 3, 50)
    rough[0][0, 1, 7], rough[1][1, 0, 3], rough[1][2, 0, 0] = math.nan, math.nan, math.inf
    return [
        *(case(str(d)[6:], predictions(2, 3, 9, 11, dtype=d)) for d in (double, single, torch.float16, half)),
        case("mixed dtypes", [x.to(d) for x, d in zip(predictions(2, 3, 8, 9), (half, single), strict=True)]),
        case("a third", predictions(2, 3, 9, 11, count=3)),
        case("a third, float64", predictions(2, 300, count=3, dtype=double)),
        case("a gradient in float32 beside bfloat16", [*predictions(2, 3, 200, dtype=half),
                                                       predictions(2, 3, 200)[1]]),
        case("a negative prompt", predictions(2, 3, 9, 11, count=3), mix=[(1, -1, 0)]),
        case("a momentum", predictions(2, 3, 9, 11, count=3), mix=[(-0.5, 0, 1)]),
        case("two more", predictions(2, 3, 9, 11, count=4, dtype=half), mix=[(1, -1, 0), (0.25, 0.5, -2)]),
        case("several chunks", predictions(2, 3, 37, 41)),
        case("several chunks of three, bfloat16", predictions(1, 3, 37, 41, count=3, dtype=half)),
        case("many chunks", predictions(2, 33_001)),
        case("more chunks than one block takes", predictions(1, 66_001)),
        case("more chunks than one block takes, of four", predictions(1, 65, 1024, count=4)),
        case("nan and inf", rough),
        case("channels_last", [x.to(memory_format=torch.channels_last) for x in predictions(2, 3, 19, 23)]),
        case("layouts differ", [x.to(memory_format=f) for x, f in zip(predictions(2, 3, 19, 23), (
            torch.channels_last, torch.contiguous_format), strict=True)]),
        case("every second column", [x[:, ::2] for x in predictions(3, 2100)]),
        case("expanded", [x.expand(3, 4, 150) for x in predictions(3, 1, 150)]),
        case("misaligned", [misaligned(x) for x in predictions(2, 3, 67)]),
        *(case(f"shape {list(s)}", predictions(*s)) for s in shapes),
    ]  # fmt: skip
