# SPDX-License-Identifier: Apache-2.0
"""Calibration: what a sampling run says about ranges, and what can be done to a model before it is quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastdiff.quant.lp_range_search import LEAST_SCALE

ModuleFilter = Callable[[str, nn.Module], bool]


def affine_parameters(lowest: Tensor, highest: Tensor, *, bits: int = 8) -> tuple[Tensor, Tensor]:
    r"""Scale and zero point of a range, which is extended to 0: x ≈ scale (q − zero_point).

    .. math:: s = \max\left(\frac{\max(h, 0) - \min(l, 0)}{2^{bits} - 1}, 10^{-8}\right), \qquad
        z = \mathrm{clamp}(-\mathrm{round}(\min(l, 0) / s), 0, 2^{bits} - 1) - 2^{bits - 1}

    Args:
        lowest, highest: l and h, of any shape.
        bits: of the signed whole numbers q, from −2^(bits−1) to 2^(bits−1) − 1.

    Returns:
        scale float32 and zero_point int32, of that shape. The published zero point is larger by 2^(bits−1).

    Source: PTQ4DM, ``UniformAffineQuantizer``.
    """
    levels, half = 2**bits - 1, 2 ** (bits - 1)
    low, high = lowest.float().clamp(max=0), highest.float().clamp(min=0)
    span = (high - low).clamp(min=LEAST_SCALE * levels)
    # One division: low / scale would miss ties such as that of a symmetric range.
    zero_point = (-low * levels / span).round().clamp(0, levels) - half
    return span / levels, zero_point.to(torch.int32)


class EmaRange:
    """The range of a tensor over batches, an exponential moving average: r ← 0.9 r + 0.1 r_batch.

    Attributes:
        lowest, highest: float32 ``[]``; None before the first batch. They stay on the device of the batches.
    """

    def __init__(self, decay: float = 0.9) -> None:
        self.decay = decay
        self.lowest: Tensor | None = None
        self.highest: Tensor | None = None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Take in a batch; the first one is taken as it is."""
        lowest, highest = (t.float() for t in x.aminmax())
        if self.lowest is None or self.highest is None:
            self.lowest, self.highest = lowest, highest
        else:
            self.lowest = self.lowest.lerp(lowest, 1 - self.decay)
            self.highest = self.highest.lerp(highest, 1 - self.decay)

    def parameters(self, *, bits: int = 8) -> tuple[Tensor, Tensor]:
        """Scale and zero point, by :func:`affine_parameters`. Raises RuntimeError before the first batch."""
        if self.lowest is None or self.highest is None:
            raise RuntimeError("fastdiff.quant.EmaRange: there was no batch to take a range of")
        return affine_parameters(self.lowest, self.highest, bits=bits)


def sample_timesteps(
    count: int,
    total: int,
    *,
    mode: str = "normal",
    mean: float = 0.4,
    std: float = 0.4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Timesteps to calibrate at: ``normal``, t = N(mean, std²) total within 0 … total − 1, or ``uniform``.

    Args:
        count: how many.
        total: the number of timesteps that the model was trained with.
        mode: "normal" or "uniform".
        mean, std: of the normal distribution, as shares of the total; those of the released script.
        generator: of a CPU.

    Returns:
        int64 ``[count]``, in no order. Calibration data are the states of a sampling run at these timesteps; the
        published code labels the state of step total − 1 − t with t.

    Source: PTQ4DM, normally distributed time-step calibration.
    """
    if mode not in ("normal", "uniform"):
        raise ValueError(f'fastdiff.quant.sample_timesteps: mode must be "normal" or "uniform", got {mode!r}')
    if mode == "uniform":
        return torch.randint(total, (count,), generator=generator)
    shares = mean + std * torch.randn(count, generator=generator, dtype=torch.float64)
    return (shares * total).floor().clamp(0, total - 1).long()


# ---- changes of a model that leave its results as they are -----------------------------------------------------


def smoothquant_scales(x_absmax: Tensor, weights: Tensor | Sequence[Tensor], *, alpha: float = 0.5) -> Tensor:
    r"""How much of the activations' range to move into the weights, for each input channel:

    .. math:: s_k = \frac{(\max |x_k|)^\alpha}{(\max_n |w_{nk}|)^{1 - \alpha}}

    Args:
        x_absmax: ``[K]``, of calibration data: ``Collector.absmax``.
        weights: ``[N, K]``, or those of all linear layers that read x.
        alpha: 0 leaves the activations as they are, 1 makes their channels alike.

    Returns:
        s float32 ``[K]`` for :func:`migrate`; 1 where either maximum is 0.

    Source: Xiao et al. 2023, SmoothQuant, equation 4.
    """
    w = torch.stack(
        [t.float().abs().amax(0) for t in ([weights] if isinstance(weights, Tensor) else weights)]
    )
    x_max, w_max = x_absmax.float(), w.amax(0)
    scales = x_max.pow(alpha) / w_max.pow(1 - alpha)
    return scales.where((x_max > 0) & (w_max > 0), 1)


@torch.no_grad()
def migrate(before: nn.Module, linears: nn.Linear | Iterable[nn.Linear], scales: Tensor) -> None:
    """Divide what a layer gives by scales ``[K]`` and multiply the weights that read it, in place.

    ``before`` has a weight and perhaps a bias whose first dimension is K: a norm, or a linear layer with nothing
    non-linear behind it. All layers that read its output must be in ``linears``.

    Raises:
        ValueError: it has no parameters of its own, or of another size: nothing is changed then.
    """
    own = list(before.parameters(recurse=False))
    if not own or any(t.shape[:1] != scales.shape for t in own):
        raise ValueError(
            f"fastdiff.quant.migrate: what is before must have parameters [{len(scales)}, ...], got {before}"
        )
    for t in before.parameters(recurse=False):
        t.div_(scales.to(t.dtype).view(-1, *(1,) * (t.dim() - 1)))
    for linear in [linears] if isinstance(linears, nn.Linear) else linears:
        linear.weight.mul_(scales.to(linear.weight.dtype))


@torch.no_grad()
def fold_scale(linear: nn.Linear | nn.Conv2d, gamma: Tensor) -> None:
    """Fold a scale of the output channels into the weights, in place: W' = diag(γ) W, b' = γ b.

    What DiffFit, or any layer scale, has learned costs nothing after that. ``gamma``: ``[N]``.
    """
    weight = linear.weight
    weight.mul_(gamma.to(weight.dtype).view(-1, *(1,) * (weight.dim() - 1)))
    if linear.bias is not None:
        linear.bias.mul_(gamma.to(linear.bias.dtype))


# ---- a run that is watched -------------------------------------------------------------------------------------


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a layer is called with, by position or as ``input``."""
    x: Tensor = args[0] if args else kwargs["input"]
    return x.detach()


class RangeTable(NamedTuple):
    """Of one module, a row for each timestep in the order of the run: float64, float32 and int32, ``[T]``."""

    timesteps: Tensor
    scale: Tensor
    zero_point: Tensor


class Collector:
    """Watches what the layers of a model read during a sampling run: maxima of channels, ranges, and both of timesteps.

    ::

        with Collector(model, per_timestep=True) as collector:
            for t in timesteps:
                collector.at(t)
                x = step(model(x, t), t, x)
        scale, zero_point = collector.ranges["blocks.0.mlp"].parameters()

    Args:
        model: its modules are watched while the collector is entered.
        modules: which of them, by name and module; default: ``nn.Linear`` and ``nn.Conv2d``.
        timestep: the position or keyword of the model's argument that is the timestep, ``[]`` or ``[B]`` of equal
            numbers, so that :meth:`at` need not be called. Reading it waits for the device.
        per_timestep: keep a range for each timestep too, for :meth:`table`.
        decay: of the moving averages, :class:`EmaRange`.

    Attributes:
        absmax: of each module max |x| for each input channel, ``[K]``.
        ranges: of each module the :class:`EmaRange` over all calls.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: ModuleFilter | None = None,
        *,
        timestep: int | str | None = None,
        per_timestep: bool = False,
        decay: float = 0.9,
    ) -> None:
        self.absmax: dict[str, Tensor] = {}
        self.ranges: dict[str, EmaRange] = {}
        self._model, self._chosen = model, modules or (lambda _, m: isinstance(m, (nn.Linear, nn.Conv2d)))
        self._argument, self._per_timestep, self._decay = timestep, per_timestep, decay
        self._at: dict[str, dict[float, EmaRange]] = {}
        self._timestep: float | None = None
        self._hooks: list[Any] = []

    def __enter__(self) -> Collector:
        if self._argument is not None:
            self._hooks.append(self._model.register_forward_pre_hook(self._read_timestep, with_kwargs=True))
        for name, module in self._model.named_modules():
            if self._chosen(name, module):
                self._hooks.append(module.register_forward_pre_hook(self._watch(name), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def at(self, timestep: float | Tensor) -> None:
        """The calls from now on are at this timestep, a whole number or not."""
        self._timestep = float(timestep)

    def table(self, name: str, *, bits: int = 8) -> RangeTable:
        """Scale and zero point of a module for each timestep that was seen, in the order of the run."""
        ranges = self._at[name]
        parameters = [r.parameters(bits=bits) for r in ranges.values()]
        scale, zero_point = (torch.stack(column) for column in zip(*parameters, strict=True))
        return RangeTable(
            torch.tensor(list(ranges), dtype=torch.float64, device=scale.device), scale, zero_point
        )

    def _read_timestep(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        of = kwargs if isinstance(self._argument, str) else args
        self.at(torch.as_tensor(of[self._argument]).flatten()[0])  # type: ignore[index]

    def _watch(self, name: str) -> Callable[..., None]:
        @torch.no_grad()
        def watch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            channel = 1 if isinstance(module, nn.Conv2d) else x.dim() - 1
            peaks = x.abs().amax([d for d in range(x.dim()) if d != channel]) if x.dim() > 1 else x.abs()
            known = self.absmax.get(name)
            self.absmax[name] = peaks if known is None else torch.maximum(known, peaks)
            self.ranges.setdefault(name, EmaRange(self._decay)).update(x)
            if not self._per_timestep:
                return
            if self._timestep is None:
                raise RuntimeError(
                    "fastdiff.quant.Collector: per_timestep needs the timestep: call at(t), or name the argument"
                )
            self._at.setdefault(name, {}).setdefault(self._timestep, EmaRange(self._decay)).update(x)

        return watch
