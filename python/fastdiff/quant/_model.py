# SPDX-License-Identifier: Apache-2.0
"""A model's layers, quantised in place: what to quantise, what came of it, and how to keep it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn

from fastdiff.quant._calibration import Collector, migrate, smoothquant_scales
from fastdiff.quant._layers import Layer, QuantLayer, quantized_like
from fastdiff.quant._packing import PackedWeight, pack_weight

SCHEMES: Final = {"int8": "int8", "int8_weight": "int8", "int4": "int4", "bf16": "bf16"}
"""What users choose, and the scheme of the packed weight."""
RANGES: Final = ("dynamic", "static", "timestep")
SAMPLE_ROWS: Final = 256
Calibration = Callable[[Collector], object]


@dataclass(frozen=True)
class QuantConfig:
    """What :func:`quantize_` does to a model.

    Attributes:
        scheme: of linear layers: ``"int8"``, with int8 activations, or of weights alone: ``"int8_weight"``, ``"int4"``,
            ``"bf16"``. Convolutions are int8 with int8 activations; where weights alone are asked for, they are left.
        activations: for ``"int8"``: ``"dynamic"``, each row by its own range; ``"static"``, one range for each layer,
            from calibration; ``"timestep"``, one for each layer and timestep, of which :func:`set_timestep` picks one.
        bits: of activations, 8 or 7; see :func:`int8_linear`.
        group: elements along K that share a scale, for ``"int4"``.
        symmetric: False: weights have zero points.
        smooth: names of norms (or linear layers) and of the linear layers that read each of them, and nothing else
            does: ``{"norm1": ("to_q", "to_k", "to_v")}``; ranges are moved between them (SmoothQuant).
        alpha: how much of them, see :func:`smoothquant_scales`.
        skip: names of layers to leave alone, with ``*`` and ``?``: ``("*.proj_out", "time_embed.*")``.
        only: a further condition, of name and module.
        least: layers of fewer weights are left alone.
    """

    scheme: str = "int8"
    activations: str = "dynamic"
    bits: int = 8
    group: int = 64
    symmetric: bool = True
    smooth: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alpha: float = 0.5
    skip: tuple[str, ...] = ()
    only: Callable[[str, nn.Module], bool] | None = None
    least: int = 4096

    def __post_init__(self) -> None:
        checks = (("scheme", tuple(SCHEMES)), ("activations", RANGES), ("bits", (7, 8)))
        for name, known in checks:
            if getattr(self, name) not in known:
                raise ValueError(
                    f"fastdiff.QuantConfig: {name} must be one of {known}, got {getattr(self, name)!r}"
                )

    def wants(self, name: str, module: nn.Module) -> bool:
        """Whether a layer is to be quantised."""
        if isinstance(module, nn.Conv2d):
            plain = (
                module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
            )
            if self.scheme != "int8" or not plain:
                return False
        elif not isinstance(module, nn.Linear):
            return False
        if module.weight.numel() < self.least or any(fnmatchcase(name, pattern) for pattern in self.skip):
            return False
        return self.only is None or self.only(name, module)

    def pack(self, w: Tensor) -> PackedWeight:
        """A layer's weight."""
        options: dict[str, Any] = {"group": self.group} if self.scheme == "int4" else {}
        return pack_weight(w, SCHEMES[self.scheme], symmetric=self.symmetric, **options)


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: of the layer.
        scheme: how its weight is stored.
        weight_error: ‖W − Ŵ‖ / ‖W‖.
        output_error: likewise of what the layer gives, for up to 256 rows (or one sample of an image) of what it read
            last in calibration; None without calibration.
        nbytes: of the packed weight.
        before: of the weight as it was.
    """

    name: str
    scheme: str
    weight_error: float
    output_error: float | None
    nbytes: int
    before: int


@torch.no_grad()
def quantize_(
    model: nn.Module,
    config: QuantConfig | None = None,
    calibration: Calibration | None = None,
    *,
    progress: bool = True,
) -> list[LayerReport]:
    """Quantise a model's linear layers and convolutions, in place.

    ::

        def calibration(collector):
            for t in timesteps:
                collector.at(t)
                x = sampler_step(model, x, t)

        reports = quantize_(model, QuantConfig(activations="static", skip=("*proj_out",)), calibration)

    Args:
        model: on any device; its layers become :class:`QuantLinear` and :class:`QuantConv2d`.
        config: default: int8 weights and activations, each row of these by its own range.
        calibration: runs the model on representative inputs, such as a sampling run. It is given the
            :class:`Collector` that watches. Needed for ranges that are not dynamic, and to move ranges; otherwise only
            for ``output_error``.
        progress: show a bar, if tqdm is installed.

    Returns:
        a report for each layer, in the order of the model.

    Raises:
        ValueError: no layer is chosen, calibration is missing or did not reach a layer, or the model itself is a layer.
    """
    config = config or QuantConfig()
    chosen = [(name, m) for name, m in model.named_modules() if _is_layer(m) and config.wants(name, m)]
    if not chosen or chosen[0][0] == "":
        raise ValueError(
            "fastdiff.quantize_: the model must contain a layer that is to be quantised, below itself"
        )
    integers = config.scheme == "int8"
    needs_ranges = integers and config.activations != "dynamic"
    if calibration is None and (needs_ranges or config.smooth):
        raise ValueError("fastdiff.quantize_: static ranges, and smooth, need a calibration")
    collector = Collector(model, config.wants, per_timestep=config.activations == "timestep" and integers)
    inputs: dict[str, Tensor] = {}
    if calibration is not None:
        if config.smooth:
            _smooth(model, config, calibration)
        with collector, _last_inputs(chosen, inputs):
            calibration(collector)
        if missing := [name for name, _ in chosen if name not in inputs]:
            raise ValueError(f"fastdiff.quantize_: calibration did not reach {', '.join(missing)}; skip them")
    step = torch.zeros(1, dtype=torch.int64, device=chosen[0][1].weight.device)
    reports = []
    for name, module in _with_progress(chosen, progress):
        layer = quantized_like(module, config.pack(module.weight), config.bits if integers else 0)
        if needs_ranges:
            _set_ranges(layer, collector, name, step if config.activations == "timestep" else None)
            step.fill_(max(0, len(layer.timesteps) - 1))  # where the last inputs come from
        reports.append(_report(name, module, layer, inputs.get(name)))
        model.set_submodule(name, layer)
    step.zero_()
    return reports


def set_timestep(model: nn.Module, timestep: int) -> None:
    """Use the ranges of the timestep that is nearest among those of the calibration, in all layers.

    No wait for the device, and nothing to compile again: the number is written to a tensor that the layers share.
    """
    written: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, QuantLayer) and layer.step is not None and id(layer.step) not in written:
            nearest = min(range(len(layer.timesteps)), key=lambda n: abs(layer.timesteps[n] - timestep))
            layer.step.fill_(nearest)
            written.add(id(layer.step))


def save_quantized(model: nn.Module, path: str | Path) -> None:
    """Write a model's state to a file of safetensors; :func:`load_quantized_` reads it. Needs safetensors."""
    from safetensors.torch import save_file

    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)


def load_quantized_(model: nn.Module, path: str | Path) -> None:
    """Read what :func:`save_quantized` wrote into a model that is as it was before :func:`quantize_`, in place.

    Raises:
        AttributeError: the model lacks a layer of the file.
        RuntimeError: other tensors of the file and the model do not agree.
    """
    from safetensors.torch import load_file

    state = load_file(path)
    step: Tensor | None = None
    for name in [key.removesuffix(".format") for key in state if key.endswith(".format")]:
        packed = PackedWeight.from_state_dict(state, f"{name}.")
        module = model.get_submodule(name)
        if not _is_layer(module):
            raise AttributeError(
                f"fastdiff.load_quantized_: {name} must be nn.Linear or nn.Conv2d, got {module}"
            )
        device = next(iter(module.parameters())).device
        layer = quantized_like(module, packed.to(device), int(state[f"{name}.settings"]))
        if f"{name}.x_scale" in state:
            seen = state.get(f"{name}.timesteps_seen")
            if seen is not None and step is None:
                step = torch.zeros(1, dtype=torch.int64, device=device)
            ranges = (state[f"{name}.x_scale"], state[f"{name}.x_zero_point"], seen)
            layer.set_ranges(*ranges, step if seen is not None else None)
            layer.to(device)
        model.set_submodule(name, layer)
    model.load_state_dict(state)


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    return isinstance(module, Layer)


# ---- the steps of quantize_ ------------------------------------------------------------------------------------


def _smooth(model: nn.Module, config: QuantConfig, calibration: Calibration) -> None:
    readers = {name for names in config.smooth.values() for name in names}
    with Collector(model, lambda name, _: name in readers) as collector:
        calibration(collector)
    for before, names in config.smooth.items():
        linears = [m for name in names if isinstance(m := model.get_submodule(name), nn.Linear)]
        scales = smoothquant_scales(
            collector.absmax[names[0]], [m.weight for m in linears], alpha=config.alpha
        )
        migrate(model.get_submodule(before), linears, scales)


@contextlib.contextmanager
def _last_inputs(chosen: Iterable[tuple[str, Layer]], inputs: dict[str, Tensor]) -> Iterator[None]:
    """Keeps a sample of what each layer reads, until the end of the block."""

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0].detach()
            inputs[name] = (
                x[:1] if isinstance(module, nn.Conv2d) else x.reshape(-1, x.shape[-1])[:SAMPLE_ROWS]
            )

        return hook

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in chosen]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _set_ranges(layer: QuantLayer, collector: Collector, name: str, step: Tensor | None) -> None:
    # Of 7 bits the operators want 0 ... 127, and the collector counts from -64.
    shift = 64 if layer.bits == 7 else 0
    if step is None:
        scale, zero_point = collector.ranges[name].parameters(bits=layer.bits)
        return layer.set_ranges(scale, zero_point + shift)
    table = collector.table(name, bits=layer.bits)
    return layer.set_ranges(table.scale, table.zero_point + shift, table.timesteps, step)


def _report(name: str, module: Layer, layer: QuantLayer, x: Tensor | None) -> LayerReport:
    def relative(got: Tensor, want: Tensor) -> float:
        return float((got.float() - want.float()).norm() / want.float().norm().clamp_min(1e-30))

    packed = layer.packed
    w = module.weight
    flat = w.movedim(1, -1).flatten(1)
    output_error = None if x is None else relative(layer(x), module(x))
    return LayerReport(
        name, packed.scheme, relative(packed.dequantize(), flat), output_error, packed.nbytes, w.nbytes
    )


def _with_progress(chosen: list[tuple[str, Layer]], progress: bool) -> Iterable[tuple[str, Layer]]:
    if not progress:
        return chosen
    try:
        from tqdm import tqdm
    except ImportError:
        return chosen
    bar: Iterable[tuple[str, Layer]] = tqdm(chosen, desc="quantize_", unit="layer")
    return bar
