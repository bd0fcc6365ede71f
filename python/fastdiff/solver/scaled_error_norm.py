# SPDX-License-Identifier: Apache-2.0
"""scaled_error_norm: how far two solutions of a step are apart, in units of the tolerance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False

_ARGUMENTS = "Tensor lower, Tensor higher, Tensor previous, float atol, float rtol"


def _result_dtype(*inputs: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


def _fake(lower: Tensor, higher: Tensor, previous: Tensor, *_: float) -> Tensor:
    _check_devices(lower, higher=higher, previous=previous)
    return lower.new_empty(lower.shape[:1], dtype=_result_dtype(lower, higher, previous))


def _fake_out(lower: Tensor, higher: Tensor, previous: Tensor, *_: float, result: Tensor) -> None:
    _check_devices(lower, higher=higher, previous=previous, out=result)


def _check_devices(lower: Tensor, **others: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, x in others.items():
        if x.device != lower.device:
            raise RuntimeError(
                f"fastdiff::scaled_error_norm: {name} must be on {lower.device} like lower, got {x.device}"
            )


_native.define(f"scaled_error_norm({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"scaled_error_norm.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def scaled_error_norm(
    lower: Tensor,
    higher: Tensor,
    previous: Tensor,
    *,
    atol: float = 0.0078,
    rtol: float = 0.05,
    out: Tensor | None = None,
) -> Tensor:
    r"""The local error of each sample's step, relative to what is tolerated: a step with E <= 1 is accepted.

    For each sample b with n elements:

    .. math::
        \delta_i = \max\bigl(\epsilon_{\mathrm{atol}},\;
                   \epsilon_{\mathrm{rtol}} \max(|x^{lower}_i|, |x^{prev}_i|)\bigr), \qquad
        E_b = \Bigl(\frac1n \sum_i \Bigl(\frac{x^{higher}_i - x^{lower}_i}{\delta_i}\Bigr)^2\Bigr)^{1/2}

    An adaptive solver of order p then takes h <- theta h E^(-1/p). One pass over the inputs. Terms are formed in
    float32 (float64 if an input is float64) and added in an order that is fixed by the elements' row-major numbers,
    chunk by chunk and the chunks' sums in float64: the result has the same bits on CPU (any instruction set, any
    number of threads) and CUDA, for any layout and batch, and its error does not grow with n.

    Equivalent to, for inputs of [B, *sample]::

        delta = torch.maximum(torch.tensor(atol), rtol * torch.maximum(lower.abs(), previous.abs()))
        E = ((higher - lower) / delta).square().flatten(1).mean(1).sqrt()

    Trap: the published code takes the maximum of E over the batch, ``E.max()``, for one step size for all. Here each
    sample has its own, so that a batch can be stepped as its samples would be alone.

    Args:
        lower: the solution of lower order, ``[B, *sample]``: float32, float16, bfloat16 or float64, in any mix with the
            others. Strides that merge to at most 6 dimensions; the fast path is contiguous.
        higher: the one of higher order, the same shape.
        previous: x at the start of the step (or the last accepted x), the same shape.
        atol: absolute tolerance, at least 0. 0.0078 for data in [-1, 1]: half a grey level.
        rtol: relative tolerance, at least 0.
        out: where to write, ``[B]``, float32 (float64 if an input is float64); shares no memory with the inputs.

    Returns:
        E ``[B]``, float32 or float64. ``[B]`` inputs are B samples of one element. NaN and inf propagate as in the
        expression; 0/0, where both tolerances and the difference are 0, is NaN, and so is the mean of an empty sample.

    Raises:
        RuntimeError: a wrong dtype, shape, device, overlap or number. Nothing is written then.
        NotImplementedError: a gradient with respect to an input is asked for.

    Source: Lu et al. 2022 (DPM-Solver), appendix C (adaptive step size) and ``dpm_solver_adaptive``, after
    Jolicoeur-Martineau et al. 2021, algorithm 1.
    """
    inputs = (lower, higher, previous)
    written = () if out is None else (out,)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, *written)):
        raise NotImplementedError(
            "fastdiff.scaled_error_norm: no gradient is defined; detach the inputs or call it under torch.no_grad()"
        )
    if out is None:
        result: Tensor = torch.ops.fastdiff.scaled_error_norm.default(*inputs, atol, rtol)
        return result
    torch.ops.fastdiff.scaled_error_norm.out(*inputs, atol, rtol, result=out)
    _native.mark_written([out])
    return out


def reference(
    lower: Tensor, higher: Tensor, previous: Tensor, *, atol: float = 0.0078, rtol: float = 0.05
) -> Tensor:
    """:func:`scaled_error_norm` in plain PyTorch and float64, rounded at the end."""
    low, high, before = (x.double().reshape(x.shape[0], -1) if x.numel() else x.double().new_empty(x.shape[0], 0)
                         for x in (lower, higher, previous))  # fmt: skip
    floor = torch.tensor(atol, dtype=torch.float64, device=lower.device)
    delta = torch.maximum(floor, rtol * torch.maximum(low.abs(), before.abs()))
    error = ((high - low) / delta).square().mean(1).sqrt()
    return error.to(_result_dtype(lower, higher, previous))


def dlpack_arguments(
    lower: Tensor, higher: Tensor, previous: Tensor, *, atol: float = 0.0078, rtol: float = 0.05
) -> dict[str, Any]:
    """The keyword arguments of the torch-free ``scaled_error_norm`` for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.scaled_error_norm_scratch(lower), dtype=torch.uint8, device=lower.device)
    inputs = {"lower": lower, "higher": higher, "previous": previous}
    return {**inputs, "atol": atol, "rtol": rtol, "scratch": scratch}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free ``scaled_error_norm``."""
    return stored[0]


def tolerance(lower: Tensor, higher: Tensor, previous: Tensor, **options: float) -> dict[str, float]:
    """All summands are positive: a few roundings, whatever n."""
    result = reference(lower, higher, previous, **options).nan_to_num(0, 0, 0)
    return {"scale": float(result.max()) if result.numel() else 0.0, "terms": 8}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def three(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        lower = normal(*shape, dtype=torch.float64)
        return [t.to(dtype) for t in (lower, lower + 0.02 * normal(*shape), lower + 0.1 * normal(*shape))]

    def case(name: str, inputs: list[Tensor], **options: float) -> Case:
        return Case(name, tuple(inputs), dict(options))

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = three(5, 3, 50)
    rough[0][0, 1, 7], rough[1][1, 0, 3], rough[2][2, 2, 4] = math.nan, math.nan, math.nan
    rough[1][3, 0, 0], rough[2][4, 1, 1] = math.inf, -math.inf
    equal = [normal(2, 40)] * 3
    shapes: list[tuple[int, ...]] = [
        (5,),
        (0, 4),
        (1, 1),
        (3, 2),
        (2, 127),
        (2, 129),
        (1, 1025),
        (9, 2, 3),
    ]
    return [
        *(case(str(d)[6:], three(2, 3, 9, 11, dtype=d)) for d in (single, torch.float16, half, double)),
        case("mixed dtypes", [x.to(d) for x, d in zip(three(2, 3, 8, 9), (half, single, torch.float16), strict=True)]),
        case("mixed with float64", [x.to(d) for x, d in zip(three(2, 300), (half, single, double), strict=True)]),
        case("several chunks", three(2, 3, 37, 41)),
        case("several chunks, float64", three(2, 3, 37, 41, dtype=double)),
        case("several chunks, bfloat16", three(1, 3, 37, 41, dtype=half)),
        case("many chunks", three(2, 33_001)),
        case("more chunks than one block takes", three(1, 66_001)),
        case("more chunks than one block takes, no tail", three(1, 65, 1024, dtype=half)),
        case("absolute tolerance alone", three(2, 100), rtol=0.0),
        case("relative tolerance alone", three(2, 100), atol=0.0),
        case("no error", equal),
        case("nan and inf", rough),
        case("channels_last", [x.to(memory_format=torch.channels_last) for x in three(2, 3, 19, 23)]),
        case("layouts differ", [x.to(memory_format=f) for x, f in zip(three(2, 3, 19, 23), (
            torch.channels_last, torch.contiguous_format, torch.channels_last), strict=True)]),
        case("transposed", [x.t() for x in three(13, 11)]),
        case("every second column", [x[:, ::2] for x in three(3, 2100)]),
        case("expanded", [x.expand(3, 4, 150) for x in three(3, 1, 150)]),
        case("misaligned", [misaligned(x) for x in three(2, 3, 67)]),
        *(case(f"shape {list(s)}", three(*s)) for s in shapes),
    ]  # fmt: skip
