# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (a table: one call a line where it fits)
"""Sample calls of linear_step: every feature, dtype and layout once, for tests, opcheck and the emulator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from fastdiff._case import Case

INF: Final = math.inf


def case(name: str, inputs: list[Tensor], table: Tensor, options: dict[str, Any] | None = None) -> Case:
    """One call ``linear_step(inputs, table, **options)``."""
    return Case(name, (inputs, table), options or {})


def program(rows: Sequence[Sequence[float]], bounds: Sequence[tuple[float, float]] | None = None) -> Tensor:
    """float64 table [M, K + M + 3] from rows of K + M + 1 coefficients and optional bounds per row."""
    limits = bounds if bounds is not None else [(-INF, INF)] * len(rows)
    return torch.tensor(
        [[*row, *limit] for row, limit in zip(rows, limits, strict=True)], dtype=torch.float64
    )


# CFG, epsilon -> x0, DPM-Solver++ 2M: inputs x, uncond, cond, m1; rows x0 and x'
SOLVER_STEP: Final = ([1.42, 2.02, -3.04, 0.0, 0.0, 0.0, 0.0], [0.81, 0.0, 0.0, -0.17, 0.52, 0.0, 0.0])

# The same as plans write it: d = x - sigma eps, x0 = d/alpha, dx, x' = x + dx. The CPU forms x0 and x' with d and dx.
DIFFERENCES: Final = (
    [1.0, 6.4, -7.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 0.0, 0.0, 1.42, 0.0, 0.0, 0.0, 0.0],
    [-0.12, 0.0, 0.0, -0.17, 0.0, 0.43, 0.0, 0.0, 0.0],
    [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
)

# K = 2, M = 2; the second row has noise
NOISY_STEP: Final = ([0.9, -0.3, 0.0, 0.0, 0.0], [0.5, 0.0, 0.7, 0.0, 0.8])


def build_cases(seed: int = 0) -> list[Case]:
    """All cases, the same tensors for the same seed."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        wide = torch.complex64 if dtype.is_complex else torch.float64
        return torch.randn(shape, generator=g, dtype=wide).to(dtype)

    def four(
        *shape: int, dtype: torch.dtype = torch.float32, like: Callable[[Tensor], Tensor] = lambda x: x
    ) -> list[Tensor]:
        return [like(normal(*shape, dtype=dtype)) for _ in range(4)]

    solver = program(SOLVER_STEP)
    noisy = program(NOISY_STEP)
    steps = torch.stack([solver * s for s in (0.5, 1.0, 2.0)]).nan_to_num(nan=0.0, posinf=INF, neginf=-INF)
    rng = torch.tensor([1234567890123, 5])
    both = {"dtypes": (torch.float32, torch.float32)}
    return [
        *_dtype_cases(four, normal, solver),
        *_difference_cases(four),
        *_layout_cases(four, normal, solver),
        *_size_cases(four, normal, solver),
        case("stored rows in their own dtypes", four(2, 4, 8, 8), solver, {"dtypes": (torch.bfloat16, torch.float16)}),
        case("x0 clamped", four(2, 4, 8, 8), program(SOLVER_STEP, [(-1.0, 1.0), (-INF, 0.75)]), both),
        case("unset slot is not read", [*four(2, 4, 8, 8)[:3], torch.full((2, 4, 8, 8), math.nan)],
             program([[1.4, 2.0, -3.0, 0, 0, 0, 0], [0.8, 0, 0, 0, 0.5, 0, 0]]), both),
        case("nan and inf propagate", [normal(2, 5).index_fill(1, torch.tensor([1]), math.nan),
             normal(2, 5).index_fill(1, torch.tensor([3]), INF)], program([[1.0, 0.5, 0.0, 0.0]], [(-1.0, 1.0)])),
        case("empty row", four(2, 3), program([[0.0] * 7, [0.0] * 7]), both),
        case("step from a tensor", four(2, 4, 8, 8), steps.float(), {"step": torch.tensor(2), **both}),
        case("table per sample", four(3, 4, 5, 5), torch.stack([solver, program([SOLVER_STEP[1], SOLVER_STEP[0]]), solver]), both),
        case("step and table per sample", four(2, 4, 5, 5), torch.stack([steps, steps.flip(0)], 1),
             {"step": torch.tensor([1]), **both}),
        case("noise shared", [normal(3, 4, 5, 7), normal(3, 4, 5, 7)], noisy, {"rng": rng, **both}),
        case("noise per sample", [normal(3, 4, 5, 7), normal(3, 4, 5, 7)], noisy,
             {"rng": torch.tensor([[7, 0], [8, 1], [-9, 2**40]]), **both}),
        case("noise, long rows", [normal(1, 1000), normal(1, 1000)], noisy, {"rng": rng}),
        case("noise, channels_last", [normal(2, 3, 5, 7).to(memory_format=torch.channels_last) for _ in range(2)], noisy,
             {"rng": rng, **both}),
        case("noise, step", [normal(2, 33), normal(2, 33)], torch.stack([noisy, noisy]),
             {"rng": rng, "step": torch.tensor(1)}),
        *_gate_cases(four, normal, solver, g),
        *_map_cases(normal),
        case("input shared by the batch", [normal(3, 4, 6, 6), normal(1, 4, 6, 6), normal(3, 4, 6, 6), normal(1, 4, 6, 6)],
             solver, both),
        case("first input shared", [normal(1, 4, 6), normal(3, 4, 6)], program([[1.5, -0.5, 0.0, 0.0]])),
        case("expanded input", [normal(3, 4, 6, 6), normal(1, 4, 1, 6).expand(3, 4, 6, 6)], program([[1.5, -0.5, 0.0, 0.0]])),
        case("expanded first input", [normal(3, 1, 5).expand(3, 4, 5), normal(3, 4, 5)], program([[1.5, -0.5, 0.0, 0.0]])),
        case("first input expanded over the batch", [normal(1, 3, 5).expand(4, 3, 5), normal(4, 3, 5)],
             program([[1.5, -0.5, 0.0, 0.0]])),
        case("first input with gaps", [normal(4, 3, 1, 10).transpose(1, 2)[..., ::2], normal(4, 1, 3, 5)],
             program([[1.5, -0.5, 0.0, 0.0]])),
        case("nothing left of a row", [normal(2, 5)[:, :0]], program([[1.5, 0.0, 0.0]])),
        case("noise of one 0-d sample", [normal()], program([[1.0, 0.0, 0.5]]), {"rng": torch.tensor([[4, 2]])}),
        case("noise of no samples", [normal(0, 3)], program([[1.0, 0.0, 0.5]]), {"rng": torch.zeros(0, 2, dtype=torch.int64)}),
        case("table of one 0-d sample", [normal()], program([[2.0, 0.0, 0.0]], [(-1.0, 1.0)])[None]),
        case("forty inputs, four rows", [normal(2, 37) for _ in range(40)],
             program((torch.randn(4, 45, generator=g, dtype=torch.float64) * 0.2).tolist()).index_fill(1, torch.tensor([44]), 0.0),
             {"dtypes": (torch.float32, None, torch.float32, torch.float32)}),
    ]  # fmt: skip


def _difference_cases(four: Any) -> list[Case]:
    """Rows that are only there for the next one, and others that look like it."""
    table = program(DIFFERENCES)
    clamped = program(DIFFERENCES, [(-4.0, 4.0), (-INF, INF), (-0.5, 0.5), (-2.0, 2.0)])
    twice = table.clone()
    twice[3, 4] = 0.25  # x' reads d as well
    noisy = table.clone()
    noisy[3, 8] = 0.5
    stored = {"dtypes": (None, torch.float32, None, torch.float32)}
    mixed = [
        x.to(dtype)
        for x, dtype in zip(
            four(2, 4, 9, 7), (torch.float32, torch.bfloat16, torch.bfloat16, torch.float16), strict=True
        )
    ]
    return [
        *(case(f"differences {str(dtype)[6:]}", four(2, 4, 9, 7, dtype=dtype), table, {"dtypes": (None, dtype, None, dtype)})
          for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)),
        case("differences, mixed dtypes", mixed, table, stored),
        case("differences, all rows stored", four(2, 4, 9, 7), table, {"dtypes": (torch.float32,) * 4}),
        case("differences, clamped", four(2, 4, 9, 7), clamped, stored),
        case("differences, one read twice", four(2, 4, 9, 7), twice, stored),
        case("differences, noise after", four(2, 4, 9, 7), noisy, {"rng": torch.tensor([3, 4]), **stored}),
        case("differences, one after the other", four(2, 4, 9, 7), table, {"dtypes": (None, None, None, torch.float32)}),
        case("differences of differences", four(2, 4, 9, 7),
             program([[1.0, -0.5, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1.5, 0, 0, 0, 0], [0, 0, 0.3, 0, 0, -0.7, 0, 0, 0],
                      [1.0, 0, 0, 0, 0, 0, 0.9, 0, 0]])),
        *(case(f"a difference and its reader, long, {name}", long, program(
            [[-1.0, 1, 0, 0, 0, 0, 0], [0.9, 0, 0.2, 0, 6.5, 0, 0]]), {"dtypes": (None, torch.float32)})
          for name, long in {
              "float32": four(2, 2, 45, 47),
              "mixed in the difference": [x.to(d) for x, d in zip(four(2, 2, 45, 47), (
                  torch.float32, torch.bfloat16, torch.float32, torch.float32), strict=True)],
              "mixed in the reader": [x.to(d) for x, d in zip(four(2, 2, 45, 47), (
                  torch.float32, torch.float32, torch.float16, torch.float32), strict=True)],
              "bfloat16": four(2, 2, 45, 47, dtype=torch.bfloat16)}.items()),
        case("a difference and its reader, long, a map first", four(2, 2, 45, 47), program(
            [[-1.0, 1, 0, 0, 0, 0, 0], [0.9, 0, 0.2, 0, 6.5, 0, 0]]),
             {"dtypes": (None, torch.float32), "maps": four(2, 2, 45, 47)[3][:1], "map_index": [0, *[-1] * 7]}),
        case("differences, gaps", four(2, 4, 9, 7, like=lambda x: x.repeat_interleave(2, -1)[..., ::2]), table, stored),
    ]  # fmt: skip


def _dtype_cases(four: Any, normal: Any, solver: Tensor) -> list[Case]:
    cases = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        cases.append(
            case(
                f"solver step {str(dtype)[6:]}",
                four(2, 4, 8, 8, dtype=dtype),
                solver,
                {"dtypes": (dtype, dtype)},
            )
        )
    mixed = [
        normal(2, 4, 8, 8),
        *(normal(2, 4, 8, 8, dtype=t) for t in (torch.bfloat16, torch.float16, torch.float32)),
    ]
    wide = [
        normal(2, 4, 8, 8),
        *(normal(2, 4, 8, 8, dtype=t) for t in (torch.bfloat16, torch.float64, torch.float16)),
    ]
    complex_inputs = [normal(2, 3, 9, dtype=torch.complex64) for _ in range(2)]
    quiet = program([NOISY_STEP[0], [*NOISY_STEP[1][:-1], 0.0]], [(-0.5, 0.5), (-INF, INF)])
    both = {"dtypes": (torch.complex64, torch.complex64)}
    return [
        *cases,
        case("mixed dtypes", mixed, solver, {"dtypes": (torch.float32, torch.float32)}),
        case("mixed with float64", wide, solver, {"dtypes": (torch.float64, torch.bfloat16)}),
        case("complex64", complex_inputs, quiet, both),
        case("complex64 with noise", complex_inputs, program(NOISY_STEP), {"rng": torch.tensor([3, 4]), **both}),
    ]  # fmt: skip


def _layout_cases(four: Any, normal: Any, solver: Tensor) -> list[Case]:
    both = {"dtypes": (torch.float32, torch.float32)}

    def channels_last(x: Tensor) -> Tensor:
        return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)

    def misaligned(x: Tensor) -> Tensor:
        room = torch.empty(x.numel() + 1, dtype=x.dtype)
        return room[1:].view(x.shape).copy_(x)

    wide = [normal(2, 8, 6, 6) for _ in range(4)]
    return [
        case("channels_last", four(2, 4, 6, 7, like=channels_last), solver, both),
        case("channels_last_3d", four(2, 3, 2, 4, 5, like=channels_last), solver, both),
        case("transposed", four(9, 7, like=lambda x: x.t()), solver, both),
        case("layouts differ", [channels_last(normal(2, 4, 6, 7)), *four(2, 4, 6, 7)[1:]], solver, both),
        case("half the channels of a wider prediction", [x[:, :4] for x in wide], solver, both),
        case("every second column", four(3, 70, like=lambda x: x[:, ::2]), solver, both),
        case("storage offset of one element", four(2, 129, like=misaligned), solver, both),
        case("one misaligned input", [misaligned(normal(2, 256)), *four(2, 256)[1:]], solver, both),
    ]


def _size_cases(four: Any, normal: Any, solver: Tensor) -> list[Case]:
    both = {"dtypes": (torch.float32, torch.float32)}
    shapes: list[tuple[int, ...]] = [
        (),
        (0, 4),
        (2, 0, 3),
        (1,),
        (1, 1, 1),
        (63,),
        (64,),
        (65,),
        (2, 127),
        (1, 129),
        (1, 2053),
    ]
    return [case(f"shape {list(s)}", four(*s), solver, both) for s in shapes]


def _gate_cases(four: Any, normal: Any, solver: Tensor, g: torch.Generator) -> list[Case]:
    both = {"dtypes": (torch.float32, torch.float32)}
    gate = program([[0.3, 0.0, -0.2, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.4, 0.0, -0.52, 0.0, 0.0]])[:, :-2]
    bits = torch.rand(2, 1, 6, 7, generator=g) < 0.5
    soft = torch.rand(2, 1, 6, 7, generator=g)
    only = program([[0.0, 1.0, 0.0, 0.0]])
    paste = torch.tensor([[1.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
    unset = torch.where(bits.expand(2, 4, 6, 7), normal(2, 4, 6, 7), torch.tensor(math.nan))
    return [
        case("mask", four(2, 4, 6, 7), solver, {"gate_table": gate, "mask": bits, **both}),
        case("soft mask", four(2, 4, 6, 7), solver, {"gate_table": gate, "mask": soft, **both}),
        case("bfloat16 mask, one for all", four(2, 4, 6, 7), solver,
             {"gate_table": gate, "mask": soft[:1, :, :1].bfloat16(), **both}),
        case("paste under a mask reads nothing outside it", [unset, normal(2, 4, 6, 7)], only, {"gate_table": paste, "mask": bits}),
        case("channel range", four(2, 8, 3, 5), solver, {"gate_table": gate, "channels": (0, 3), **both}),
        case("channel range, channels_last", [x.to(memory_format=torch.channels_last) for x in four(2, 8, 3, 5)], solver,
             {"gate_table": gate, "channels": (2, 5), **both}),
        case("mask in a channel range", four(2, 4, 6, 7), solver,
             {"gate_table": gate, "mask": bits, "channels": (1, 3), **both}),
        case("gate per sample", four(2, 4, 6, 7), solver,
             {"gate_table": torch.stack([gate, -gate]), "mask": bits, **both}),
        case("noise under a mask", [normal(2, 4, 6, 7), normal(2, 4, 6, 7)], program([[1.0, 0.0, 0.0, 0.0]]),
             {"gate_table": torch.tensor([[-0.5, 0.2, 0.0, 0.7]]), "mask": bits, "rng": torch.tensor([11, 0])}),
        case("complex64 under a mask", [normal(2, 4, 6, 7, dtype=torch.complex64) for _ in range(2)],
             program([[0.9, -0.3, 0.0, 0.0]]), {"gate_table": paste, "mask": soft}),
    ]  # fmt: skip


def _map_cases(normal: Any) -> list[Case]:
    both = {"dtypes": (torch.float32, torch.float32)}
    table = program([[0.9, -0.3, 0.5, 0.0, 0.0, 0.0], [0.5, 0.0, 1.5, 0.7, 0.0, 0.0]])  # K = 3, M = 2
    inputs = [normal(2, 3, 4, 5) for _ in range(3)]
    index = [0, -1, 1, -1, -1, 2]
    holes = torch.where(normal(3, 3, 4, 5) > 0, normal(3, 3, 4, 5), torch.tensor(0.0))
    return [
        case("coefficient maps", inputs, table, {"maps": normal(3, 3, 4, 5), "map_index": index, **both}),
        case("maps with zeros, bfloat16", inputs, table, {"maps": holes.bfloat16(), "map_index": index, **both}),
        case("maps by step", inputs, torch.stack([table, table]),
             {"maps": normal(2, 3, 3, 4, 5), "map_index": index, "step": torch.tensor(1), **both}),
    ]  # fmt: skip
