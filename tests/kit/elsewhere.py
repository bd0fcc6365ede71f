# SPDX-License-Identifier: Apache-2.0
"""A device that is not the CPU, in name only: code that mixes its tensors with the CPU's is found on any machine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
# Operands on both sides are what these are for; the result is where the first is.
CROSSING = {Tensor.copy_, Tensor.__setitem__, Tensor.__getitem__, Tensor.index_put_}

READ_BY_NUMPY = {Tensor.numpy, Tensor.__array__}


class MixedDevicesError(RuntimeError):
    """As a GPU's "Expected all tensors to be on the same device"."""


class Elsewhere(TorchFunctionMode):
    """Tensors that are made on, or moved to, a CUDA device say that they are there, and may not meet others."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = DEVICE if any(map(is_elsewhere, tensors[:1] if func in CROSSING else tensors)) else CPU
        if func == Tensor.device.__get__:
            return here
        if func == Tensor.is_cuda.__get__:
            return here == DEVICE
        if func in READ_BY_NUMPY and here == DEVICE:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if func is Tensor.to:
            return moved(*args, **kwargs)
        if func is Tensor.cpu or func is Tensor.cuda:
            return moved(args[0], CPU if func is Tensor.cpu else DEVICE)
        wanted = kwargs.pop("device", None)
        if wanted is not None:
            kwargs["device"], here = CPU, torch.device(wanted)
        elif here == DEVICE and func not in CROSSING:
            is_ours = isinstance(func, OpOverload)  # torch's own take numbers of the CPU
            strangers = [tuple(t.shape) for t in tensors if (is_ours or t.dim()) and not is_elsewhere(t)]
            if strangers:
                raise MixedDevicesError(f"{func.__name__}: tensors of {strangers} are on the CPU")
        return marked(func(*args, **kwargs), here)


def is_elsewhere(t: Tensor) -> bool:
    return getattr(t, "_is_elsewhere", False)


def marked(results: Any, device: torch.device) -> Any:
    for t in tree_leaves(results):
        if isinstance(t, Tensor):
            t._is_elsewhere = device.type == "cuda"  # type: ignore[attr-defined]
    return results


def moved(t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``t.to(...)``: a copy, if it goes to the other side."""
    if args and isinstance(args[0], Tensor):
        args = (DEVICE if is_elsewhere(args[0]) else CPU, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    options = {} if layout is None else {"memory_format": layout}
    there = is_elsewhere(t) if device is None else device.type == "cuda"
    changed = t.to(dtype or t.dtype, copy=copy or there != is_elsewhere(t), **options)
    return marked(changed, DEVICE if there else CPU)
