# SPDX-License-Identifier: Apache-2.0
"""dequantize: numbers of int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.quant._affine import scale_and_zero

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False  # the result has another dtype than q

# c10::ScalarType codes, stable across torch versions: dtypes do not travel in schemas.
_CODE: Final = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
_DTYPE: Final = {code: dtype for dtype, code in _CODE.items()}

_ARGUMENTS = "Tensor q, Tensor scale, Tensor? zero_point, Tensor? step, int dtype"


def _fake(q: Tensor, scale: Tensor, zero_point: Tensor | None, step: Tensor | None, dtype: int) -> Tensor:
    return torch.empty_like(q, dtype=_DTYPE[dtype])


def _fake_out(q: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != q.device:
        raise RuntimeError(f"fastdiff::dequantize: out must be on {q.device} like q, got {result.device}")


_native.define(f"dequantize({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"dequantize.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def dequantize(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    step: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""Numbers of int8:

    .. math::
        x = (q - \text{zero\_point}) \cdot \text{scale}

    Args:
        q: int8, any shape and strides.
        scale: one number, or what broadcasts to q: ``[..., 1]`` as :func:`quantize_per_token` gives it, ``[K]`` for
            channels; with ``step`` a table ``[T]``. float32, float16, bfloat16 or float64.
        zero_point: int32, like the scale or one number; default: 0.
        step: int64, one number, or ``[B]`` for q ``[B, ...]``: the row of the tables, as in :func:`quantize_static`.
        dtype: of the result: float32 (the default), float16, bfloat16 or float64.
        out: where to write, of the shape of q; its dtype is that of the result. Shares no memory with the inputs.

    Returns:
        x, with the strides of q, or ``out``. The product is float32 (float64 for float64) and rounded once.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap; on the CPU a step outside the table. Nothing is written
            then. On CUDA such a step stops the kernel, like a device assert.
        NotImplementedError: gradients are recorded and the scale requires them.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: the inverse of :func:`quantize_per_token` and :func:`quantize_static`.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (scale, out)):
        raise NotImplementedError(
            "fastdiff.dequantize: gradients are not recorded; use the expression (q - zero_point) * scale"
        )
    wanted = dtype if dtype is not None else torch.float32 if out is None else out.dtype
    if wanted not in _CODE:
        raise RuntimeError(
            "fastdiff::dequantize: dtype must be float32, float16, bfloat16 or float64, "
            f"got {str(wanted).removeprefix('torch.')}"
        )
    if out is None:
        x: Tensor = torch.ops.fastdiff.dequantize.default(q, scale, zero_point, step, _CODE[wanted])
        return x
    torch.ops.fastdiff.dequantize.out(q, scale, zero_point, step, _CODE[wanted], result=out)
    _native.mark_written([out])
    return out


def reference(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    step: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """:func:`dequantize` in plain PyTorch and float64; rounded at the end."""
    s, z = scale_and_zero(q, scale, zero_point, step)
    return torch.empty_like(q, dtype=dtype).copy_((q.long() - z).double() * s.double())


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    q: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, step: Tensor | None = None, **_: Any
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"q": q, "scale": scale, "zero_point": zero_point, "step": step}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def integers(*shape: int, low: int = -128, dtype: torch.dtype = torch.int8) -> Tensor:
        return torch.randint(low, 128, shape, generator=g, dtype=torch.int16).to(dtype)

    def scales(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.rand(shape, generator=g, dtype=torch.float64) / 50).to(dtype)

    int32 = torch.int32
    no_number = scales(4, 1)
    no_number[2] = float("nan")
    return [
        *(Case(f"of tokens, {str(t)[6:]}", (integers(2, 5, 72), scales(2, 5, 1)), {"dtype": t})
          for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)),
        Case("of channels", (integers(4, 37), scales(37, dtype=torch.bfloat16), integers(37, dtype=int32))),
        Case("one scale and zero point", (integers(3, 40), scales(), integers(1, dtype=int32))),
        Case("a step for each sample", (integers(2, 3, 16), scales(5), integers(5, dtype=int32)),
             {"step": torch.tensor([4, 0]), "dtype": torch.bfloat16}),
        Case("a step", (integers(3, 17), scales(5)), {"step": torch.tensor([3])}),
        Case("output channels, channels last",
             (integers(4, 3, 2, 5).contiguous(memory_format=torch.channels_last), scales(4, 1, 1, 1))),
        Case("a scale for each number", (integers(3, 17), scales(3, 17))),
        Case("a row without a number", (integers(4, 20), no_number)),
        Case("shape [0, 3]", (integers(0, 3), scales(3))),
    ]  # fmt: skip
