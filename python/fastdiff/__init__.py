# SPDX-License-Identifier: Apache-2.0
"""fastdiff: hand-written CUDA and C++ kernels for diffusion models in PyTorch.

Operators are ``torch.ops.fastdiff.*``, with thin wrappers of the same names here. Planners turn a noise schedule
into the coefficient table of a solver; a :class:`~fastdiff.planners.Plan` runs it.
"""

from fastdiff import _native, attention, guidance, planners, schedules, wavelet
from fastdiff._native import isa, use_isa
from fastdiff._version import __version__
from fastdiff.attention import (
    AttentionPlan,
    RelativeBias,
    SparseAttention,
    TokenMerge,
    adaptive_pool_tokens,
    attention_map_energy,
    attention_map_energy_gradient,
    block_means,
    block_sparse_attention,
    block_sparse_attention_backward,
    cached_residual_add,
    combine_tokens,
    gather_tokens,
    list_blocks,
    match_tokens,
    normed_token_mean,
    scatter_tokens,
    select_blocks,
    sparse_attention,
    tile_order,
    token_attention,
    uniform_mixer,
    unpool_tokens,
)
from fastdiff.guidance import channel_affine, guidance_coefficients, guidance_stats, window_blend
from fastdiff.solver import dynamic_threshold, linear_step, scaled_error_norm
from fastdiff.wavelet import (
    DWT,
    IDWT,
    dwt,
    haar_patch,
    haar_unpatch,
    idwt,
    laplacian_merge,
    laplacian_split,
    pack_subbands,
    unpack_subbands,
    upsample_subbands,
    wavedec,
    waverec,
)

_native.load()

__all__ = [
    "DWT",
    "IDWT",
    "AttentionPlan",
    "RelativeBias",
    "SparseAttention",
    "TokenMerge",
    "__version__",
    "adaptive_pool_tokens",
    "attention",
    "attention_map_energy",
    "attention_map_energy_gradient",
    "block_means",
    "block_sparse_attention",
    "block_sparse_attention_backward",
    "cached_residual_add",
    "channel_affine",
    "combine_tokens",
    "dwt",
    "dynamic_threshold",
    "gather_tokens",
    "guidance",
    "guidance_coefficients",
    "guidance_stats",
    "haar_patch",
    "haar_unpatch",
    "idwt",
    "isa",
    "laplacian_merge",
    "laplacian_split",
    "linear_step",
    "list_blocks",
    "match_tokens",
    "normed_token_mean",
    "pack_subbands",
    "planners",
    "scaled_error_norm",
    "scatter_tokens",
    "schedules",
    "select_blocks",
    "sparse_attention",
    "tile_order",
    "token_attention",
    "uniform_mixer",
    "unpack_subbands",
    "unpool_tokens",
    "upsample_subbands",
    "use_isa",
    "wavedec",
    "wavelet",
    "waverec",
    "window_blend",
]
