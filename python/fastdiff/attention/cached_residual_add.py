# SPDX-License-Identifier: Apache-2.0
"""cached_residual_add: the residuals of transformer blocks whose components come from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

MAX_COMPONENTS: Final = 24

_ARGUMENTS = "Tensor h, Tensor[] components, Tensor[] gates, int[] gate_of"


def _fake(h: Tensor, components: Sequence[Tensor], gates: Sequence[Tensor], gate_of: Sequence[int]) -> Tensor:
    return torch.empty_like(h)


def _fake_out(h: Tensor, *_: Any, result: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if result.device != h.device:
        raise RuntimeError(
            f"fastdiff::cached_residual_add: out must be on {h.device} like h, got {result.device}"
        )


_native.define(f"cached_residual_add({_ARGUMENTS}) -> Tensor", _fake)
# NOTE: not named `out`: dynamo gives that name a meaning of its own.
_native.define(f"cached_residual_add.out({_ARGUMENTS}, *, Tensor(a!) result) -> ()", _fake_out)


def cached_residual_add(
    h: Tensor,
    components: Sequence[Tensor],
    gates: Sequence[Tensor | None] | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    r"""The residual stream after transformer blocks whose components are known already:

    .. math::
        y = h + \sum_i g_i \odot c_i

    One launch for a whole run of cached blocks: every tensor is read once and y is written once. PixArt's block, fully
    cached, is ``cached_residual_add(h, [attn1, attn2, ff], [gate_msa, None, gate_mlp])``, where the gates are the
    current timestep's and the cache has the components before them. DiffFit's scaled residual y = x + γ h is
    ``cached_residual_add(x, [h], [gamma])``.

    The sum is formed in this order in float32 (float64 for float64), with fused multiply-adds, and rounded once, at the
    store, where eager code rounds after each operation: the same bits on CPU (any instruction set, any number of
    threads) and CUDA, for any strides.

    Args:
        h: ``[B, N, D]``, or any shape: float32, float16, bfloat16 or float64, any strides.
        components: up to 24 tensors of the shape of h, each of any of these dtypes.
        gates: for each component what multiplies it: a tensor that broadcasts to h, such as ``[B, 1, D]`` or ``[D]``,
            of any of these dtypes, or None for 1. Default: None for all.
        out: where to write, of the dtype of h; may be exactly h or a component.

    Returns:
        y, like h; or ``out``. NaN and inf propagate as in the expression.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        ValueError: not one gate for each component.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable with respect to all tensors, of any order; see :mod:`fastdiff.attention.cached_residual_add_grad`.

    Source: ECAD (Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model), cached transformer blocks;
    DiffFit, section 3.2.
    """
    if gates is None:
        gates = [None] * len(components)
    if len(gates) != len(components):
        raise ValueError(
            f"fastdiff.cached_residual_add: gates must be one for each of {len(components)} components, "
            f"got {len(gates)}"
        )
    given = [g for g in gates if g is not None]
    numbers = _numbers(gates)
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (h, *components, *given, out)
    ):
        from fastdiff.attention.cached_residual_add_grad import differentiable_add

        if out is not None:
            raise NotImplementedError(
                "fastdiff.cached_residual_add: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_add(h, list(components), given, numbers)
    if out is None:
        y: Tensor = torch.ops.fastdiff.cached_residual_add.default(h, components, given, numbers)
        return y
    torch.ops.fastdiff.cached_residual_add.out(h, components, given, numbers, result=out)
    _native.mark_written([out])
    return out


def _numbers(gates: Sequence[Tensor | None]) -> list[int]:
    """Of each component's gate among those that there are; -1: none."""
    numbers, count = [], 0
    for gate in gates:
        numbers.append(-1 if gate is None else count)
        count += gate is not None
    return numbers


# ---- the reference ---------------------------------------------------------------------------------------------


def reference(
    h: Tensor, components: Sequence[Tensor], gates: Sequence[Tensor | None] | None = None
) -> Tensor:
    """:func:`cached_residual_add` in plain PyTorch and float64; rounded at the end."""
    y = h.double()
    for c, g in zip(components, gates or [None] * len(components), strict=True):
        y = y + (c.double() if g is None else g.double() * c.double())
    return torch.empty_like(h).copy_(y)


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    h: Tensor, components: Sequence[Tensor], gates: Sequence[Tensor | None] | None = None
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    given = gates or [None] * len(components)
    return {
        "h": h,
        "components": list(components),
        "gates": [g for g in given if g is not None],
        "gate_of": _numbers(given),
    }


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def pixart(
        b: int, n: int, d: int, dtype: torch.dtype = torch.float32, of_gates: torch.dtype = torch.float32
    ) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
        """A fully cached block: the gates of self-attention and feed-forward, cross-attention without."""
        modulation = normal(b, 6, d, dtype=of_gates)
        components = [normal(b, n, d, dtype=dtype) for _ in range(3)]
        return normal(b, n, d, dtype=dtype), components, [modulation[:, 2:3], None, modulation[:, 5:6]]

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = pixart(1, 3, 40)
    rough[0][0, 1, 3], rough[1][0][0, 2, 5], rough[1][1][0, 0, 7] = float("nan"), float("inf"), -float("inf")
    return [
        *(Case(f"a cached block, {str(t)[6:]}", pixart(2, 9, 72, t)) for t in (single, half, torch.float16, double)),
        Case("gates of the tokens' dtype", pixart(2, 5, 64, half, half)),
        Case("a run of eight blocks", (normal(1, 7, 33), [c for _ in range(8) for c in pixart(1, 7, 33)[1]],
                                       [c for _ in range(8) for c in pixart(1, 7, 33)[2]])),
        Case("without gates", (normal(2, 1030), [normal(2, 1030), normal(2, 1030, dtype=half)])),
        Case("a layer scale", (normal(2, 5, 24), [normal(2, 5, 24)], [normal(24)])),
        Case("a gate for each element", (normal(3, 20), [normal(3, 20)], [normal(3, 20)])),
        Case("a gate for each sample", (normal(3, 2, 20, dtype=half), [normal(3, 2, 20)], [normal(3, 1, 1)])),
        Case("one number", (normal(3, 20), [normal(3, 20)], [normal()])),
        Case("mixed dtypes", (normal(2, 3, 16, dtype=half), [normal(2, 3, 16), normal(2, 3, 16, dtype=torch.float16)],
                              [normal(16, dtype=double), None])),
        Case("transposed", (normal(2, 5, 9).transpose(1, 2), [normal(2, 9, 5)], [normal(5)])),
        Case("nan and inf", rough),
        Case("no component", (normal(2, 3), [])),
        Case("a number each", (normal(), [normal(), normal()], [normal(), None])),
        Case("nothing", (normal(0, 3), [normal(0, 3)], [normal(3)])),
    ]  # fmt: skip
