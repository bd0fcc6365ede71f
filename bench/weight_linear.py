# SPDX-License-Identifier: Apache-2.0
"""Cases of weight_linear: layers of a DiT and of a text encoder with weights in 8, 4 and 16 bits, and in e4m3, also
with activations that are rounded to it.

Eager code dequantises the weight and multiplies; F.linear starts from the whole weight in the dtype of the activations,
which takes two to eight times the memory. torch's own kernels for packed weights are peers where they take the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fastdiff import PackedWeight, pack_weight, weight_linear
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench import weight_linear_libraries
from fastdiff.bench.int8_linear import near
from fastdiff.bench.kit import OURS, Case, Check, Contender, Target, close_to
from fastdiff.quant.weight_linear import reference
from torch import Tensor
from torch.nn.functional import linear

OP = "weight_linear"
EAGER, COMPILED, WHOLE, PEER = "eager", "torch.compile", "F.linear", "torch, packed"

SMALL = (96, 128)
WEIGHTS = (SMALL, (4608, 1152), (4096, 4096))  # [N, K]
ROWS = (1, 16, 256, 1024)
MANY = 4096  # rows, columns and elements along K: what the tensor cores of a GPU are busy with
DTYPES = (torch.float32, torch.bfloat16)
SCHEMES = ("int8", "int4", "bf16", "fp8")
E4M3 = "e4m3"  # fp8, and activations too
BITS = {"int8": 8, "int4": 4, "bf16": 16, "fp8": 8, E4M3: 8}
GROUP = 64


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first; then those of other libraries."""
    sizes = [
        (scheme, m, shape, dtype)
        for shape in WEIGHTS
        for m in (ROWS if shape != SMALL else (5,))
        for dtype in DTYPES
        for scheme in (*SCHEMES, E4M3)
    ]
    own = [
        Case(
            op=OP,
            name=f"{scheme}_{m}",
            title=f"x and weight of {scheme}, {m} rows"
            if scheme == E4M3
            else f"weight of {scheme}, {m} rows",
            shape=shape,
            dtype=dtype,
            tensors=1,
            build=_contenders(scheme, m, shape, dtype),
            targets=() if shape == SMALL else _targets(scheme, m, dtype),
            moves=math.prod(shape) * BITS[scheme] // 8 + m * sum(shape) * dtype.itemsize,
            flops=2 * m * math.prod(shape),
        )
        for scheme, m, shape, dtype in [*sizes, (E4M3, MANY, (MANY, MANY), torch.bfloat16)]
    ]
    return own + weight_linear_libraries.cases()


def _targets(scheme: str, m: int, dtype: torch.dtype) -> tuple[Target, ...]:
    """Never slower than torch's packed kernels, or than the whole weight in bfloat16; few rows are bound by memory."""
    targets = [Target(EAGER, factor=1.0), Target(PEER, factor=1.0)]
    if dtype == torch.bfloat16:
        targets.append(Target(WHOLE, factor=1.0))
    elif m == 1:
        factors = {"int8": 3.0, "int4": 6.0, "bf16": 1.8, "fp8": 3.0, E4M3: 3.0}
        targets.append(Target(WHOLE, factor=factors[scheme]))
    return tuple(targets)


def _contenders(
    scheme: str, m: int, shape: tuple[int, int], dtype: torch.dtype
) -> Callable[[torch.device], list[Contender]]:
    n, k = shape

    def build(device: torch.device) -> list[Contender]:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(m, k, generator=g).to(device, dtype)
        rounds = scheme == E4M3
        packed = pack_weight(torch.randn(n, k, generator=g) / k**0.5, "fp8" if rounds else scheme)
        w = packed.dequantize()
        want = reference(x.cpu(), packed, round_x=rounds, dtype=torch.float32).double().to(device)
        check = near(want, 0.01 if rounds or dtype != torch.float32 else 1e-5)
        integers, scale = _integers(w, packed, device)
        packed, plain = packed.to(device), w.to(device, dtype)

        def eager(x: Tensor, q: Tensor, scale: Tensor) -> Sequence[Tensor]:
            if rounds:
                x = _dequantized(*_rounded(x)).to(x.dtype)
            groups = q.view(q.shape[0], scale.shape[1], -1).to(x.dtype)
            return (linear(x, (groups * scale[..., None].to(x.dtype)).view_as(q)),)

        given = [x, integers, scale]
        return [
            Contender(EAGER, peers.with_tensors(eager, given, []), check),
            Contender(COMPILED, peers.compiled(eager, given, []), check),
            Contender(WHOLE, lambda: (linear(x, plain),), near(want, 0.05) if rounds else check),
            *_peer(scheme, x, integers, scale, check),
            Contender(
                OURS,
                lambda: (weight_linear(x, packed, round_x=rounds),),
                # The tensor cores add e4m3 with 13 bits behind the point of the largest product.
                near(want, 1e-3 if dtype == torch.float32 else 5e-3)
                if rounds and device.type == "cuda"
                else close_to([want], roundoffs=64.0 if dtype == torch.float32 else 4.0),
                rival=None,
            ),
        ]

    return build


def _integers(w: Tensor, packed: PackedWeight, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same weight as torch would hold it: integers ``[N, K]`` and scales ``[N, groups]``."""
    n, k = w.shape
    if packed.scheme == "fp8":
        scale = packed.scale[:n, None]
        return (w / scale).to(torch.float8_e4m3fn).to(device), scale.to(device)
    if packed.scheme == "bf16":
        return w.bfloat16().to(device), torch.ones(n, 1, device=device)
    scale = packed.scale.view(-1, packed.scale.shape[-1]).T[:n].contiguous()
    q = (w.view(n, scale.shape[1], -1) / scale[..., None]).round().to(torch.int8)
    return q.view(n, k).to(device), scale.to(device)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = x.float().abs().amax(1, keepdim=True) / 448
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def _dequantized(q: Tensor, scale: Tensor) -> Tensor:
    return q.float() * scale


def _peer(scheme: str, x: Tensor, q: Tensor, scale: Tensor, check: Check) -> list[Contender]:
    """What torch has: for weights of integers on the CPU, for two factors of e4m3 everywhere."""
    if scheme == E4M3:

        def scaled_mm() -> Sequence[Tensor]:
            e4m3, own = _rounded(x)
            return (torch._scaled_mm(e4m3, q.T, own, scale.T, out_dtype=torch.bfloat16).to(x.dtype),)

        return [Contender(PEER, scaled_mm, check)]
    if x.device.type != "cpu" or scheme in ("bf16", "fp8"):
        return []
    if scheme == "int8":
        scales = scale[:, 0].to(x.dtype)
        return [Contender(PEER, lambda: (torch._weight_int8pack_mm(x, q, scales),), check)]
    packed = torch._convert_weight_to_int4pack_for_cpu(q.int() + 8, 1)
    both = torch.stack((scale.T, torch.zeros_like(scale.T)), -1).to(x.dtype).contiguous()
    return [
        Contender(PEER, lambda: (torch._weight_int4pack_mm_for_cpu(x, packed, GROUP, both),), check),
    ]
