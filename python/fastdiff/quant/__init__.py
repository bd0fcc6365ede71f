# SPDX-License-Identifier: Apache-2.0
"""Quantised and low-rank matrix products."""

from fastdiff.quant._adapters import facilitated_gate, gaussian_teleport, stack_adapters, wiener_denoise
from fastdiff.quant._calibration import (
    Collector,
    EmaRange,
    RangeTable,
    affine_parameters,
    fold_scale,
    migrate,
    sample_timesteps,
    smoothquant_scales,
)
from fastdiff.quant._epilogue import LowRank
from fastdiff.quant._layers import QuantConv2d, QuantLayer, QuantLinear
from fastdiff.quant._model import (
    LayerReport,
    QuantConfig,
    load_quantized_,
    quantize_,
    save_quantized,
    set_timestep,
)
from fastdiff.quant._named import (
    bf16_linear,
    fp8_linear,
    fp8_weight_linear,
    int4_linear,
    int8_weight_linear,
)
from fastdiff.quant._packing import PackedWeight, pack_weight
from fastdiff.quant._sparse import load_sparse_delta, sara_state, sparse_checksum, sparse_take
from fastdiff.quant.dequantize import dequantize
from fastdiff.quant.fake_quant import fake_quant
from fastdiff.quant.int8_conv2d import int8_conv2d
from fastdiff.quant.int8_linear import int8_linear
from fastdiff.quant.lowrank_apply import lowrank_apply
from fastdiff.quant.lp_range_search import lp_range_search
from fastdiff.quant.quantize_per_token import quantize_per_token
from fastdiff.quant.quantize_static import quantize_static
from fastdiff.quant.sparse_fill import sparse_fill
from fastdiff.quant.weight_linear import weight_linear

__all__ = [
    "Collector",
    "EmaRange",
    "LayerReport",
    "LowRank",
    "PackedWeight",
    "QuantConfig",
    "QuantConv2d",
    "QuantLayer",
    "QuantLinear",
    "RangeTable",
    "affine_parameters",
    "bf16_linear",
    "dequantize",
    "facilitated_gate",
    "fake_quant",
    "fold_scale",
    "fp8_linear",
    "fp8_weight_linear",
    "gaussian_teleport",
    "int4_linear",
    "int8_conv2d",
    "int8_linear",
    "int8_weight_linear",
    "load_quantized_",
    "load_sparse_delta",
    "lowrank_apply",
    "lp_range_search",
    "migrate",
    "pack_weight",
    "quantize_",
    "quantize_per_token",
    "quantize_static",
    "sample_timesteps",
    "sara_state",
    "save_quantized",
    "set_timestep",
    "smoothquant_scales",
    "sparse_checksum",
    "sparse_fill",
    "sparse_take",
    "stack_adapters",
    "weight_linear",
    "wiener_denoise",
]
