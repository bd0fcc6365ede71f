# SPDX-License-Identifier: Apache-2.0
"""What lowrank_apply is for: many adapters as one, their gates, and the closed forms of Gaussian data."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from fastdiff.quant.lowrank_apply import lowrank_apply


def stack_adapters(adapters: Sequence[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor]:
    r"""Adapters beside one linear layer as a single pair of factors, for :func:`fastdiff.lowrank_apply`:

    .. math:: \sum_k \frac{\alpha_k}{r_k} \text{up}_k \, \text{down}_k

    Args:
        adapters: for each ``(down [r_k, K], up [N, r_k], alpha)``, as LoRA and SPM store them; a weight of the
            adapter's own, such as PEFT's ``scaling``, multiplies its alpha.

    Returns:
        ``down [sum of r_k, K]`` and ``up [N, sum of r_k]``, which contains the factors α/r. Gates of whole adapters are
        ``gates.repeat_interleave(ranks, dim=-1)``; for adapters of rank 1 (SPM) they are gates as they are.

    Source: SPM, ``SPMLayer.forward``, summed; PEFT's ``LoraLayer``. It is not the published ``infer_with_spm``, which
    multiplies sums of factors and so gives products of different adapters.
    """
    down = torch.cat([down for down, _, _ in adapters])
    up = torch.cat([up * (alpha / down.shape[0]) for down, up, alpha in adapters], 1)
    return down, up


def facilitated_gate(
    prompt: Tensor, concepts: Tensor, tokens: Collection[int], concept_tokens: Sequence[Collection[int]]
) -> Tensor:
    r"""How much of an adapter a prompt asks for: the gate of SPM's facilitated transport.

    .. math:: \gamma = \max_c \max\left( \cos(E, E_c), \; \frac{|T \cap T_c|}{|T_c|} \right)

    Args:
        prompt: E, the text encoder's hidden states of the prompt, ``[tokens, width]``.
        concepts: those of the adapter's prompts, ``[C, tokens, width]``.
        tokens: T, the prompt's token ids without the special ones.
        concept_tokens: those of the adapter's prompts.

    Returns:
        γ ``[]``, at least 0. One such number for each sample and adapter makes ``gates``.

    Source: SPM, ``calculate_matching_score``.
    """
    cosine = torch.cosine_similarity(prompt.flatten()[None], concepts.flatten(1), dim=1)
    own = set(tokens)
    shared = [len(own & set(c)) / len(set(c)) for c in concept_tokens]
    return torch.maximum(cosine, cosine.new_tensor(shared)).amax()


def gaussian_teleport(
    x: Tensor,
    mean: Tensor,
    basis: Tensor,
    variances: Tensor,
    *,
    start: tuple[Tensor, Tensor],
    end: tuple[Tensor, Tensor],
    mean_in_basis: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""The probability flow of Gaussian data N(μ, U diag(λ) Uᵀ), from one noise level to another, exactly:

    .. math::
        x_t = \alpha_t \mu + \rho d + U \bigl( (g - \rho) \odot U^T d \bigr), \quad d = x_T - \alpha_T \mu, \quad
        \rho = \frac{\sigma_t}{\sigma_T}, \quad
        g_k^2 = \frac{\alpha_t^2 \lambda_k + \sigma_t^2}{\alpha_T^2 \lambda_k + \sigma_T^2}

    It takes the place of a sampler's first steps, where the data's score is nearly that of a Gaussian.

    Args:
        x: x_T, ``[B, D]``: flattened images.
        mean: μ ``[D]``.
        basis: U ``[D, r]``, orthonormal columns; fp16 and bf16 halve what is read.
        variances: λ ``[r]``.
        start: α_T and σ_T, 0-d tensors on the device of x; σ_T > 0.
        end: α_t and σ_t, likewise. At σ_t = 0 what is outside the span becomes α_t μ.
        mean_in_basis: Uᵀμ ``[r]``, if it is known; D multiplications for each of r otherwise.
        out: as for :func:`fastdiff.lowrank_apply`.

    Returns:
        x_t ``[B, D]``, in the dtype of x.

    Source: Wang and Vastola, Diffusion Models Generate Images Like Painters.
    """
    (alpha_start, sigma_start), (alpha_end, sigma_end) = ((a.float(), s.float()) for a, s in (start, end))
    v = variances.float()
    ratio = sigma_end / sigma_start
    gains = ((alpha_end**2 * v + sigma_end**2) / (alpha_start**2 * v + sigma_start**2)).sqrt()
    projected = _in_basis(mean, basis) if mean_in_basis is None else mean_in_basis
    return lowrank_apply(
        x,
        basis.T,
        basis,
        gates=(gains - ratio)[None],
        offset=-(alpha_start * projected)[None],
        a=ratio,
        mu=mean,
        b=alpha_end - ratio * alpha_start,
        out=out,
    )


def wiener_denoise(
    x: Tensor,
    mean: Tensor,
    basis: Tensor,
    variances: Tensor,
    level: tuple[Tensor, Tensor],
    *,
    mean_in_basis: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    r"""The expectation of the clean data, of Gaussian data N(μ, U diag(λ) Uᵀ):

    .. math:: \hat x_0 = \mu + U \, \frac{\alpha \lambda}{\alpha^2 \lambda + \sigma^2} \odot U^T (x - \alpha \mu)

    Args:
        x: α x_0 + σ noise, ``[B, D]``.
        mean, basis, variances, mean_in_basis, out: as for :func:`gaussian_teleport`.
        level: α and σ, 0-d tensors on the device of x.

    Returns:
        x̂_0 ``[B, D]``, in the dtype of x. The score is (α x̂_0 − x)/σ².

    Source: Wang and Vastola, Diffusion Models Generate Images Like Painters.
    """
    alpha, sigma = (t.float() for t in level)
    v = variances.float()
    projected = _in_basis(mean, basis) if mean_in_basis is None else mean_in_basis
    gains = alpha * v / (alpha**2 * v + sigma**2)
    return lowrank_apply(
        x, basis.T, basis, gates=gains[None], offset=-(alpha * projected)[None], mu=mean, out=out
    )


def _in_basis(mean: Tensor, basis: Tensor) -> Tensor:
    """Uᵀμ in float32 at least."""
    dtype = torch.promote_types(torch.promote_types(mean.dtype, basis.dtype), torch.float32)
    return basis.to(dtype).T @ mean.to(dtype)
