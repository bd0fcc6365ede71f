# SPDX-License-Identifier: Apache-2.0
"""Quantised and low-rank matrix products."""

from fastdiff.quant._epilogue import LowRank
from fastdiff.quant._packing import PackedWeight, pack_weight
from fastdiff.quant.dequantize import dequantize
from fastdiff.quant.fake_quant import fake_quant
from fastdiff.quant.int8_linear import int8_linear
from fastdiff.quant.quantize_per_token import quantize_per_token
from fastdiff.quant.quantize_static import quantize_static

__all__ = [
    "LowRank",
    "PackedWeight",
    "dequantize",
    "fake_quant",
    "int8_linear",
    "pack_weight",
    "quantize_per_token",
    "quantize_static",
]
