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

from fastdiff.quant._calibration import Collector, input_of, migrate, smoothquant_scales
from fastdiff.quant._layers import Layer, QuantLayer, quantized_like
from fastdiff.quant._packing import PackedWeight, pack_weight

SCHEMES: Final = {
    "int8": "int8",
    "int8_weight": "int8",
    "int4": "int4",
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8_weight": "fp8",
}
"""What users choose, and the scheme of the packed weight."""
RANGES: Final = ("dynamic", "static", "timestep")
SAMPLE_ROWS: Final = 256
MAX_INNER: Final = 33_024
"""K of products of int8."""
CLOSED: Final = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of their layers themselves, instead of calling them."""
Calibration = Callable[[Collector], object]


@dataclass(frozen=True)
class QuantConfig:
    """What :func:`quantize_` does to a model.

    Attributes:
        scheme: of linear layers: ``"int8"``, with int8 activations; ``"fp8"``, with activations of e4m3, each row by
            its own scale; or of weights alone: ``"int8_weight"``, ``"int4"``, ``"bf16"``, ``"fp8_weight"``.
            Convolutions are int8 with int8 activations; for all other schemes they are left.
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
        checks = (
            ("scheme", tuple(SCHEMES)),
            ("activations", RANGES),
            ("bits", (7, 8)),
            ("group", (32, 64, 128)),
        )
        for name, known in checks:
            if getattr(self, name) not in known:
                raise ValueError(
                    f"fastdiff.QuantConfig: {name} must be one of {known}, got {getattr(self, name)!r}"
                )
        if self.scheme != "int8" and (self.activations != "dynamic" or self.bits != 8):
            raise ValueError(
                "fastdiff.QuantConfig: activations and bits are for scheme 'int8', "
                f"got {self.activations!r} and {self.bits} with {self.scheme!r}"
            )

    def wants(self, name: str, module: nn.Module) -> bool:
        """Whether a layer is to be quantised: one that does what its class does, which the operators can do too.

        Left alone are layers with a forward of their own or with hooks, in float64, with groups or other padding than
        zeros, and, as int8, with more than 33,024 elements along K.
        """
        if not _is_layer(module) or module.weight.dtype == torch.float64:
            return False
        if isinstance(module, nn.Conv2d) and (self.scheme != "int8" or not _is_plain(module)):
            return False
        if self.scheme == "int8" and module.weight[0].numel() > MAX_INNER:
            return False
        if module.weight.numel() < self.least or any(fnmatchcase(name, pattern) for pattern in self.skip):
            return False
        return self.only is None or self.only(name, module)

    @property
    def bits_of_activations(self) -> int:
        """0: they stay as they are."""
        return {"int8": self.bits, "fp8": 8}.get(self.scheme, 0)

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
    chosen = _chosen(model, config)
    if not chosen or "" in chosen:
        raise ValueError(
            "fastdiff.quantize_: the model must contain a layer that is to be quantised, below itself"
        )
    integers = config.scheme == "int8"
    needs_ranges = integers and config.activations != "dynamic"
    if calibration is None and (needs_ranges or config.smooth):
        raise ValueError("fastdiff.quantize_: static ranges, and smooth, need a calibration")
    collector = Collector(
        model, lambda name, _: name in chosen, per_timestep=config.activations == "timestep" and integers
    )
    inputs: dict[str, Tensor] = {}
    if calibration is not None:
        if config.smooth:
            _smooth(model, config, calibration)
        with collector, _last_inputs(chosen, inputs):
            calibration(collector)
        if missing := [name for name in chosen if name not in inputs]:
            raise ValueError(f"fastdiff.quantize_: calibration did not reach {', '.join(missing)}; skip them")
    steps, reports, layers = Steps(), [], {}
    for name, module in _with_progress(chosen, progress):
        layer = quantized_like(module, config.pack(module.weight), config.bits_of_activations)
        if needs_ranges:
            _set_ranges(layer, collector, name, steps if config.activations == "timestep" else None)
        reports.append(_report(name, module, layer, inputs.get(name)))
        layers[module] = layer
    steps.reset()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in layers:  # by every name that it has
            model.set_submodule(name, layers[module])
    return reports


def set_timestep(model: nn.Module, timestep: float) -> None:
    """Use the ranges of the timestep that is nearest among those of the calibration, in all layers.

    No wait for the device, and nothing to compile again: the number is written to tensors that layers share.
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

    state: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, t in model.state_dict().items():
        # A file has no tensors that share memory: of tied ones the others are copies.
        state[name] = t.clone() if t.untyped_storage().data_ptr() in known else t.contiguous()
        known.add(t.untyped_storage().data_ptr())
    save_file(state, path)


def load_quantized_(model: nn.Module, path: str | Path) -> None:
    """Read what :func:`save_quantized` wrote into a model that is as it was before :func:`quantize_`, in place.

    A model on the meta device, which has no memory, becomes that of the file, on the CPU: what the file does not have,
    such as buffers that are not saved, stays on the meta device. Parameters that are tied stay so.

    Raises:
        AttributeError: the model lacks a layer of the file.
        ValueError: a layer has another size there, or some of the model is on the meta device and some is not. Nothing
            is changed then.
        RuntimeError: other tensors of the file and the model do not agree.
    """
    from safetensors.torch import load_file

    state, steps, layers = load_file(path), Steps(), {}
    without_memory = {t.is_meta for t in model.state_dict().values()}
    if len(without_memory) > 1:
        raise ValueError("fastdiff.load_quantized_: all of the model must be on the meta device, or nothing")
    for name in [key.removesuffix(".format") for key in state if key.endswith(".format")]:
        packed, module = PackedWeight.from_state_dict(state, f"{name}."), model.get_submodule(name)
        if not _is_layer(module):
            raise AttributeError(
                f"fastdiff.load_quantized_: {name} must be nn.Linear or nn.Conv2d, got {module}"
            )
        rows, inner = module.weight.shape[0], module.weight[0].numel()
        if (packed.rows, packed.inner) != (rows, inner):
            raise ValueError(
                f"fastdiff.load_quantized_: {name} must be [{packed.rows}, {packed.inner}] as in the file, "
                f"got [{rows}, {inner}]"
            )
        device = torch.device("cpu") if module.weight.is_meta else module.weight.device
        layer = quantized_like(module, packed.to(device), int(state[f"{name}.settings"]))
        if f"{name}.x_scale" in state:
            ranges = [state.get(f"{name}.{key}") for key in ("x_scale", "x_zero_point", "timesteps_seen")]
            scale, zero_point, seen = (None if t is None else t.to(device) for t in ranges)
            assert scale is not None and zero_point is not None
            layer.set_ranges(scale, zero_point, seen, None if seen is None else steps.of(seen))
        layers[name] = layer
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    tied = _tied_parameters(model)
    model.load_state_dict(state, assign=True in without_memory)
    for first, *others in tied:
        for name in others:
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, model.get_parameter(first))


def _tied_parameters(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [several for several in names.values() if len(several) > 1]


class Steps:
    """The tensors that say which row of a table counts: one for each list of timesteps and device, for all layers."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def of(self, timesteps: Tensor) -> Tensor:
        """int64 ``[1]``, at the last of them at first."""
        key = (tuple(timesteps.tolist()), timesteps.device)
        if key not in self._known:
            with torch.inference_mode(False):  # so that it can be written at any time
                last = torch.tensor([len(timesteps) - 1], device=timesteps.device)
            self._known[key] = last
        return self._known[key]

    def reset(self) -> None:
        """All to the first timestep."""
        for step in self._known.values():
            step.zero_()


def _is_layer(module: nn.Module) -> TypeGuard[Layer]:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward) and not any(hooks)


def _is_plain(conv: nn.Conv2d) -> bool:
    return conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _chosen(model: nn.Module, config: QuantConfig) -> dict[str, Layer]:
    modules = dict(model.named_modules())
    closed = tuple(f"{name}." if name else "" for name, m in modules.items() if isinstance(m, CLOSED))
    return {
        name: m
        for name, m in modules.items()
        if not name.startswith(closed) and _is_layer(m) and config.wants(name, m)
    }


# ---- the steps of quantize_ ------------------------------------------------------------------------------------


def _smooth(model: nn.Module, config: QuantConfig, calibration: Calibration) -> None:
    groups: list[tuple[nn.Module, tuple[str, ...], list[nn.Linear]]] = []
    for before, names in config.smooth.items():
        linears = [m for name in names if isinstance(m := model.get_submodule(name), nn.Linear)]
        if not names or len(linears) < len(names):
            raise ValueError(f"fastdiff.quantize_: what reads {before} must be linear layers, got {names}")
        groups.append((model.get_submodule(before), names, linears))
    readers = {name for _, names, _ in groups for name in names}
    with Collector(model, lambda name, _: name in readers) as collector:
        calibration(collector)
    if missing := sorted(readers - set(collector.absmax)):
        raise ValueError(f"fastdiff.quantize_: calibration did not reach {', '.join(missing)}")
    for module, names, linears in groups:
        weights = [linear.weight for linear in linears]
        migrate(module, linears, smoothquant_scales(collector.absmax[names[0]], weights, alpha=config.alpha))


@contextlib.contextmanager
def _last_inputs(chosen: Mapping[str, Layer], inputs: dict[str, Tensor]) -> Iterator[None]:
    """Keeps a sample of what each layer reads, until the end of the block."""

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs)
            few = x[:1] if isinstance(module, nn.Conv2d) else x.reshape(-1, x.shape[-1])[:SAMPLE_ROWS]
            inputs[name] = few.clone()

        return hook

    hooks = [
        module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in chosen.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _set_ranges(layer: QuantLayer, collector: Collector, name: str, steps: Steps | None) -> None:
    # Of 7 bits the operators want 0 ... 127, and the collector counts from -64.
    shift = 64 if layer.bits == 7 else 0
    if steps is None:
        scale, zero_point = collector.ranges[name].parameters(bits=layer.bits)
        return layer.set_ranges(scale, zero_point + shift)
    table = collector.table(name, bits=layer.bits)
    return layer.set_ranges(table.scale, table.zero_point + shift, table.timesteps, steps.of(table.timesteps))


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


def _with_progress(chosen: Mapping[str, Layer], progress: bool) -> Iterable[tuple[str, Layer]]:
    if not progress:
        return chosen.items()
    try:
        from tqdm import tqdm
    except ImportError:
        return chosen.items()
    bar: Iterable[tuple[str, Layer]] = tqdm(chosen.items(), desc="quantize_", unit="layer")
    return bar
