# SPDX-License-Identifier: Apache-2.0
"""What users transform with today: PyWavelets, ptwt, pytorch_wavelets, and slices of a tensor for the Haar wavelet.

Each peer is called as its users call it and keeps its own containers; what sorts them into ours,
``[approximation, details of the coarsest level, ..., of the finest]``, runs when a result is checked and not when it
is timed. A peer that is not installed, or cannot do a case, is left out of it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from fastdiff.bench.kit import Check, Contender, Verdict, close_to
from torch import Tensor

PYWAVELETS, PTWT, PYTORCH_WAVELETS, EAGER = "PyWavelets", "ptwt", "pytorch_wavelets", "eager"
ROUNDOFFS = 64.0  # of the largest coefficient: sums in another order, a rounding for each dimension and level


class Transform(NamedTuple):
    """What is done to which tensor, but for the direction."""

    wavelet: str
    mode: str
    ndim: int
    level: int
    dtype: torch.dtype


Coefficients = list[Tensor]  # in our order: see the head of this file
Peer = Callable[[Transform, Tensor, Coefficients], "Calls | None"]


class Calls(NamedTuple):
    """One peer's two directions, and how its containers are sorted into ours."""

    forward: Callable[[], Any]
    inverse: Callable[[], Any]
    sorted_out: Callable[[Any], Coefficients]
    signal: Callable[[Any], Tensor] = lambda x: x


def contenders(transform: Transform, x: Tensor, want: Coefficients, *, inverse: bool) -> list[Contender]:
    """All peers that can do it, checked against the float64 result.

    Args:
        transform: what they shall do.
        x: the signal, ``[*, *sizes]``, in float64.
        want: its coefficients, in float64.
        inverse: the other direction.
    """
    signal, coefficients = x.to(transform.dtype), [c.to(transform.dtype) for c in want]
    found = []
    for name, peer in PEERS.items():
        calls = peer(transform, signal, coefficients)
        if calls is None:
            continue
        if inverse:
            check = sorted_first(lambda raw, calls=calls: [calls.signal(raw)], [x])
            found.append(Contender(name, calls.inverse, check))
        else:
            found.append(Contender(name, calls.forward, sorted_first(calls.sorted_out, want)))
    return found


def sorted_first(sort: Callable[[Any], Coefficients], want: Coefficients) -> Check:
    close = close_to(want, roundoffs=ROUNDOFFS)

    def check(got: Any) -> Verdict:
        return close(sort(got))

    return check


# ---- the peers -------------------------------------------------------------------------------------------------


def pywavelets(t: Transform, x: Tensor, coefficients: Coefficients) -> Calls | None:
    """On NumPy arrays: float32 and float64, one thread."""
    pywt = installed("pywt")
    if pywt is None or t.dtype not in (torch.float32, torch.float64) or x.device.type != "cpu":
        return None
    axes = tuple(range(-t.ndim, 0))
    array = x.numpy()
    low, *details = (c.numpy() for c in coefficients)
    names = keys(t.ndim)
    levels = [
        {key: d.take(n, axis=-1 - t.ndim) for n, key in enumerate(names)} for d in details
    ]  # contiguous arrays, as pywt makes them

    def sorted_out(raw: Any) -> Coefficients:
        stacked = [torch.stack([torch.from_numpy(d[k]) for k in names], dim=-1 - t.ndim) for d in raw[1:]]
        return [torch.from_numpy(raw[0]), *stacked]

    return Calls(
        lambda: pywt.wavedecn(array, t.wavelet, t.mode, t.level, axes),
        lambda: pywt.waverecn([low, *levels], t.wavelet, t.mode, axes),
        sorted_out,
        torch.from_numpy,
    )


def ptwt(t: Transform, x: Tensor, coefficients: Coefficients) -> Calls | None:
    """The convolutions of ptwt: zero, symmetric, reflect, periodic and constant, float32 and float64."""
    module = installed("ptwt")
    if module is None or t.mode == "periodization" or t.dtype not in (torch.float32, torch.float64):
        return None
    low, *details = coefficients
    if t.ndim == 3:
        names = keys(3)
        levels = [dict(zip(names, (b.contiguous() for b in d.unbind(-4)), strict=True)) for d in details]
        return Calls(
            lambda: module.wavedec3(x, t.wavelet, mode=t.mode, level=t.level),
            lambda: module.waverec3((low, *levels), t.wavelet),
            lambda raw: [raw[0], *(torch.stack([d[key] for key in names], dim=-4) for d in raw[1:])],
        )
    bands = [tuple(d.select(-3, n).contiguous() for n in (1, 0, 2)) for d in details]  # horizontal: da
    own = (low, *(module.WaveletDetailTuple2d(*b) for b in bands))
    return Calls(
        lambda: module.wavedec2(x, t.wavelet, mode=t.mode, level=t.level),
        lambda: module.waverec2(own, t.wavelet),
        lambda raw: [raw[0], *(torch.stack((d[1], d[0], d[2]), dim=-3) for d in raw[1:])],
    )


def pytorch_wavelets(t: Transform, x: Tensor, coefficients: Coefficients) -> Calls | None:
    """Images only; what it calls zero, symmetric and periodization."""
    module = pytorch_wavelets_module()
    if module is None or t.ndim != 2:
        return None
    forward = module.DWTForward(t.level, t.wavelet, t.mode).to(x.device, t.dtype)
    inverse = module.DWTInverse(t.wavelet, t.mode).to(x.device, t.dtype)
    low, *details = coefficients
    order = [1, 0, 2]  # its first detail is the one that is high along the columns
    finest_first = [d[..., order, :, :].contiguous() for d in reversed(details)]
    return Calls(
        lambda: forward(x),
        lambda: inverse((low, finest_first)),
        lambda raw: [raw[0], *(d[..., order, :, :] for d in reversed(raw[1]))],
    )


def eager_haar(t: Transform, x: Tensor, coefficients: Coefficients) -> Calls | None:
    """Sums and differences of the four quarters of an image, as model code has it: even sizes, one level at a time."""
    even = all(n % 2**t.level == 0 for n in x.shape[-2:])
    if t.wavelet != "haar" or t.ndim != 2 or not even:
        return None

    def forward() -> Coefficients:
        low, details = x, []
        for _ in range(t.level):
            a, b, c, d = (low[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
            details.append(torch.stack((a - b + c - d, a + b - c - d, a - b - c + d), dim=-3) / 2)
            low = (a + b + c + d) / 2
        return [low, *reversed(details)]

    def inverse() -> Tensor:
        low, *details = coefficients
        for bands in details:
            horizontal, vertical, diagonal = bands.unbind(-3)
            whole = low.new_empty((*low.shape[:-2], 2 * low.shape[-2], 2 * low.shape[-1]))
            whole[..., ::2, ::2] = (low + horizontal + vertical + diagonal) / 2
            whole[..., ::2, 1::2] = (low - horizontal + vertical - diagonal) / 2
            whole[..., 1::2, ::2] = (low + horizontal - vertical - diagonal) / 2
            whole[..., 1::2, 1::2] = (low - horizontal - vertical + diagonal) / 2
            low = whole
        return low

    return Calls(forward, inverse, lambda raw: raw)


PEERS: dict[str, Peer] = {
    PYWAVELETS: pywavelets,
    PTWT: ptwt,
    PYTORCH_WAVELETS: pytorch_wavelets,
    EAGER: eager_haar,
}


# ---- names, bands, modules ----------------------------------------------------------------------------------------


def split_bands(bands: Tensor, ndim: int) -> Coefficients:
    """[*, 2**ndim, *bands] of one level -> approximation and details."""
    return [bands.select(-1 - ndim, 0).contiguous(), bands.narrow(-1 - ndim, 1, 2**ndim - 1).contiguous()]


def keys(ndim: int) -> list[str]:
    """Of the details, as PyWavelets names them: ad, da, dd."""
    return [format(n, f"0{ndim}b").replace("0", "a").replace("1", "d") for n in range(1, 2**ndim)]


@functools.cache
def installed(name: str) -> Any:
    """The module, or None where it cannot be imported; says so once."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"fastdiff bench: left out, {name}: {error}", file=sys.stderr)
        return None


@functools.cache
def pytorch_wavelets_module() -> Any:
    """Version 1.3 reads tables by `pkg_resources`, which setuptools no longer has; the standard library can do that."""
    if importlib.util.find_spec("pkg_resources") is None:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_stream = _resource_stream  # type: ignore[attr-defined]
        sys.modules["pkg_resources"] = stand_in
    return installed("pytorch_wavelets")


def _resource_stream(package: str, name: str) -> Any:
    return importlib.resources.files(package).joinpath(name).open("rb")


def gradients(results: Any, inputs: Sequence[Tensor], of: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """Backward alone, again and again through the same graph."""
    return lambda: torch.autograd.grad(results, inputs, of, retain_graph=True)
