# SPDX-License-Identifier: Apache-2.0
"""Quantised linear layers of other libraries, where they are installed, each as its own quantize makes them:

    pip install --no-deps torchao optimum-quanto bitsandbytes

They round weights, and activations, in ways of their own, so each is held to the product of the weights before that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from fastdiff import int4_linear, int8_linear, int8_weight_linear, pack_weight
from fastdiff.bench.int8_linear import near
from fastdiff.bench.kit import FAILURES, OURS, Case, Contender, Target
from torch import Tensor, nn
from torch.nn.functional import linear

OP = "weight_linear"
WHOLE = "F.linear"
LIBRARIES = TORCHAO, QUANTO, BITSANDBYTES = "torchao", "optimum-quanto", "bitsandbytes"

SMALL = (96, 128)
WEIGHTS = (SMALL, (4608, 1152), (4096, 4096))  # [N, K]
ROWS = (1, 16, 256, 1024)
DTYPES = (torch.float32, torch.bfloat16)
KINDS = {"int8": "weight of int8", "int8_both": "both of int8", "int4": "weight of 4 bits"}
BITS = {"int8": 8, "int8_both": 8, "int4": 4}
ERROR = {"int8": 0.02, "int8_both": 0.03, "int4": 0.15}  # relative, of the product as a whole


def cases() -> list[Case]:
    """The smallest shapes first."""
    return [
        Case(
            op=OP,
            name=f"libraries_{kind}_{m}",
            title=f"{title}, {m} rows",
            shape=shape,
            dtype=dtype,
            tensors=1,
            build=_contenders(kind, m, shape, dtype),
            targets=()
            if shape == SMALL
            else tuple(Target(name, factor=1.0) for name in (TORCHAO, QUANTO, BITSANDBYTES)),
            moves=math.prod(shape) * BITS[kind] // 8 + m * sum(shape) * dtype.itemsize,
            flops=2 * m * math.prod(shape),
        )
        for shape in WEIGHTS
        for m in (ROWS if shape != SMALL else (5,))
        for dtype in DTYPES
        for kind, title in KINDS.items()
    ]


def _contenders(
    kind: str, m: int, shape: tuple[int, int], dtype: torch.dtype
) -> Callable[[torch.device], list[Contender]]:
    n, k = shape

    def build(device: torch.device) -> list[Contender]:
        g = torch.Generator().manual_seed(0)
        x = torch.randn(m, k, generator=g).to(device, dtype)
        weight = (torch.randn(n, k, generator=g) / k**0.5).to(device, dtype)
        check = near(x.double() @ weight.double().T, ERROR[kind])
        ours = _ours(kind, weight)
        return [
            Contender(WHOLE, lambda: (linear(x, weight),), check),
            *(Contender(name, _call(module, x), check) for name, module in _libraries(kind, weight)),
            Contender(OURS, lambda: (ours(x),), check, rival=None),
        ]

    return build


def _call(module: nn.Module, x: Tensor) -> Callable[[], Sequence[Tensor]]:
    def call() -> Sequence[Tensor]:
        with torch.no_grad():
            return (module(x),)

    return call


def _ours(kind: str, w: Tensor) -> Callable[[Tensor], Tensor]:
    packed = pack_weight(w.float().cpu(), "int4" if kind == "int4" else "int8").to(w.device)
    op = {"int8": int8_weight_linear, "int8_both": int8_linear, "int4": int4_linear}[kind]
    return lambda x: op(x, packed)


# ---- what each library makes of a layer --------------------------------------------------------------------


def _libraries(kind: str, weight: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Those that are installed and have such a layer; what one fails to build is left out, as its user would."""
    for name, package, make in (
        (TORCHAO, "torchao", _torchao),
        (QUANTO, "optimum.quanto", _quanto),
        (BITSANDBYTES, "bitsandbytes", _bitsandbytes),
    ):
        with contextlib.suppress(*FAILURES):
            if importlib.util.find_spec(package) and (made := make(kind, _layer(weight.clone()))) is not None:
                yield name, made


def _layer(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer.eval()


def _torchao(kind: str, layer: nn.Linear) -> nn.Module | None:
    from torchao import quantization as torchao

    config: Any = {
        "int8": torchao.Int8WeightOnlyConfig,
        "int8_both": torchao.Int8DynamicActivationInt8WeightConfig,
    }.get(kind)
    if config is None:  # its layers of 4 bits ask for kernels that are no part of it
        return None
    model = nn.Sequential(layer)
    torchao.quantize_(model, config())
    return model


def _quanto(kind: str, layer: nn.Linear) -> nn.Module | None:
    from optimum import quanto

    if kind == "int8_both":  # asks for a calibration
        return None
    model = nn.Sequential(layer)
    quanto.quantize(model, weights=quanto.qint8 if kind == "int8" else quanto.qint4)
    quanto.freeze(model)
    return model


def _bitsandbytes(kind: str, layer: nn.Linear) -> nn.Module | None:
    import bitsandbytes

    n, k, weight = layer.out_features, layer.in_features, layer.weight
    if kind == "int8":  # its layers of int8 round activations as well
        return None
    made: nn.Module
    if kind == "int4":
        made = bitsandbytes.nn.Linear4bit(k, n, bias=False, compute_dtype=weight.dtype, quant_type="nf4")
    else:
        made = bitsandbytes.nn.Linear8bitLt(k, n, bias=False, has_fp16_weights=False, threshold=0.0)
    made.load_state_dict({"weight": weight})
    return made.to(weight.device).eval()
