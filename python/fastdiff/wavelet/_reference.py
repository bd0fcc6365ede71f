# SPDX-License-Identifier: Apache-2.0
"""The transforms as plain matrices in float64: what the kernels are compared with."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.wavelet._filters import CIRCULAR, MODES, PERIODIZATION, band_size


def extension(i: int, size: int, edge: int) -> dict[int, float]:
    """The sample at i, inside or not of [0, size), as weights of those that there are."""
    if 0 <= i < size:
        return {i: 1.0}
    last = size - 1
    mirror = i % (2 * size)  # of symmetric: period 2N
    turn = i % max(1, 2 * last)  # of reflect: period 2N - 2
    match (*MODES, "circular")[edge]:
        case "zero":
            return {}
        case "constant":
            return {0 if i < 0 else last: 1.0}
        case "symmetric":
            return {mirror if mirror < size else 2 * size - 1 - mirror: 1.0}
        case "reflect":
            return {turn if turn < size else 2 * last - turn: 1.0}
        case "periodic":
            return {i % size: 1.0}
        case "smooth":
            end, inner, far = (0, 1, -i) if i < 0 else (last, last - 1, i - last)
            return {end: 1.0} if size == 1 else {end: 1.0 + far, inner: -float(far)}
        case "antisymmetric":
            return {mirror: 1.0} if mirror < size else {2 * size - 1 - mirror: -1.0}
        case "antireflect":
            return _antireflect(i, last, turn)
        case "periodization" | "circular":
            place = i % (size + size % 2)
            if place < size:
                return {place: 1.0}
            return {} if edge == CIRCULAR else {last: 1.0}
    raise ValueError(edge)


def _antireflect(i: int, last: int, turn: int) -> dict[int, float]:
    """Point reflection at both ends: every 2N - 2 samples it is 2 (x[N - 1] - x[0]) higher."""
    if last == 0:
        return {0: 1.0}
    rises = (i - turn) // (2 * last)
    weights = {0: -2.0 * rises, last: 2.0 * rises}
    place, weight = (turn, 1.0) if turn <= last else (2 * last - turn, -1.0)
    if turn > last:
        weights[last] += 2.0
    weights[place] = weights.get(place, 0.0) + weight
    return weights


@functools.lru_cache(maxsize=256)
def analysis_matrix(size: int, taps: tuple[float, ...], edge: int) -> Tensor:
    """[2, K, size]: low and high band along one dimension. Its transpose is the adjoint."""
    length = len(taps) // 2
    offset = length // 2 - 1 if edge >= PERIODIZATION else length - 2
    matrix = torch.zeros(2, band_size(size, length, edge), size, dtype=torch.float64)
    for k in range(matrix.shape[1]):
        for t in range(length):
            for n, weight in extension(2 * k + t - offset, size, edge).items():
                matrix[0, k, n] += taps[t] * weight
                matrix[1, k, n] += taps[length + t] * weight
    return matrix


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """The matrix times the last dimension; what it has a 0 for is not read, so that a NaN there does not spread."""
    if bool(x.isfinite().all()):
        return x @ matrix.T
    terms = matrix * x.unsqueeze(-2)
    return torch.where(matrix == 0, 0.0, terms).sum(-1)


def analysis(x: Tensor, taps: Sequence[float], ndim: int, edge: int) -> Tensor:
    """[*, *spatial] -> [*, 2**ndim, *bands], float64."""
    y = x.double().unsqueeze(-1 - ndim)
    for axis in range(-ndim, 0):
        matrix = analysis_matrix(x.shape[axis], tuple(taps), edge).to(x.device)
        y = _apply(matrix.flatten(0, 1), y.movedim((-1 - ndim, axis), (-2, -1))).unflatten(-1, (2, -1))
        # [..., other dimensions, bands so far, this one's two, K]
        y = y.flatten(-3, -2).movedim((-2, -1), (-1 - ndim, axis))
    return y


def synthesis(y: Tensor, taps: Sequence[float], sizes: Sequence[int], edge: int) -> Tensor:
    """[*, 2**ndim, *bands] -> [*, *sizes], float64: the adjoint of :func:`analysis`."""
    ndim = len(sizes)
    x = y.double()
    for n, axis in enumerate(range(-ndim, 0)):
        matrix = analysis_matrix(sizes[n], tuple(taps), edge).to(y.device)
        x = x.narrow(axis, 0, matrix.shape[1]).movedim((-1 - ndim, axis), (-2, -1))
        x = x.unflatten(-2, (2, -1))  # the first dimension's bit is the highest
        x = x.transpose(-3, -2).flatten(-2)  # [..., the other bands, 2 K]
        x = _apply(matrix.flatten(0, 1).T, x).movedim((-2, -1), (-1 - ndim, axis))
    return x.squeeze(-1 - ndim)
