# SPDX-License-Identifier: Apache-2.0
"""Quantised and low-rank matrix products."""

from fastdiff.quant._adapters import facilitated_gate, gaussian_teleport, stack_adapters, wiener_denoise
from fastdiff.quant._epilogue import LowRank
from fastdiff.quant._packing import PackedWeight, pack_weight
from fastdiff.quant.dequantize import dequantize
from fastdiff.quant.fake_quant import fake_quant
from fastdiff.quant.int8_linear import int8_linear
from fastdiff.quant.lowrank_apply import lowrank_apply
from fastdiff.quant.quantize_per_token import quantize_per_token
from fastdiff.quant.quantize_static import quantize_static

__all__ = [
    "LowRank",
    "PackedWeight",
    "dequantize",
    "facilitated_gate",
    "fake_quant",
    "gaussian_teleport",
    "int8_linear",
    "lowrank_apply",
    "pack_weight",
    "quantize_per_token",
    "quantize_static",
    "stack_adapters",
    "wiener_denoise",
]
