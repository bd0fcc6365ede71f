# SPDX-License-Identifier: Apache-2.0
"""A whole forward pass: DiT-XL/2 at 512 pixels, dense, and with the token densities of FlexDiT (SparseDiT).

Random weights, so only time and arithmetic can be seen here, not pictures. The blocks are FlexDiT's for 512 pixels: two
whose tokens are mixed alike (Poolingformer), two dense ones, and four times: 64 pooled tokens that ask all 1024, three
blocks among the 64, one in which all tokens ask the 64, and a dense one. In the published form pooling permutes and
copies, a pooling block multiplies a matrix of equal numbers, and what returns to all tokens is unpooled before it is
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from fastdiff import adaptive_pool_tokens, sparse_attention, uniform_mixer, unpool_tokens
from fastdiff.bench.kit import OURS, Case, Contender, Target, close_to
from torch import Tensor
from torch.nn.functional import (
    adaptive_avg_pool2d,
    gelu,
    interpolate,
    layer_norm,
    scaled_dot_product_attention,
    silu,
)
from torch.nn.functional import linear as product

OP = "block_sparse_attention"
DENSE, PUBLISHED = "dense DiT", "published"
ROUNDOFFS = 256.0  # 28 blocks, one after the other


@dataclass(frozen=True)
class Sizes:
    """Of a transformer: a square grid of tokens and a smaller one."""

    dim: int
    heads: int
    side: int
    pooled: int
    pooling: int = 2
    dense: int = 2
    groups: int = 4
    sparse: int = 3

    @property
    def tokens(self) -> int:
        return self.side**2

    @property
    def depth(self) -> int:
        return self.pooling + self.dense + self.groups * (self.sparse + 3)

    def multiplications(self, densities: bool) -> int:
        """Of weights and of attention, for one sample."""
        n, m, d = self.tokens, self.pooled**2, self.dim
        mlp, pairs = 8 * d * d, 2 * d
        whole = n * (4 * d * d + mlp) + n * n * pairs
        if not densities:
            return self.depth * whole
        mixer = n * mlp + 2 * d * d
        down = m * (2 * d * d + mlp) + n * 2 * d * d + m * n * pairs
        among = m * (4 * d * d + mlp) + m * m * pairs
        up = m * d * d + n * d * d + n * (2 * d * d + mlp) + m * 2 * d * d + n * m * pairs
        group = down + self.sparse * among + up + whole
        return self.pooling * mixer + self.dense * whole + self.groups * group


XL_512 = Sizes(1152, 16, 32, 8)
TINY = Sizes(64, 4, 8, 2, pooling=1, dense=1, groups=1, sparse=1)


def cases() -> list[Case]:
    """All cases, the smallest shapes first."""
    return [_case(sizes, dtype) for sizes in (TINY, XL_512) for dtype in (torch.float32, torch.bfloat16)]


def _case(sizes: Sizes, dtype: torch.dtype) -> Case:
    counts = [sizes.multiplications(densities) / 1e9 for densities in (True, False)]
    return Case(
        op=OP,
        name="flexdit",
        title=f"FlexDiT, {counts[0]:.3g} of {counts[1]:.3g} G multiplications",
        shape=(1, sizes.tokens, sizes.dim),
        dtype=dtype,
        tensors=2,
        build=lambda device: _contenders(sizes, dtype, device),
        targets=() if sizes is TINY else (Target(DENSE, factor=2.0), Target(PUBLISHED, factor=1.0)),
    )


# ---- the transformer -------------------------------------------------------------------------------------------

Weights = dict[
    str, Tensor
]  # [out, in] each; of any dtype: they are used in that of what they are multiplied with


def linear(x: Tensor, weight: Tensor) -> Tensor:
    return product(x, weight.to(x.dtype))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


@dataclass(frozen=True)
class Eager:
    """What differs between the forms: here as published."""

    sizes: Sizes

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, N, D] of [B, N, D] and twice [B, M, D]."""
        b, n, d = q.shape
        q, k, v = (t.view(b, t.shape[1], self.sizes.heads, -1).transpose(1, 2) for t in (q, k, v))
        return self.attention(q, k, v).transpose(1, 2).reshape(b, n, d)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v)

    def mixed(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, w: Weights) -> Tensor:
        """PoolingAttention: every token sees every other one alike."""
        b, n, d = x.shape
        v = (
            linear(modulated(x, shift, scale), w["qkv"])
            .view(b, n, 3, self.sizes.heads, -1)
            .permute(2, 0, 3, 1, 4)[2]
        )
        ones = torch.ones(b, self.sizes.heads, n, n, dtype=x.dtype, device=x.device)
        return x + gate[:, None] * linear((ones.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d), w["out"])

    def pooled(self, x: Tensor) -> Tensor:
        planes = x.transpose(1, 2).unflatten(2, (self.sizes.side, self.sizes.side))
        return adaptive_avg_pool2d(planes, self.sizes.pooled).flatten(2).transpose(1, 2)

    def recovered(self, few: Tensor, x: Tensor, w: Weights) -> Tensor:
        planes = few.transpose(1, 2).unflatten(2, (self.sizes.pooled, self.sizes.pooled))
        up = interpolate(planes, size=self.sizes.side, mode="nearest").flatten(2).transpose(1, 2)
        return linear(up, w["few"]) + linear(x, w["all"])


@dataclass(frozen=True)
class Fused(Eager):
    """The same numbers, by fastdiff."""

    grids: tuple[tuple[int, int], tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        grids = ((self.sizes.side,) * 2, (self.sizes.pooled,) * 2)
        object.__setattr__(self, "grids", grids)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v)

    def mixed(self, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, w: Weights) -> Tensor:
        value = w["qkv"][2 * self.sizes.dim :]
        return uniform_mixer(
            x, shift=shift, scale=scale, gate=gate, value=(value, None), output=(w["out"], None)
        )

    def pooled(self, x: Tensor) -> Tensor:
        return adaptive_pool_tokens(x, *self.grids)

    def recovered(self, few: Tensor, x: Tensor, w: Weights) -> Tensor:
        return unpool_tokens(linear(few, w["few"]), *self.grids[::-1], residual=linear(x, w["all"]))


def with_mlp(x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, w: Weights) -> Tensor:
    return x + gate[:, None] * linear(
        gelu(linear(modulated(x, shift, scale), w["in"]), approximate="tanh"), w["mlp"]
    )


def block(x: Tensor, keys: Tensor, c: Tensor, w: Weights, form: Eager) -> Tensor:
    """x [B, N, D] asks the tokens `keys` [B, M, D], which may be x."""
    shift, scale, gate, *of_mlp = linear(silu(c), w["modulation"]).chunk(6, -1)
    q_weight, kv_weight = w["qkv"].split([c.shape[-1], 2 * c.shape[-1]])
    there = modulated(keys, shift, scale)
    here = there if keys is x else modulated(x, shift, scale)
    k, v = linear(there, kv_weight).chunk(2, -1)
    x = x + gate[:, None] * linear(form.attend(linear(here, q_weight), k, v), w["out"])
    return with_mlp(x, *of_mlp, w)


def pooling_block(x: Tensor, c: Tensor, w: Weights, form: Eager) -> Tensor:
    shift, scale, gate, *of_mlp = linear(silu(c), w["modulation"]).chunk(6, -1)
    return with_mlp(form.mixed(x, shift, scale, gate, w), *of_mlp, w)


def dense(x: Tensor, c: Tensor, weights: Sequence[Weights], form: Eager) -> Sequence[Tensor]:
    """All blocks among all tokens."""
    for w in weights:
        x = block(x, x, c, w, form)
    return (x,)


def with_densities(x: Tensor, c: Tensor, weights: Sequence[Weights], form: Eager) -> Sequence[Tensor]:
    """FlexDiT."""
    sizes, left = form.sizes, iter(weights)
    for _ in range(sizes.pooling):
        x = pooling_block(x, c, next(left), form)
    for _ in range(sizes.dense):
        x = block(x, x, c, next(left), form)
    for _ in range(sizes.groups):
        few = block(form.pooled(x), x, c, next(left), form)
        for _ in range(sizes.sparse):
            few = block(few, few, c, next(left), form)
        w = next(left)
        x = block(form.recovered(few, x, w), few, c, w, form)
        x = block(x, x, c, next(left), form)
    return (x,)


def weights_of(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> list[Weights]:
    d = sizes.dim
    shapes = {"qkv": (3 * d, d), "out": (d, d), "modulation": (6 * d, d), "in": (4 * d, d), "mlp": (d, 4 * d)}
    shapes |= {"few": (d, d), "all": (d, d)}
    g = torch.Generator().manual_seed(0)

    def made() -> Iterator[tuple[str, Tensor]]:
        for name, shape in shapes.items():
            yield name, torch.randn(shape, generator=g).div_(2 * shape[1] ** 0.5).to(device, dtype)

    return [dict(made()) for _ in range(sizes.depth)]


def _contenders(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> list[Contender]:
    weights = weights_of(sizes, dtype, device)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, sizes.tokens, sizes.dim, generator=g).to(device, dtype)
    c = torch.randn(1, sizes.dim, generator=g).to(device, dtype)

    def contender(
        name: str, forward: Callable[..., Sequence[Tensor]], form: Eager, **rival: None
    ) -> Contender:
        check = close_to(forward(x.double(), c.double(), weights, Eager(sizes)), roundoffs=ROUNDOFFS)
        return Contender(name, lambda: forward(x, c, weights, form), check, **rival)

    return [
        contender(DENSE, dense, Eager(sizes)),
        contender(PUBLISHED, with_densities, Eager(sizes)),
        contender(OURS, with_densities, Fused(sizes), rival=None),
    ]
