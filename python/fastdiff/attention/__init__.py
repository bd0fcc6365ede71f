# SPDX-License-Identifier: Apache-2.0
"""Attention that pays only for the tokens and blocks that are kept."""

from fastdiff.attention._drop_in import SparseAttention, sparse_attention
from fastdiff.attention._merging import TokenMerge
from fastdiff.attention._mixer import uniform_mixer
from fastdiff.attention._patterns import tile_order
from fastdiff.attention._plan import AttentionPlan
from fastdiff.attention._pooling import adaptive_pool_tokens, scatter_tokens, unpool_tokens
from fastdiff.attention._relative import RelativeBias
from fastdiff.attention._tokens import token_attention
from fastdiff.attention.attention_map_energy import attention_map_energy
from fastdiff.attention.attention_map_energy_gradient import attention_map_energy_gradient
from fastdiff.attention.block_means import block_means
from fastdiff.attention.block_sparse_attention import block_sparse_attention
from fastdiff.attention.block_sparse_attention_backward import block_sparse_attention_backward
from fastdiff.attention.cached_residual_add import cached_residual_add
from fastdiff.attention.combine_tokens import combine_tokens
from fastdiff.attention.gather_tokens import gather_tokens
from fastdiff.attention.list_blocks import list_blocks
from fastdiff.attention.mask_blocks import mask_blocks
from fastdiff.attention.match_tokens import match_tokens
from fastdiff.attention.normed_token_mean import normed_token_mean
from fastdiff.attention.select_blocks import select_blocks

__all__ = [
    "AttentionPlan",
    "RelativeBias",
    "SparseAttention",
    "TokenMerge",
    "adaptive_pool_tokens",
    "attention_map_energy",
    "attention_map_energy_gradient",
    "block_means",
    "block_sparse_attention",
    "block_sparse_attention_backward",
    "cached_residual_add",
    "combine_tokens",
    "gather_tokens",
    "list_blocks",
    "mask_blocks",
    "match_tokens",
    "normed_token_mean",
    "scatter_tokens",
    "select_blocks",
    "sparse_attention",
    "tile_order",
    "token_attention",
    "uniform_mixer",
    "unpool_tokens",
]
