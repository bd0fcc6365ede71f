# SPDX-License-Identifier: Apache-2.0
"""Frequency-decoupled guidance."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.guidance.guidance_coefficients import METHODS
from fastdiff.guidance.guidance_coefficients import launch as launch_coefficients
from fastdiff.guidance.guidance_stats import guidance_stats
from fastdiff.guiders._guidance import Guidance
from fastdiff.guiders._recipe import is_active, parameters
from fastdiff.guiders.apg import APG
from fastdiff.guiders.banded import Banded
from fastdiff.guiders.cfg import CFG
from fastdiff.planners._execution import launch
from fastdiff.planners._reductions import numel_of
from fastdiff.solver.linear_step import CODE
from fastdiff.wavelet.laplacian_merge import laplacian_merge
from fastdiff.wavelet.laplacian_split import laplacian_split

LAPLACIAN = "laplacian"


class FrequencyDecoupled(Banded):
    """Each frequency band has a scale of its own: guided = merge(u_l + s_l (c_l - u_l)), u_l = split(u)_l.

    Sadat et al. 2025, "Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales" (arXiv
    2506.19713), algorithm 2: high scales for high frequencies give detail, low ones for low frequencies keep colours
    and diversity. diffusers' `FrequencyDecoupledGuidance`, at sizes that it does not pad.

    Split and merge are linear. So where no band is projected or rescaled by itself, only the difference is split:
    guided = c + merge((s_l - 1) split(c - u)_l), one split and one merge instead of two and one. All between the
    predictions and the result is kept in float32 (float64 for float64).

    Args:
        scales: s of each band, from the highest frequencies to the lowest, as diffusers' `guidance_scales`; at least
            two. The coarsest image, or the approximation, has the last.
        bands: "laplacian", the paper's Laplacian pyramid (`fastdiff.laplacian_split`), or the name of a discrete
            wavelet of PyWavelets, such as "haar" (`fastdiff.wavedec`); all details of a level are one band.
        parallel_weights: eta of each band, or one for all: what the part of c_l - u_l along c_l counts, as in `APG`. 1
            is no projection.
        rescale: phi of `CFG`. One for the merged prediction, or with rescale_space="freq" also one of each band.
        rescale_space: "data", the merged prediction is rescaled to std(c); or "freq", each band to std(c_l).
        from_cond: c_l + s_l (c_l - u_l).
        start, stop: as for `CFG`, of each band, or one for all. A band that is not guided in a step is that of c.
            (diffusers 0.42 puts the band before in its place, of another size.)
        ndim: of wavelets, how many last dimensions are transformed: 1, 2 or 3.
        mode: of wavelets, what lies beyond the ends, in PyWavelets' names.

    Raises:
        ValueError: fewer than two scales, numbers of which there are not as many as scales, a number out of range, an
            unknown space, or a Laplacian pyramid with options of wavelets. Calling it, what `Banded` raises.
        NotImplementedError: a gradient is asked for.
    """

    def __init__(
        self,
        scales: Sequence[float] = (10.0, 5.0),
        bands: str = LAPLACIAN,
        *,
        parallel_weights: float | Sequence[float] = 1.0,
        rescale: float | Sequence[float] = 0.0,
        rescale_space: str = "data",
        from_cond: bool = False,
        start: float | Sequence[float] = 0.0,
        stop: float | Sequence[float] = 1.0,
        ndim: int = 2,
        mode: str = "symmetric",
    ) -> None:
        self.scales = tuple(float(s) for s in scales)
        if len(self.scales) < 2:
            raise ValueError(f"FrequencyDecoupled: expected at least two scales, got {len(self.scales)}")
        if rescale_space not in ("data", "freq"):
            raise ValueError(
                f'FrequencyDecoupled: rescale_space must be "data" or "freq", got {rescale_space!r}'
            )
        if rescale_space == "data" and not isinstance(rescale, int | float):
            raise ValueError('FrequencyDecoupled: rescale must be one number unless rescale_space is "freq"')
        if bands == LAPLACIAN and (ndim, mode) != (2, "symmetric"):
            raise ValueError(
                "FrequencyDecoupled: ndim and mode are options of wavelets, not of a Laplacian pyramid"
            )
        etas = self._of_each_band(parallel_weights, "parallel_weights")
        phis = self._of_each_band(rescale if rescale_space == "freq" else 0.0, "rescale")
        self.start, self.stop = self._of_each_band(start, "start"), self._of_each_band(stop, "stop")
        options = zip(self.scales, etas, phis, self.start, self.stop, strict=True)
        guidances = [_of_band(*numbers, from_cond) for numbers in options]
        self.bands, self.ndim, self.mode, self.from_cond = bands, ndim, mode, from_cond
        super().__init__(self._split, self._merge, guidances)
        self.is_linear = all(eta == 1 for eta in etas) and not any(phis)
        self.rescale = float(rescale) if isinstance(rescale, int | float) and rescale_space == "data" else 0.0
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"FrequencyDecoupled: rescale must be in 0 ... 1, got {rescale}")

    def fresh(self) -> FrequencyDecoupled:
        """The same guidance: it keeps nothing."""
        return copy.copy(self)

    def __call__(
        self,
        cond: Tensor,
        uncond: Tensor,
        *others: Tensor,
        step: int | None = None,
        steps: int = 1,
        t: float | None = None,
    ) -> Tensor:
        self._check_call(len(others) + 2, step, steps)
        weights = self._weights(step or 0, steps)
        if not any(weights):
            return cond.clone()
        if torch.is_grad_enabled() and (cond.requires_grad or uncond.requires_grad):
            raise NotImplementedError(
                "FrequencyDecoupled: no gradient is defined; detach the predictions or call it under torch.no_grad()"
            )
        wide = torch.promote_types(torch.promote_types(cond.dtype, uncond.dtype), torch.float32)
        constants = self._constants(cond.device, wide)
        if not self.is_linear:
            merged = super().__call__(cond.to(wide), uncond.to(wide), step=step, steps=steps, t=t)
            if not self.rescale:
                return merged.to(cond.dtype)
            return rescaled(constants, cond, combined([merged, cond], constants.subtract, wide))
        difference = combined([cond, uncond], constants.subtract, wide)
        scaled = [
            band.mul_(w) if w else band.zero_()  # unguided: not even a NaN there counts
            for w, band in zip(weights, self.split(difference), strict=True)
        ]
        update = self._merge_like(cond, scaled)
        if self.rescale:
            return rescaled(constants, cond, update)
        return combined([cond, update], constants.add, cond.dtype)

    def _weights(self, step: int, steps: int) -> list[float]:
        """s - 1 of each band (s from c), 0 where it is not guided."""
        return [
            s - (not self.from_cond) if is_active(start, stop, steps, step) else 0.0
            for s, start, stop in zip(self.scales, self.start, self.stop, strict=True)
        ]

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _constants(self, device: torch.device, dtype: torch.dtype) -> Constants:
        key = (device, dtype)
        constants: Constants | None = self._calls.get(key)  # type: ignore[assignment]
        if constants is None:
            constants = self._calls[key] = Constants(self.rescale, device, dtype)  # type: ignore[assignment]
        return constants

    # ---- bands, the finest first

    def _split(self, x: Tensor) -> list[Tensor]:
        if self.bands == LAPLACIAN:
            return laplacian_split(x, len(self.scales))
        coefficients = _wavelets().wavedec(
            x, self.bands, ndim=self.ndim, mode=self.mode, level=len(self.scales) - 1
        )
        return list(coefficients)[::-1]

    def _merge(self, bands: list[Tensor], size: Sequence[int] | None = None) -> Tensor:
        if self.bands == LAPLACIAN:
            return laplacian_merge(bands)
        image: Tensor = _wavelets().waverec(
            bands[::-1], self.bands, ndim=self.ndim, mode=self.mode, size=size
        )
        return image

    def _merge_like(self, x: Tensor, bands: list[Tensor]) -> Tensor:
        if self.bands == LAPLACIAN:
            return laplacian_merge(bands, out=bands[0])  # of this call, and not needed any more
        return self._merge(bands, x.shape[-self.ndim :])

    def _of_each_band(self, value: float | Sequence[float], name: str) -> tuple[float, ...]:
        if isinstance(value, int | float):
            return (float(value),) * len(self.scales)
        if len(value) != len(self.scales):
            raise ValueError(
                f"FrequencyDecoupled: {name} must be one number or {len(self.scales)} of them, got {len(value)}"
            )
        return tuple(float(v) for v in value)


def _wavelets() -> Any:
    from fastdiff import wavelet  # when it is called: the transforms are no part of a Laplacian pyramid

    return wavelet


class Constants:
    """Tables on the device."""

    def __init__(self, rescale: float, device: torch.device, dtype: torch.dtype) -> None:
        with torch.inference_mode(False):
            bounds = [0.0, 0.0, -math.inf, math.inf]
            self.subtract, self.add, self.keep = (
                torch.tensor([[1.0, second, *bounds]], dtype=dtype, device=device)
                for second in (-1.0, 1.0, 0.0)
            )
            self.parameters = parameters(1, scale=1.0, rescale=rescale, first=1.0)[0].to(device)


# NOTE: no methods, because torch.compile cannot call one of a constant


def combined(inputs: list[Tensor], table: Tensor, dtype: torch.dtype) -> Tensor:
    """A program of one row, in one launch."""
    results: list[Tensor] = launch(inputs, table, None, [CODE[dtype]], None, None, None, None, None, None)
    return results[0]


def rescaled(constants: Constants, cond: Tensor, update: Tensor) -> Tensor:
    """g (phi std(c) / std(g) + 1 - phi), g = c + update, in the dtype of c."""
    # A guidance of u = c, whose d is 0, with the update as its second feature. What would be the weight of d goes
    # to the lower bound, which stays -inf.
    stats = guidance_stats(cond, cond, [update])
    method, targets = METHODS.index("cfg"), [0, 4, 1]
    (table,) = launch_coefficients(
        stats, constants.parameters, constants.keep, None, None, method, numel_of(cond), 0, targets
    )
    return combined([cond, update], table, cond.dtype)


def _of_band(scale: float, eta: float, phi: float, start: float, stop: float, from_cond: bool) -> Guidance:
    options: dict[str, Any] = {"rescale": phi, "from_cond": from_cond, "start": start, "stop": stop}
    return CFG(scale, **options) if eta == 1 else APG(scale, eta=eta, norm_threshold=0.0, **options)
