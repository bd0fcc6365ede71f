# SPDX-License-Identifier: Apache-2.0
"""normed_token_mean: the mean over tokens of their layer norm, modulated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False
SAME_BITS: Final = False  # CUDA adds across a token in another order; every instruction set agrees

_ARGUMENTS = "Tensor x, Tensor? scale, Tensor? shift, float eps"


def _fake(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    if x.dim() != 3:
        raise RuntimeError(
            f"fastdiff::normed_token_mean: x must have 3 dimensions [B, N, D], got {list(x.shape)}"
        )
    return x.new_empty(x.shape[0], x.shape[2])


def _fake_out(x: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != x.device:
        raise RuntimeError(
            f"fastdiff::normed_token_mean: out must be on {x.device} like x, got {result.device}"
        )


_native.define(f"normed_token_mean({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"normed_token_mean.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def normed_token_mean(
    x: Tensor,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    r"""The mean over tokens of their layer norm, modulated: all that uniform attention needs of its tokens.

    .. math::
        y = (1 + \text{scale}) \odot \frac{1}{N} \sum_n \mathrm{LN}(x_n) + \text{shift}, \qquad
        \mathrm{LN}(x) = \frac{x - \bar x}{\sqrt{\mathrm{var}(x) + \varepsilon}}

    with the layer norm over D, without weights, its variance divided by D. One read of x. Sums are float32 (float64 for
    float64), y is rounded once.

    Args:
        x: tokens ``[B, N, D]``: float32, float16, bfloat16 or float64, any strides; D up to 8192.
        scale, shift: ``[B or 1, D]``, of any of these dtypes; default: 0.
        eps: of the layer norm, at least 0.
        out: where to write, ``[B, D]`` of the dtype of x; shares no memory with the inputs.

    Returns:
        y ``[B, D]``, in the dtype of x; or ``out``. Of no tokens: NaN, as ``torch.mean``.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to x, scale and shift, of any order, by PyTorch's own layer norm.

    On every instruction set of the CPU, for any number of threads and any strides the bits are the same.

    Source: FlexDiT, Poolingformer; see :func:`uniform_mixer`.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, scale, shift, out)):
        from fastdiff.attention.normed_token_mean_grad import differentiable_mean

        if out is not None:
            raise NotImplementedError(
                "fastdiff.normed_token_mean: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_mean(x, scale, shift, eps)
    if out is None:
        y: Tensor = torch.ops.fastdiff.normed_token_mean.default(x, scale, shift, eps)
        return y
    torch.ops.fastdiff.normed_token_mean.out(x, scale, shift, eps, result=out)
    _native.mark_written([out])
    return out


def expression(x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float) -> Tensor:
    """The same in PyTorch, in the dtype of x."""
    y = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=eps).mean(1)
    if scale is not None:
        y = y * (1 + scale.to(y.dtype))
    return y if shift is None else y + shift.to(y.dtype)


def reference(
    x: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """:func:`normed_token_mean` in plain PyTorch and float64; rounded at the end."""
    return expression(x.double(), scale, shift, eps).to(x.dtype)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(x: Tensor, *, eps: float = 1e-6, **options: Any) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    scratch = torch.empty(_C.normed_token_mean_scratch(x), dtype=torch.uint8, device=x.device)
    return {"x": x, "eps": eps, "scratch": scratch, **options}


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def tolerance(x: Tensor, *, scale: Tensor | None = None, **_: Any) -> dict[str, float]:
    """Of sums over a token and over all tokens; a normed number is at most the root of D."""
    if not x.numel():
        return {"scale": 1.0, "terms": 1}
    wide = x.double().nan_to_num(0, 0, 0)
    deviation = wide.std(-1, correction=0).clamp(min=1e-3)
    spread = float((wide.abs().amax(-1) / deviation).max())
    factor = 1.0 if scale is None else 1 + float(scale.double().abs().max())
    return {"scale": spread * factor, "terms": 8 + x.shape[1] // 4 + x.shape[2] // 16}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return (0.5 + torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = normal(2, 5, 24)
    rough[0, 3, 7] = float("nan")
    return [
        *(Case(f"modulated, {str(t)[6:]}", (normal(2, 9, 72, dtype=t),),
               {"scale": normal(2, 72), "shift": normal(2, 72)})
          for t in (single, half, torch.float16, double)),
        Case("more tokens than a chunk", (normal(2, 130, 40),),
             {"scale": normal(1, 40), "shift": normal(1, 40, dtype=half)}),
        Case("not modulated", (normal(1, 64, 33),)),
        Case("scale alone", (normal(2, 3, 16, dtype=half),), {"scale": normal(2, 16, dtype=half)}),
        Case("shift alone, large eps", (normal(2, 3, 17),), {"shift": normal(2, 17), "eps": 0.5}),
        Case("one token of one channel", (normal(1, 1, 1),)),
        Case("few channels", (normal(3, 7, 5),)),
        Case("channels first", (normal(2, 20, 9).transpose(1, 2),)),
        Case("tokens with gaps", (normal(2, 12, 40)[:, ::2, :33],)),
        Case("nan", (rough,)),
        *(Case(f"shape {list(s)}", (normal(*s),)) for s in ((0, 3, 8), (2, 3, 0))),
    ]  # fmt: skip
