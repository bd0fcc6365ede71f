# SPDX-License-Identifier: Apache-2.0
"""quantize_per_token: activations as int8, with a scale for each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native
from fastdiff.quant._norm import ARGUMENTS, normed

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False  # q has another dtype than x

LEAST_MAGNITUDE: Final = 2.0**-100  # of a row: its scale and the reciprocal stay normal numbers


def _fake(x: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    if x.dim() < 1:
        raise RuntimeError(
            "fastdiff::quantize_per_token: x must have at least one dimension [..., K], got []"
        )
    return torch.empty_like(x, dtype=torch.int8), _empty_scale(x)


def _empty_scale(x: Tensor) -> Tensor:
    if x.shape[-1] == 1:
        return torch.empty_like(x, dtype=torch.float32)
    return x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _fake_out(x: Tensor, *_: Any, q: Tensor, scale: Tensor, **__: Any) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    for name, t in (("q", q), ("scale", scale)):
        if t.device != x.device:
            raise RuntimeError(
                f"fastdiff::quantize_per_token: {name} must be on {x.device} like x, got {t.device}"
            )


_native.define(f"quantize_per_token(Tensor x, {ARGUMENTS}) -> (Tensor, Tensor)", _fake)
_native.define(
    f"quantize_per_token.out(Tensor x, {ARGUMENTS}, *, Tensor(a!) q, Tensor(b!) scale) -> ()", _fake_out
)


def quantize_per_token(
    x: Tensor,
    *,
    eps: float | None = None,
    rms: bool = False,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale_by: Tensor | None = None,
    shift: Tensor | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Activations as int8 with a scale for each token, normed and modulated on the way:

    .. math::
        y &= (\mathrm{norm}(x) \odot \text{weight} + \text{bias}) \odot (1 + \text{scale\_by}) + \text{shift} \\
        a &= \max(\max_k |y_k|, 2^{-100}), \qquad \text{scale} = a / 127, \qquad
        q_k = \mathrm{round}(y_k \cdot (127 / a))

    so that :math:`y \approx q \cdot \text{scale}`: symmetric, dynamic, q within −127 and 127, halves rounded to even.
    One read of x and one write of q, where eager code norms, modulates, looks for the largest, divides, rounds,
    clamps and converts. All arithmetic is float32, for float64 x too; the product with 127/a in the place of a division
    moves q by one where y/scale is within 2⁻²³ of a half.

    Args:
        x: ``[..., K]``: float32, float16, bfloat16 or float64, any strides, any K. A row is a token.
        eps: of a layer norm over K, :math:`(x - \bar x) / \sqrt{\mathrm{var}(x) + \varepsilon}`, at least 0; default:
            no norm. The variance is divided by K and formed of differences.
        rms: an RMS norm, :math:`x / \sqrt{\overline{x^2} + \varepsilon}`, in its place.
        weight, bias: ``[K]``, of any of these dtypes; default: 1 and 0.
        scale_by, shift: the modulation of adaptive layer norms: ``[K]``, ``[B or 1, K]`` for x ``[B, ..., K]``, or what
            broadcasts to x in its rank, such as ``[B, 1, K]`` and ``[1, N, K]``; of any of these dtypes; default: 0.
        out: where to write, (int8 like x, float32 ``[..., 1]``); they share no memory with each other or the inputs.

    Returns:
        q, int8 ``[..., K]`` with the strides of x, and scale, float32 ``[..., 1]``; or ``out``. Where something in y is
        not a finite number the row's scale is NaN and its q are 0, so that a product of the row is NaN, as in float.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: gradients are recorded and a tensor requires them; see :func:`fake_quant` for training.

    The same bits on CPU (any instruction set, any number of threads) and CUDA, for any strides.

    Source: dynamic per-token quantisation; adaLN of DiT; Post-training Quantization on Diffusion Models, section 2.
    """
    tensors = (x, weight, bias, scale_by, shift, *(out or ()))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise NotImplementedError(
            "fastdiff.quantize_per_token: int8 has no gradients; use fake_quant to train, or torch.no_grad()"
        )
    options = (eps, rms, weight, bias, scale_by, shift)
    if out is None:
        result: tuple[Tensor, Tensor] = torch.ops.fastdiff.quantize_per_token.default(x, *options)
        return result
    q, scale = out
    torch.ops.fastdiff.quantize_per_token.out(x, *options, q=q, scale=scale)
    _native.mark_written([q, scale])
    return q, scale


def reference(x: Tensor, **norm: Any) -> tuple[Tensor, Tensor]:
    """:func:`quantize_per_token` in plain PyTorch: y in float64, then the float32 operations of the docstring."""
    y = normed(x, **norm).float()
    amax = torch.cat([y.abs(), y.new_full((*y.shape[:-1], 1), LEAST_MAGNITUDE)], -1).amax(-1, keepdim=True)
    amax = amax.where(amax.isfinite(), float("nan"))
    inverse = torch.full_like(amax, 127) / amax  # `127 / amax` would be a product with a reciprocal
    q = (y * inverse).round().nan_to_num(0, 0, 0).where(amax.isfinite(), 0)
    return torch.empty_like(x, dtype=torch.int8).copy_(q), _empty_scale(x).copy_(amax / 127)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(x: Tensor, **norm: Any) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    return {"x": x, **norm}


def dlpack_outputs(stored: tuple[Tensor, Tensor], *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    """``out`` of the torch-free function."""
    return stored


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (0.25 + torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(5, 20)
    rough[1, 3], rough[2, 0], rough[3] = float("nan"), float("-inf"), 0
    return [
        *(Case(f"layer norm and modulation, {str(t)[6:]}", (normal(2, 3, 200, dtype=t),),
               {"eps": 1e-6, "scale_by": normal(2, 200, dtype=t), "shift": normal(2, 200)})
          for t in (single, half, double)),
        Case("weights and biases", (normal(5, 136, dtype=torch.float16),),
             {"eps": 1e-5, "weight": normal(136), "bias": normal(136, dtype=half)}),
        Case("rms norm of long rows", (normal(2, 4360),),
             {"eps": 1e-6, "rms": True, "weight": normal(4360, dtype=half)}),
        Case("as it is, odd", (normal(3, 2, 77),)),
        Case("as it is, bfloat16", (normal(7, 1300, dtype=half),)),
        Case("modulation of each token, without a norm", (normal(2, 3, 9),),
             {"scale_by": normal(1, 3, 9), "shift": normal(2, 1, 9)}),
        Case("channels first", (normal(2, 24, 5).transpose(1, 2),), {"eps": 1e-6}),
        Case("one channel", (normal(3, 4, 1),), {"shift": normal(1)}),
        Case("nan, inf and zeros", (rough,)),
        *(Case(f"shape {list(s)}", (normal(*s),)) for s in ((0, 8), (2, 0))),
    ]  # fmt: skip
