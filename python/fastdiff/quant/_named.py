# SPDX-License-Identifier: Apache-2.0
"""weight_linear by the names of its schemes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastdiff.quant._packing import PackedWeight
from fastdiff.quant.weight_linear import weight_linear


def int8_weight_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, **options: Any) -> Tensor:
    """:func:`weight_linear` of a weight that was packed as ``"int8"``, with its options: activations stay floating.

    Raises:
        ValueError: another scheme.
    """
    return _of("int8_weight_linear", "int8", x, packed, bias, options)


def int4_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, **options: Any) -> Tensor:
    """:func:`weight_linear` of a weight that was packed as ``"int4"``, with its options.

    Raises:
        ValueError: another scheme.
    """
    return _of("int4_linear", "int4", x, packed, bias, options)


def bf16_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, **options: Any) -> Tensor:
    """:func:`weight_linear` of a weight that was packed as ``"bf16"``, with its options.

    Raises:
        ValueError: another scheme.
    """
    return _of("bf16_linear", "bf16", x, packed, bias, options)


def fp8_weight_linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None, **options: Any) -> Tensor:
    """:func:`weight_linear` of a weight that was packed as ``"fp8"``, with its options: activations stay as they are.

    Raises:
        ValueError: another scheme.
    """
    return _of("fp8_weight_linear", "fp8", x, packed, bias, options)


def fp8_linear(
    x: Tensor,
    packed: PackedWeight,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """:func:`weight_linear` of a weight that was packed as ``"fp8"``, with its options: activations become e4m3 too.

    Args:
        x: ``[..., K]`` float32, float16 or bfloat16, each row rounded by its own scale or by ``x_scale``; or
            float8_e4m3fn, with ``x_scale``.
        packed: the weight.
        bias: ``[N]``.
        x_scale: float32, one element or one for each row (``[..., 1]``).
        options: of :func:`weight_linear`.

    Raises:
        ValueError: another scheme.
    """
    return _of("fp8_linear", "fp8", x, packed, bias, options | {"round_x": True, "x_scale": x_scale})


def _of(
    name: str, scheme: str, x: Tensor, packed: PackedWeight, bias: Tensor | None, options: dict[str, Any]
) -> Tensor:
    if packed.scheme != scheme:
        raise ValueError(f"fastdiff.{name}: packed must have the scheme {scheme}, got {packed.scheme}")
    return weight_linear(x, packed, bias, **options)
