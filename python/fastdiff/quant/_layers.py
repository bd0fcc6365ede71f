# SPDX-License-Identifier: Apache-2.0
"""Quantised layers as modules: what quantize_() puts in the places of nn.Linear and nn.Conv2d."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from fastdiff.quant._named import fp8_linear
from fastdiff.quant._packing import PackedWeight
from fastdiff.quant.int8_conv2d import int8_conv2d
from fastdiff.quant.int8_linear import int8_linear
from fastdiff.quant.weight_linear import weight_linear

Layer = nn.Linear | nn.Conv2d


class QuantLayer(nn.Module):
    """A packed weight, and how activations are quantised; all of its tensors are buffers.

    Attributes:
        packed: the weight.
        bits: of activations; 0: they stay as they are.
        timesteps: those that ranges were collected at, in the order of the tables; empty: one range or none.
    """

    bias: Tensor | None
    x_scale: Tensor | None
    x_zero_point: Tensor | None
    step: Tensor | None

    def __init__(self, packed: PackedWeight, bias: Tensor | None, bits: int) -> None:
        super().__init__()
        for name, t in packed.state_dict().items():
            self.register_buffer(name, t)
        self.register_buffer("settings", torch.tensor([bits]))
        for name, value in (
            ("bias", bias),
            ("x_scale", None),
            ("x_zero_point", None),
            ("timesteps_seen", None),
        ):
            self.register_buffer(name, value)
        self.register_buffer("step", None, persistent=False)
        self.bits, self.timesteps = bits, ()
        self._like = packed.to("meta")  # its form: the tensors are the buffers

    @property
    def packed(self) -> PackedWeight:
        return self._like.with_tensors(self._buffers)

    def set_ranges(
        self, scale: Tensor, zero_point: Tensor, timesteps: Tensor | None = None, step: Tensor | None = None
    ) -> None:
        """Quantise activations by these ranges from now on.

        Args:
            scale, zero_point: float32 and int32 ``[1]``, or ``[T]``, one for each of the timesteps.
            timesteps: int64 ``[T]``.
            step: int64 ``[1]``: the number of the row that counts; layers may share it.
        """
        self.x_scale, self.x_zero_point = scale.reshape(-1), zero_point.reshape(-1)
        self.timesteps_seen, self.step = timesteps, step
        self.timesteps = () if timesteps is None else tuple(timesteps.tolist())

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, *lists: Any
    ) -> None:
        """What is not a tensor here must agree with the file, or follow it."""
        errors: list[str] = lists[-1]
        for name in ("format", "settings"):
            given, own = state.get(f"{prefix}{name}"), getattr(self, name)
            if given is not None and not own.is_meta and not torch.equal(given.to(own.device), own):
                errors.append(f"{prefix}{name} is {given.tolist()}, but the layer's is {own.tolist()}")
        super()._load_from_state_dict(state, prefix, metadata, strict, *lists)
        seen = state.get(f"{prefix}timesteps_seen")
        self.timesteps = () if seen is None else tuple(seen.tolist())

    def ranges(self) -> dict[str, Any]:
        """The arguments of the operators; a row of a table is picked on the device."""
        if self.x_scale is None or self.x_zero_point is None:
            return {}
        if self.step is None:
            return {"x_scale": self.x_scale, "x_zero_point": self.x_zero_point}
        return {"x_scale": self.x_scale[self.step], "x_zero_point": self.x_zero_point[self.step]}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLayer:
        """Scales stay float32, whatever dtype the model is converted to; the bias follows the model."""

        def keep_dtype(t: Tensor) -> Tensor:
            changed = fn(t)
            return changed if t is self.bias or changed.dtype == t.dtype else t.to(changed.device)

        super()._apply(keep_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        packed = self._like
        ranges = "dynamic" if self.x_scale is None else "static" if self.step is None else "of timesteps"
        activations = f"of {self.bits} bits, {ranges}" if self.bits else "as they are"
        return f"{packed.inner} -> {packed.outputs}, {packed.scheme}, activations {activations}"


def as_autocast(x: Tensor) -> Tensor:
    """x in the dtype that layers have where autocast is on, as :class:`torch.nn.Linear` does it."""
    kind = x.device.type
    if x.dtype == torch.float64 or not (is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return x
    return x.to(torch.get_autocast_dtype(kind))


class QuantLinear(QuantLayer):
    """A linear layer by :func:`int8_linear`, :func:`fp8_linear` or, of weights alone, :func:`weight_linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """x ``[..., K]`` to ``[..., N]``."""
        # Code that converts x to the dtype of `weight` would get wrong numbers without a word.
        if not x.is_floating_point():
            raise TypeError(f"fastdiff.QuantLinear: x must be floating, got {x.dtype}")
        x = as_autocast(x)
        if self.bits == 0:
            return weight_linear(x, self.packed, self.bias)
        if self._like.scheme == "fp8":
            return fp8_linear(x, self.packed, self.bias)
        return int8_linear(x, self.packed, self.bias, bits=self.bits, **self.ranges())


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


class QuantConv2d(QuantLayer):
    """:class:`torch.nn.Conv2d` by :func:`int8_conv2d`."""

    def __init__(self, packed: PackedWeight, bias: Tensor | None, bits: int, conv: nn.Conv2d) -> None:
        super().__init__(packed, bias, bits)
        self.stride, self.padding, self.dilation = map(_pair, (conv.stride, conv.padding, conv.dilation))

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, C, H, W]`` or ``[C, H, W]`` to ``[B, N, OH, OW]`` or ``[N, OH, OW]``."""
        if not x.is_floating_point():
            raise TypeError(f"fastdiff.QuantConv2d: x must be floating, got {x.dtype}")
        if x.dim() == 3:
            return self(x[None])[0]  # type: ignore[no-any-return]
        x = as_autocast(x)
        return int8_conv2d(
            x, self.packed, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation,
            bits=self.bits, **self.ranges(),
        )  # fmt: skip


def quantized_like(module: Layer, packed: PackedWeight, bits: int) -> QuantLayer:
    """The layer that does what ``module`` does, with this weight."""
    bias = None if module.bias is None else module.bias.detach()
    layer: QuantLayer
    if isinstance(module, nn.Conv2d):
        layer = QuantConv2d(packed, bias, bits, module)
    else:
        layer = QuantLinear(packed, bias, bits)
    return layer.train(module.training)
