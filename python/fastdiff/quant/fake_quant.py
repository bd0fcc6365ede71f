# SPDX-License-Identifier: Apache-2.0
"""fake_quant: numbers as they are after quantisation, with the straight-through gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.quant._affine import range_of, scale_and_zero

if TYPE_CHECKING:
    from fastdiff._case import Case

_ARGUMENTS = (
    "Tensor x, Tensor scale, Tensor? zero_point, Tensor? step, int quant_min, int quant_max, "
    "Tensor? gradient=None"
)


def _fake(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_out(x: Tensor, *_: Any, result: Tensor, **__: Any) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(f"fastdiff::fake_quant: out must be on {x.device} like x, got {result.device}")


_native.define(f"fake_quant({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"fake_quant.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def fake_quant(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    step: Tensor | None = None,
    quant_min: int | None = None,
    quant_max: int = 127,
    out: Tensor | None = None,
) -> Tensor:
    r"""Numbers as they are after quantisation, in one pass:

    .. math::
        y = (\mathrm{clamp}(\mathrm{round}(x \cdot \tfrac{1}{\text{scale}}) + \text{zero\_point},\,
            \text{quant\_min},\, \text{quant\_max}) - \text{zero\_point}) \cdot \text{scale}

    with halves rounded to even: bit for bit :func:`torch.fake_quantize_per_tensor_affine` and
    :func:`torch.fake_quantize_per_channel_affine` in float32, float16 and bfloat16, which multiply with the reciprocal
    too, but for NaN, which stays NaN as in the eager expression. The 8 passes of that with a straight-through gradient
    become one; so does the gradient.

    Args:
        x: any shape and strides: float32, float16, bfloat16 or float64.
        scale: one number, or what broadcasts to x, such as ``[C, 1, 1, 1]`` for the output channels of a convolution;
            with ``step`` a table ``[T]``. Of any of these dtypes, used as float32.
        zero_point: int32, like the scale; default: 0.
        step: int64, one number, or ``[B]`` for x ``[B, ...]``: the row of the tables that is used, for each sample its
            own. A tensor, so that another step neither recompiles nor synchronises.
        quant_min, quant_max: the range of whole numbers, within ±2²²; default: −128 … 127 with a zero point, −127 … 127
            without. PTQ4DM's n bits are 0 … 2ⁿ − 1.
        out: where to write, like x; may be exactly x, shares no memory with others.

    Returns:
        y, like x, or ``out``. The arithmetic is float32, for float64 x float64.

    Raises:
        RuntimeError: a wrong dtype, shape, range, device or overlap; on the CPU a step outside the table. Nothing is
            written then. On CUDA such a step stops the kernel, like a device assert.
        NotImplementedError: gradients are asked for with ``out=``, or with respect to the scale.

    Differentiable with respect to x, of any order: straight through where the clamp changes nothing, 0 elsewhere.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: Post-training Quantization on Diffusion Models (PTQ4DM), ``UniformAffineQuantizer``, which divides x by the
    scale: the two differ by one step where x/scale is within a rounding of a half.
    """
    low, high = range_of(quant_min, quant_max, zero_point)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, out)):
        from fastdiff.quant.fake_quant_grad import differentiable_fake_quant

        if out is not None or scale.requires_grad:
            raise NotImplementedError(
                "fastdiff.fake_quant: gradients are recorded for x alone and not with out=; "
                "detach the scale, omit out"
            )
        return differentiable_fake_quant(x, scale, zero_point, step, low, high)
    if out is None:
        y: Tensor = torch.ops.fastdiff.fake_quant.default(x, scale, zero_point, step, low, high)
        return y
    torch.ops.fastdiff.fake_quant.out(x, scale, zero_point, step, low, high, result=out)
    _native.mark_written([out])
    return out


def reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    step: Tensor | None = None,
    quant_min: int | None = None,
    quant_max: int = 127,
) -> Tensor:
    """:func:`fake_quant` in plain PyTorch, the same operations in the same precision."""
    low, high = range_of(quant_min, quant_max, zero_point)
    s, z = scale_and_zero(x, scale, zero_point, step)
    wide = x if x.dtype == torch.float64 else x.float()
    s = s.to(wide.dtype)
    y = ((wide * (1 / s)).round() + z).clamp(low, high).sub(z) * s
    return torch.empty_like(x).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor | None = None, **options: Any) -> Tensor:
    """What :func:`fake_quant` is differentiated as: the straight-through estimator in plain PyTorch.

    It is x itself where the clamp changes nothing, and a constant elsewhere.
    """
    low, high = range_of(options.get("quant_min"), options.get("quant_max", 127), zero_point)
    s, z = scale_and_zero(x, scale, zero_point, options.get("step"))
    wide = x.detach() if x.dtype == torch.float64 else x.detach().float()
    q = (wide * (1 / s.to(wide.dtype))).round() + z
    return torch.where((q >= low) & (q <= high), x, x.detach())


def dlpack_arguments(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    step: Tensor | None = None,
    quant_min: int | None = None,
    quant_max: int = 127,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    low, high = range_of(quant_min, quant_max, zero_point)
    options = {"zero_point": zero_point, "step": step, "quant_min": low, "quant_max": high}
    return {"x": x, "scale": scale, **options}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g, dtype=torch.int32)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(4, 20)
    rough[1, 3], rough[2, 0], rough[3, 1] = float("nan"), float("-inf"), float("inf")
    scale = torch.tensor(0.0173)
    return [
        *(Case(f"one scale, {str(t)[6:]}", (normal(2, 3, 40, dtype=t), scale, torch.tensor(-7, dtype=torch.int32)))
          for t in (single, half, torch.float16, double)),
        Case("of a weight's output channels", (normal(5, 3, 3, 3), normal(5, 1, 1, 1).abs() / 50)),
        Case("of the last dimension", (normal(3, 37, dtype=half), normal(37).abs() / 40, integers(-9, 9, 37))),
        Case("a step of a table, 4 bits", (normal(2, 33), normal(6).abs() / 4, integers(-8, 8, 6)),
             {"step": torch.tensor(4), "quant_min": -8, "quant_max": 7}),
        Case("a step for each sample, unsigned", (normal(3, 4, 16), normal(6).abs() / 60, integers(0, 256, 6)),
             {"step": torch.tensor([5, 0, 3]), "quant_min": 0, "quant_max": 255}),
        Case("channels last", (normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), scale)),
        Case("nan and inf", (rough, scale, torch.tensor([3], dtype=torch.int32))),
        Case("one number", (normal(), scale[None])),
        Case("shape [2, 0]", (normal(2, 0), scale)),
    ]  # fmt: skip
