# SPDX-License-Identifier: Apache-2.0
"""Tensors inside nested arguments: the same call with each tensor stored, laid out or typed in another way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

SENTINEL = 0xA5  # every byte of memory that a kernel must not write


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nested lists, tuples and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def moved(value: Any, device: str) -> Any:
    """The same nested lists, tuples and dicts with every tensor, and all else that can move, on a device."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved(item, device) for item in value)
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def structure_of(value: Any) -> Any:
    """All that the tracing of a call can see of an argument: dtypes, ranks, choices by name, but no numbers."""
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    if isinstance(value, dict):
        return tuple((name, structure_of(item)) for name, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return type(value), *map(structure_of, value)
    return value if isinstance(value, str | bool | torch.dtype | None) else type(value)


def as_tuple(results: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What an operator returned, one tensor or several."""
    return (results,) if isinstance(results, Tensor) else tuple(results)


def at_offset(x: Tensor, elements: int) -> Tensor:
    """The same values and strides, `elements` into a storage that is aligned at its start."""
    if x.numel() == 0:
        return x
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    room = torch.empty(elements + span, dtype=x.dtype, device=x.device)
    return (
        room.as_strided(x.shape, x.stride(), elements).copy_(x)
        if _distinct(x)
        else _shared(x, room, elements)
    )


def _distinct(x: Tensor) -> bool:
    return all(stride or size == 1 for size, stride in zip(x.shape, x.stride(), strict=True))


def _shared(x: Tensor, room: Tensor, elements: int) -> Tensor:
    """An expanded tensor: copy one representative of each set of elements that share memory."""
    index = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())
    room.as_strided(x[index].shape, x.stride(), elements).copy_(x[index])
    return room.as_strided(x.shape, x.stride(), elements)


def with_gaps(x: Tensor) -> Tensor:
    """The same values in every second element of each dimension of a larger tensor."""
    if x.dim() == 0:
        return x
    room = torch.zeros([2 * size for size in x.shape], dtype=x.dtype, device=x.device)
    view = room[tuple(slice(0, None, 2) for _ in x.shape)]
    return view.copy_(x)


class Canary:
    """A tensor like `x`, between 64 bytes that must keep their value; starts out full of sentinel bytes."""

    MARGIN = 64

    def __init__(self, x: Tensor) -> None:
        size = x.element_size()
        span = (
            1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
            if x.numel()
            else 0
        )
        self._bytes = torch.full(
            (2 * self.MARGIN + span * size,), SENTINEL, dtype=torch.uint8, device=x.device
        )
        inner = self._bytes[self.MARGIN : self.MARGIN + span * size].view(x.dtype)
        self.tensor = (
            inner.as_strided(x.shape, x.stride(), inner.storage_offset()) if span else torch.empty_like(x)
        )
        self._owned = torch.zeros_like(self._bytes, dtype=torch.bool)
        if span:
            flags = torch.zeros(span, dtype=torch.bool, device=x.device)
            flags.as_strided(x.shape, x.stride()).fill_(True)
            self._owned[self.MARGIN : self.MARGIN + span * size] = flags.repeat_interleave(size)

    def is_alive(self) -> bool:
        """Nothing outside the tensor's own elements was written."""
        return bool((self._bytes[~self._owned] == SENTINEL).all())


def bits(x: Tensor) -> Tensor:
    """The bit patterns as integers, with all NaNs made one: their payload is not promised."""
    if x.is_complex():
        x = torch.view_as_real(x.contiguous())
    x = torch.where(x.isnan(), torch.full_like(x, float("nan")), x) if x.is_floating_point() else x
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.contiguous().view(integer)
