# SPDX-License-Identifier: Apache-2.0
"""quantize_static: activations as int8 with a known scale and zero point, of the tensor or of its diffusion step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.quant._affine import range_of, scale_and_zero
from fastdiff.quant._norm import ARGUMENTS, normed

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False  # q has another dtype than x

_ARGUMENTS = (
    f"Tensor x, Tensor scale, Tensor? zero_point, Tensor? step, int quant_min, int quant_max, {ARGUMENTS}"
)


def _fake(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return torch.empty_like(x, dtype=torch.int8)


def _fake_out(x: Tensor, *_: Any, result: Tensor, **__: Any) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(
            f"fastdiff::quantize_static: out must be on {x.device} like x, got {result.device}"
        )


_native.define(f"quantize_static({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"quantize_static.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def quantize_static(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    step: Tensor | None = None,
    *,
    quant_min: int | None = None,
    quant_max: int = 127,
    eps: float | None = None,
    rms: bool = False,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale_by: Tensor | None = None,
    shift: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Activations as int8 with a known scale and zero point, normed and modulated on the way:

    .. math::
        y &= (\mathrm{norm}(x) \odot \text{weight} + \text{bias}) \odot (1 + \text{scale\_by}) + \text{shift} \\
        q &= \mathrm{clamp}(\mathrm{round}(y \cdot \tfrac{1}{\text{scale}}) + \text{zero\_point},\,
            \text{quant\_min},\, \text{quant\_max})

    with halves rounded to even, so that :math:`y \approx (q - \text{zero\_point}) \cdot \text{scale}`. Activations of a
    diffusion model change with its step, and so do scales: tables ``[T]`` with ``step``, a tensor, so that the next
    step neither recompiles nor synchronises.

    The whole numbers are those of :func:`torch.fake_quantize_per_tensor_affine`, which multiplies with the reciprocal
    too. :func:`torch.quantize_per_tensor` adds the zero point before it rounds: halves differ where that is odd.
    PTQ4DM's unsigned form, q and zero point within 0 and 255, is this one with 128 taken from both.

    Args:
        x: ``[..., K]``, any strides: float32, float16, bfloat16 or float64.
        scale: one number; with ``step`` a table ``[T]``. Of any of these dtypes, used as float32.
        zero_point: int32, like the scale; default: 0.
        step: int64, one number, or ``[B]`` for x ``[B, ...]``: the row of the tables, for each sample its own.
        quant_min, quant_max: the range of q, within −128 and 127; default: −128 … 127 with a zero point, −127 … 127
            without. Narrower ones: 0 … 127 for seven bits without a sign, −8 … 7 for four.
        eps, rms, weight, bias, scale_by, shift: what happens to a row before, as in :func:`quantize_per_token`;
            default: nothing.
        out: where to write, int8 like x; shares no memory with the inputs.

    Returns:
        q, int8 with the strides of x, or ``out``. NaN becomes the zero point, the int8 of 0, as far as the
        range has it. All arithmetic is float32, for float64 x too.

    Raises:
        RuntimeError: a wrong dtype, shape, range, device or overlap; on the CPU a step outside the table. Nothing is
            written then. On CUDA such a step stops the kernel, like a device assert.
        NotImplementedError: gradients are recorded and a tensor requires them; see :func:`fake_quant` for training.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: Post-training Quantization on Diffusion Models (PTQ4DM), ``UniformAffineQuantizer`` and ``change_timestep``.
    """
    low, high = range_of(quant_min, quant_max, zero_point)
    tensors = (x, scale, weight, bias, scale_by, shift, out)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise NotImplementedError(
            "fastdiff.quantize_static: int8 has no gradients; use fake_quant to train, or torch.no_grad()"
        )
    arguments = (x, scale, zero_point, step, low, high, eps, rms, weight, bias, scale_by, shift)
    if out is None:
        q: Tensor = torch.ops.fastdiff.quantize_static.default(*arguments)
        return q
    torch.ops.fastdiff.quantize_static.out(*arguments, result=out)
    _native.mark_written([out])
    return out


def reference(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    step: Tensor | None = None,
    *,
    quant_min: int | None = None,
    quant_max: int = 127,
    **norm: Any,
) -> Tensor:
    """:func:`quantize_static` in plain PyTorch: y in float64, then the float32 operations of the docstring."""
    low, high = range_of(quant_min, quant_max, zero_point)
    s, z = scale_and_zero(x, scale, zero_point, step)
    y = normed(x, **norm).float()
    q = (y * (1 / s)).round() + z
    return torch.empty_like(x, dtype=torch.int8).copy_(q.where(~q.isnan(), z.float()).clamp(low, high))


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    step: Tensor | None = None,
    *,
    quant_min: int | None = None,
    quant_max: int = 127,
    **norm: Any,
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    low, high = range_of(quant_min, quant_max, zero_point)
    options = {"zero_point": zero_point, "step": step, "quant_min": low, "quant_max": high}
    return {"x": x, "scale": scale, **options, **norm}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (0.25 + torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    def integers(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=g, dtype=torch.int32)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(4, 20)
    rough[1, 3], rough[2, 0], rough[3, 1] = float("nan"), float("-inf"), float("inf")
    scale, zero = torch.tensor(0.0213), torch.tensor([-9], dtype=torch.int32)
    table, zeros = normal(6).abs() / 50, integers(-9, 9, 6)
    return [
        *(Case(f"one scale, {str(t)[6:]}", (normal(2, 3, 40, dtype=t), scale, zero))
          for t in (single, half, torch.float16, double)),
        Case("a step", (normal(3, 37), table, zeros, torch.tensor([4]))),
        Case("a step for each sample, seven bits", (normal(3, 4, 16), table, zeros, torch.tensor([5, 0, 3])),
             {"quant_min": 0}),
        Case("normed, a step for each sample", (normal(3, 2, 136, dtype=half), table, None, torch.tensor([1, 1, 5])),
             {"eps": 1e-6, "scale_by": normal(3, 136), "shift": normal(3, 136)}),
        Case("normed with weights, a step", (normal(5, 77), table, zeros, torch.tensor(2)),
             {"eps": 1e-5, "rms": True, "weight": normal(77), "bias": normal(77, dtype=half)}),
        Case("channels last", (normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), scale)),
        Case("modulated, channels first", (normal(2, 24, 5).transpose(1, 2), scale, zero), {"shift": normal(2, 24)}),
        Case("nan and inf", (rough, scale, zero)),
        Case("shape [2, 0]", (normal(2, 0), scale)),
    ]  # fmt: skip
