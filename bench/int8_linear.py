# SPDX-License-Identifier: Apache-2.0
"""Cases of int8_linear: a layer with GELU, as in the MLP of a DiT, and one with adapters beside it.

The baselines start from the same floating activations. Those that multiply integers quantise them too: FBGEMM's and
oneDNN's dynamic layers with one scale for the whole tensor, which is less work and less exact, torch._int_mm with a
scale for each row in eager code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fastdiff import LowRank, int8_linear, pack_weight, quantize_per_token
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.kit import OURS, Call, Case, Check, Contender, Target, Verdict, close_to
from fastdiff.quant.int8_linear import reference
from torch import Tensor
from torch.nn.functional import gelu, linear

OP = "int8_linear"
EAGER, COMPILED, INT_MM, PLAIN = "eager", "torch.compile", "torch._int_mm", "without adapters"
ENGINES = {"fbgemm": "FBGEMM dynamic", "onednn": "oneDNN dynamic"}
SEVEN = "fastdiff, 7 bits"

SMALL = (96, 64)
WEIGHTS = (SMALL, (4608, 1152), (4096, 4096))  # [N, K]
ROWS = (1, 16, 256, 1024)
MANY = 4096  # rows, columns and elements along K: what the tensor cores of a GPU are busy with
DTYPES = (torch.float32, torch.bfloat16)
ADAPTERS = 8
# Against eager float32 with GELU, by rows: what 8 bits are to reach.
LEAST = {1: 4.0, 16: 2.5, 256: 1.6, 1024: 1.6}


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first; whole models at the end."""
    from fastdiff.bench import int8_linear_models as models

    layers = [
        _case(f"gelu_{m}", f"GELU(x W + b), {m} rows", shape, dtype, _layer(m, shape, dtype))
        for shape in WEIGHTS
        for m in (ROWS if shape != SMALL else (5,))
        for dtype in DTYPES
    ]
    branches = [
        _case(
            f"adapters_{m}",
            f"{ADAPTERS} gated adapters, {m} rows",
            shape,
            torch.float32,
            _adapters(m, shape),
            (Target(PLAIN, factor=1 / 1.1),),
        )
        for shape in WEIGHTS
        for m in ((256, 1024) if shape != SMALL else (6,))
    ]
    half, square = torch.bfloat16, (MANY, MANY)
    large = [
        _case(f"gelu_{MANY}", f"GELU(x W + b), {MANY} rows", square, half, _layer(MANY, square, half),
              (Target(EAGER, factor=1.3),)),
        _case(f"products_{MANY}", f"rows of int8, {MANY} of them", square, half, _products(MANY, square, half),
              (Target(EAGER, factor=1.45), Target(INT_MM, factor=1.0))),
    ]  # fmt: skip
    return [*layers, *large, *branches, *models.cases()]


def _case(
    name: str,
    title: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
    build: Callable[[torch.device], list[Contender]],
    targets: tuple[Target, ...] | None = None,
) -> Case:
    (n, k), rows = shape, int(name.rsplit("_", 1)[1])
    if targets is None:
        targets = (Target(EAGER, factor=LEAST[rows]),) if dtype == torch.float32 and rows in LEAST else ()
        targets += tuple(Target(other, factor=1.0) for other in (INT_MM, *ENGINES.values()) if shape != SMALL)
    return Case(
        OP,
        name,
        title,
        shape,
        dtype,
        1,
        build,
        () if shape == SMALL else targets,
        moves=n * k + rows * (n + k) * dtype.itemsize,
        flops=2.0 * rows * n * k,
    )


def near(want: Tensor, error: float) -> Check:
    """A check: the relative error of quantised layers is at most so much."""

    def check(got: Sequence[Tensor]) -> Verdict:
        measured = float((got[0].double() - want).norm() / want.norm())
        return Verdict(
            measured, None if measured <= error else f"relative error {measured:.1e}, allowed {error:.1e}"
        )

    return check


def _normal(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g).to(device, dtype)


def _layer(m: int, shape: tuple[int, int], dtype: torch.dtype) -> Callable[[torch.device], list[Contender]]:
    n, k = shape

    def build(device: torch.device) -> list[Contender]:
        x, b = _normal(device, dtype, m, k), _normal(device, dtype, n, seed=2)
        w = _normal(device, torch.float32, n, k, seed=1) / k**0.5
        packed, plain = pack_weight(w), w.to(dtype)
        want = gelu(linear(x.double(), w.double(), b.double()))
        exact = {
            bits: reference(x.cpu(), packed.to("cpu"), b.cpu(), bits=bits, activation="gelu")
            for bits in (7, 8)
        }

        def eager(x: Tensor, w: Tensor, b: Tensor) -> Sequence[Tensor]:
            return (gelu(linear(x, w, b)),)

        def ours(bits: int) -> Contender:
            return Contender(
                OURS if bits == 8 else SEVEN,
                lambda: (int8_linear(x, packed, b, bits=bits, activation="gelu"),),
                close_to([exact[bits].double().to(device)], roundoffs=16.0),
                rival=None,
            )

        return [
            Contender(EAGER, lambda: eager(x, plain, b), near(want, 0.01)),
            Contender(COMPILED, peers.compiled(eager, [x, plain, b], []), near(want, 0.01)),
            *_integers(x, w, b, near(want, 0.04)),
            ours(8),
            ours(7),
        ]

    return build


def _products(
    m: int, shape: tuple[int, int], dtype: torch.dtype
) -> Callable[[torch.device], list[Contender]]:
    """Of rows that are int8 already; no more is left of the layer."""
    n, k = shape

    def build(device: torch.device) -> list[Contender]:
        x = _normal(device, dtype, m, k)
        w = _normal(device, torch.float32, n, k, seed=1) / k**0.5
        packed, plain = pack_weight(w), w.to(dtype)
        q, own = quantize_per_token(x)
        weight, scale = _rounded(w)
        want = linear(q.double(), weight.double()) * own * scale

        def int_mm() -> Sequence[Tensor]:
            return ((torch._int_mm(q, weight.T) * own * scale).to(dtype),)

        return [
            Contender(EAGER, lambda: (linear(x, plain),), near(want, 0.03)),
            Contender(INT_MM, int_mm, near(want, 0.01)),
            Contender(
                OURS,
                lambda: (int8_linear(q, packed, x_scale=own, dtype=dtype),),
                near(want, 0.01),
                rival=None,
            ),
        ]

    return build


def _rounded(w: Tensor) -> tuple[Tensor, Tensor]:
    scale = w.abs().amax(1) / 127
    return (w / scale[:, None]).round().to(torch.int8), scale


def _integers(x: Tensor, w: Tensor, b: Tensor, check: Check) -> list[Contender]:
    q, scale = _rounded(w)

    def int_mm() -> Sequence[Tensor]:
        wide = x.float()
        own = wide.abs().amax(1, keepdim=True) / 127
        sums = torch._int_mm((wide / own).round().to(torch.int8), q.T)
        return (gelu(torch.addcmul(b.float(), sums * own, scale)).to(x.dtype),)

    # On CUDA it takes no fewer than 17 rows.
    found = [Contender(INT_MM, int_mm, check)] if x.shape[0] > 16 or x.device.type == "cpu" else []
    if x.device.type == "cpu":
        found += [
            Contender(name, _dynamic(engine, x, w, scale, b), check) for engine, name in ENGINES.items()
        ]
    return found


def _dynamic(engine: str, x: Tensor, w: Tensor, scale: Tensor, b: Tensor) -> Call:
    """torch.ao's dynamic layer, which takes float32."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    zeros = torch.zeros(len(scale), dtype=torch.long)
    q = torch.quantize_per_channel(w, scale.double(), zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(q, b.float())
    torch.backends.quantized.engine = before
    reduce_range = engine == "fbgemm"  # its sums saturate without VNNI otherwise; PyTorch does so too

    def call() -> Sequence[Tensor]:
        return (gelu(torch.ops.quantized.linear_dynamic(x.float(), packed, reduce_range)).to(x.dtype),)

    return call


def _adapters(m: int, shape: tuple[int, int]) -> Callable[[torch.device], list[Contender]]:
    n, k = shape

    def build(device: torch.device) -> list[Contender]:
        x, b = _normal(device, torch.float32, 2, m // 2, k), _normal(device, torch.float32, n, seed=2)
        packed = pack_weight(_normal(device, torch.float32, n, k, seed=1) / k**0.5)
        down = _normal(device, torch.float32, ADAPTERS, k, seed=3) / k**0.5
        up, gates = (_normal(device, torch.float32, *s, seed=4) for s in ((n, ADAPTERS), (2, ADAPTERS)))
        branch = LowRank(down, up, gates)
        host = [packed.to("cpu"), b.cpu()]
        want = reference(x.cpu(), *host, lowrank=LowRank(*(t.cpu() for t in branch if t is not None)))

        def eager() -> Sequence[Tensor]:
            y = int8_linear(x, packed, b)
            for a in range(ADAPTERS):  # one after the other, as SPMLayer.forward
                y = y + gates[:, a].view(2, 1, 1) * (x @ down[a])[..., None] * up[:, a]
            return (y,)

        check = close_to([want.double().to(device)], roundoffs=64.0)
        plain = close_to([reference(x.cpu(), *host).double().to(device)], roundoffs=16.0)
        return [
            Contender(EAGER, eager, check),
            Contender(PLAIN, lambda: (int8_linear(x, packed, b),), plain),
            Contender(OURS, lambda: (int8_linear(x, packed, b, lowrank=branch),), check, rival=None),
        ]

    return build
