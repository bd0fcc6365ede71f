# SPDX-License-Identifier: Apache-2.0
"""attention_map_energy: how far attention maps are from those of a reference, without the maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from fastdiff import _native

if TYPE_CHECKING:
    from fastdiff._case import Case

IN_PLACE: Final = False
SAME_BITS: Final = False  # CUDA adds in another order; every instruction set agrees

_ARGUMENTS = "Tensor q, Tensor k, Tensor q_ref, Tensor k_ref, float scale"


def result_dtype(q: Tensor) -> torch.dtype:
    """float64 for float64, else float32: energies of 16-bit maps are often below what 16 bits can hold."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _fake(q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, scale: float) -> Tensor:
    if q.dim() != 4:
        raise RuntimeError(
            f"fastdiff::attention_map_energy: q must have 4 dimensions [B, H, N, D], got {list(q.shape)}"
        )
    return q.new_empty(q.shape[0], dtype=result_dtype(q))


def _fake_out(q: Tensor, *_: Any, energy: Tensor) -> None:
    """One tensor on the meta device brings a real call here, where nothing would be computed."""
    if energy.device != q.device:
        raise RuntimeError(
            f"fastdiff::attention_map_energy: energy must be on {q.device} like q, got {energy.device}"
        )


_native.define(f"attention_map_energy({_ARGUMENTS}) -> Tensor", _fake)
_native.define(f"attention_map_energy.out({_ARGUMENTS}, *, Tensor(a!) energy) -> ()", _fake_out)


def attention_map_energy(
    q: Tensor,
    k: Tensor,
    q_ref: Tensor,
    k_ref: Tensor,
    *,
    scale: float | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""The mean squared difference of attention maps from those of a reference, for each sample:

    .. math::
        E_b = \frac{1}{H N_q N_{kv}} \sum_{h,q,k} (A_{bhqk} - A^*_{bhqk})^2, \qquad
        A = \mathrm{softmax}(\text{scale} \; q k^T), \quad A^* = \mathrm{softmax}(\text{scale} \; q^* {k^*}^T)

    The maps are never stored: memory is O(N) where they take O(N²). Equal maps have the energy 0 exactly, and the
    energy of maps that are near each other keeps its digits.

    With gradients, energy and gradients come from one pass, :func:`attention_map_energy_gradient`, when this is called;
    the backward pass is a product. Guide-and-Rescale's guidance is the gradient of a sum over layers,
    ``3e5 * sum(attention_map_energy(q, k, q_ref, k_ref) for ...)``, q and k of the current latent and q_ref and k_ref
    of the inverted one at the same step.

    Args:
        q: ``[B, H, N_q, D]``: float32, float16, bfloat16 or float64, any strides; D a multiple of 8 up to 256.
        k: ``[B, H, N_kv, D]``, of any of these dtypes.
        q_ref, k_ref: of the shapes of q and k, of any of these dtypes.
        scale: of the scores; default: D^-1/2.
        out: where to write; shares no memory with the inputs.

    Returns:
        The energies ``[B]``, float32, or float64 for a float64 q; or ``out``. Of no pairs: NaN, as ``torch.mean``. NaN
        and inf propagate as in the expression.

    Raises:
        RuntimeError: a wrong dtype, shape, device or overlap. Nothing is written then.
        NotImplementedError: gradients are asked for with ``out=``.

    Differentiable once, with respect to q and k, and to q_ref and k_ref, which cost a second pass.

    On every instruction set of the CPU, for any number of threads and any strides the bits are the same.

    Source: Titov et al. 2024 (Guide-and-Rescale), the self-attention guider.
    """
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (q, k, q_ref, k_ref, out)):
        from fastdiff.attention.attention_map_energy_grad import differentiable_energy

        if out is not None:
            raise NotImplementedError(
                "fastdiff.attention_map_energy: out= does not record gradients; detach the tensors or omit out"
            )
        return differentiable_energy(q, k, q_ref, k_ref, factor)
    if out is None:
        energy: Tensor = torch.ops.fastdiff.attention_map_energy.default(q, k, q_ref, k_ref, factor)
        return energy
    torch.ops.fastdiff.attention_map_energy.out(q, k, q_ref, k_ref, factor, energy=out)
    _native.mark_written([out])
    return out


# ---- the reference ---------------------------------------------------------------------------------------------


def expression(q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, scale: float) -> Tensor:
    """The same in PyTorch, maps and all, in the dtype of its arguments."""
    maps = torch.softmax(scale * q @ k.mT, -1), torch.softmax(scale * q_ref @ k_ref.mT, -1)
    return (maps[0] - maps[1]).square().mean((1, 2, 3))


def reference(q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, *, scale: float | None = None) -> Tensor:
    """:func:`attention_map_energy` in plain PyTorch and float64, all pairs at once; rounded at the end."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    energy = expression(q.double(), k.double(), q_ref.double(), k_ref.double(), factor)
    return energy.to(result_dtype(q))


# ---- what tests need to know -----------------------------------------------------------------------------------


def dlpack_arguments(
    q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, *, scale: float | None = None
) -> dict[str, Any]:
    """The keyword arguments of the torch-free function for a call of the public one, without ``out``."""
    from fastdiff import _C

    return {
        "q": q, "k": k, "q_ref": q_ref, "k_ref": k_ref,
        "scale": 1 / math.sqrt(q.shape[-1]) if scale is None else scale,
        "scratch": torch.empty(_C.attention_map_energy_scratch(q), dtype=torch.uint8, device=q.device),
    }  # fmt: skip


def dlpack_outputs(stored: tuple[Tensor], *_: Any, **__: Any) -> Tensor:
    """``out`` of the torch-free function."""
    return stored[0]


def tolerance(
    q: Tensor, k: Tensor, q_ref: Tensor, k_ref: Tensor, *, scale: float | None = None
) -> dict[str, float]:
    """An element of a map is off by as many roundings as its score has; the square of a difference by twice that.

    So the bound for an energy E of maps whose mean square is M is terms · roundoff · 2 sqrt(E M), and at least the
    rounding of E itself.
    """
    if not q.numel() or not k.numel():
        return {"scale": 0.0, "terms": 1}
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    maps, largest = [], 0.0
    for a, b in ((q, k), (q_ref, k_ref)):
        x, y = (t.double().nan_to_num(0, 0, 0) for t in (a, b))
        maps.append(torch.softmax(factor * x @ y.mT, -1))
        largest = max(largest, float((abs(factor) * x.abs() @ y.abs().mT).max()))
    energy = float((maps[0] - maps[1]).square().mean((1, 2, 3)).max())
    mean = max(float(t.square().mean((1, 2, 3)).max()) for t in maps)
    return {"scale": 2 * math.sqrt(energy * mean) + 1e-6 * mean, "terms": 16 + largest}


def cases(seed: int = 0) -> list[Case]:
    """Sample calls that cover the op; tests, opcheck, the simulator and the docs run every one of them."""
    from fastdiff._case import Case

    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def tensors(
        b: int, h: int, n: int, d: int, keys: int | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, ...]:
        keys = n if keys is None else keys
        return tuple(normal(b, h, size, d, dtype=dtype) for size in (n, keys, n, keys))

    def near(tensors: tuple[Tensor, ...], by: float) -> tuple[Tensor, ...]:
        """Maps of a reference close by."""
        q, k, *_ = tensors
        return (q, k, *(t + by * normal(*t.shape, dtype=t.dtype) for t in (q, k)))

    half, single, double = torch.bfloat16, torch.float32, torch.float64
    rough = tensors(2, 2, 5, 8, 9)
    rough[0][0, 1, 3, 2] = float("nan")
    fused = normal(2, 19, 2, 3, 24).permute(2, 0, 3, 1, 4)  # as projections give them: [B, N, H, D]
    q, k, *references = tensors(1, 2, 20, 16, 33)
    return [
        *(Case(f"self-attention, {str(t)[6:]}", tensors(2, 2, 35, 40, dtype=t))
          for t in (single, half, torch.float16, double)),
        Case("more keys than a block", tensors(1, 1, 3, 8, 150)),
        Case("more queries than a block, one key", tensors(1, 2, 70, 16, 1)),
        Case("near its reference", near(tensors(1, 2, 17, 24, 40), 1e-3)),
        Case("equal maps", near(tensors(1, 1, 9, 8), 0.0), {"scale": 0.5}),
        Case("references of 16 bits", (q, k, *(t.to(half) for t in references)), {"scale": 0.7}),
        Case("fused projections", (*fused, *(fused + 0.1))),
        Case("a wide head, large scale", tensors(1, 1, 9, 136, 21), {"scale": 1.0}),
        Case("nan", rough),
        Case("no sample", tensors(0, 2, 3, 8)),
    ]  # fmt: skip
