# SPDX-License-Identifier: Apache-2.0
"""Cases of int8_conv2d: 3 by 3 convolutions of a UNet of Stable Diffusion and of its VAE.

The baselines start from the same floating images, in channels_last as models that care for speed have them. Those of
torch.ao quantise them too, by a scale that is given, where ours finds the range of each sample first; FBGEMM's with 7
bits, whose sums saturate without VNNI otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from fastdiff import int8_conv2d, pack_weight
from fastdiff.bench import linear_step_peers as peers
from fastdiff.bench.int8_linear import near
from fastdiff.bench.kit import OURS, Call, Case, Contender, Target, close_to
from fastdiff.quant.int8_conv2d import reference
from torch import Tensor
from torch.nn.functional import conv2d

OP = "int8_conv2d"
EAGER, COMPILED = "eager", "torch.compile"
ENGINES = {"fbgemm": "FBGEMM", "onednn": "oneDNN"}
SEVEN = "fastdiff, 7 bits"

SMALL = (1, 16, 12, 10)
SHAPES = (SMALL, (2, 640, 32, 32), (2, 320, 64, 64), (1, 128, 128, 128))
DTYPES = (torch.float32, torch.bfloat16)


def cases() -> list[Case]:
    """All cases of this op, the smallest shapes first."""
    return [_case(shape, dtype) for shape in SHAPES for dtype in DTYPES]


def _case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    targets = (Target(EAGER, factor=1.6),) if dtype == torch.float32 else ()
    targets += tuple(Target(other, factor=1.0) for other in ENGINES.values())
    return Case(
        op=OP,
        name="3x3",
        title="3 by 3 convolution with as many channels",
        shape=shape,
        dtype=dtype,
        tensors=2,
        build=_contenders(shape, dtype),
        targets=() if shape == SMALL else targets,
        flops=18 * math.prod(shape) * shape[1],
    )


def _contenders(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[torch.device], list[Contender]]:
    def build(device: torch.device) -> list[Contender]:
        g = torch.Generator().manual_seed(0)
        channels = shape[1]
        last = {"memory_format": torch.channels_last}
        x = torch.randn(shape, generator=g).to(device, dtype, **last)
        w = torch.randn(channels, channels, 3, 3, generator=g).to(device, **last) / (3 * channels**0.5)
        b = torch.randn(channels, generator=g).to(device)
        packed, plain, bias = pack_weight(w), w.to(dtype), b.to(dtype)
        want = conv2d(x.double(), w.double(), b.double(), padding=1)

        def eager(x: Tensor, w: Tensor, b: Tensor) -> Sequence[Tensor]:
            return (conv2d(x, w, b, padding=1),)

        def ours(bits: int) -> Contender:
            exact = reference(x.cpu(), packed.to("cpu"), bias.cpu(), padding=1, bits=bits)
            return Contender(
                OURS if bits == 8 else SEVEN,
                lambda: (int8_conv2d(x, packed, bias, padding=1, bits=bits),),
                close_to([exact.double().to(device)], roundoffs=16.0),
                rival=None,
            )

        engines = ENGINES if device.type == "cpu" else {}
        return [
            Contender(EAGER, lambda: eager(x, plain, bias), near(want, 0.01)),
            Contender(COMPILED, peers.compiled(eager, [x, plain, bias], []), near(want, 0.01)),
            *(
                Contender(name, _static(engine, x, w, b, want), near(want, 0.05))
                for engine, name in engines.items()
            ),
            ours(8),
            ours(7),
        ]

    return build


def _static(engine: str, x: Tensor, w: Tensor, b: Tensor, want: Tensor) -> Call:
    """torch.ao's convolution, between a quantisation and the way back."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    zeros = torch.zeros(len(b), dtype=torch.long)
    q = torch.quantize_per_channel(w, w.abs().amax((1, 2, 3)).double() / 127, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(q, b, [1, 1], [1, 1], [1, 1], 1)
    torch.backends.quantized.engine = before
    levels, middle = (63, 64) if engine == "fbgemm" else (127, 128)
    scale, scale_of_result = float(x.abs().max()) / levels, float(want.abs().max()) / 127

    def call() -> Sequence[Tensor]:
        quantised = torch.quantize_per_tensor(x.float(), scale, middle, torch.quint8)
        y = torch.ops.quantized.conv2d(quantised, packed, scale_of_result, 128)
        return (y.dequantize().to(x.dtype),)

    return call
