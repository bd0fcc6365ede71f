# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: E501  (a table: one refusal a line)
"""Every wrong call of linear_step, and what its message must say."""

from __future__ import annotations

from typing import Any

import torch
from fastdiff.solver.linear_step_cases import program
from torch import Tensor

F32 = torch.float32
SUM = program([[1.0, 1.0, 0.0, 0.0]])  # y = a + b
IDENTITY = program([[1.0, 0.0, 0.0]])  # y = x
NOISE = program([[0.0, 0.0, 1.0]])  # y = z
X = torch.ones(2, 3, 4)
RNG = torch.tensor([1, 2])
STEPS = torch.stack([SUM, SUM, SUM])
GATE = SUM[:, :-2]

# what is wrong, the call, what the message must say after "fastdiff::linear_step: "
REFUSALS: list[tuple[str, Any, Tensor, dict[str, Any], str]] = [
    ("no inputs", [], SUM, {}, "inputs must be 1 to 40 tensors, got 0"),
    ("too many inputs", [X] * 41, SUM, {}, "inputs must be 1 to 40 tensors, got 41"),
    ("rank of an input", [X, X[0]], SUM, {}, r"inputs\[1\] must have 3 dimensions like inputs\[0\], got shape \[3, 4\]"),
    ("shape of an input", [X, X[:, :2]], SUM, {}, r"inputs\[1\] must have shape \[2, 3, 4\].*, got \[2, 2, 4\]"),
    ("batch of an input", [X, torch.ones(3, 3, 4)], SUM, {}, r"inputs\[1\] must have shape \[2, 3, 4\].*, got \[3, 3, 4\]"),
    ("integer input", [X, X.long()], SUM, {}, r"inputs\[1\] must be float32, float16, bfloat16 or float64, got int64"),
    ("dtype without kernels", [X, X.int()], SUM, {}, r"inputs\[1\] must be float32, float16, bfloat16 or float64, got int32"),
    ("real after complex", [X.cfloat(), X], SUM, {}, r"inputs\[1\] must be complex64 like inputs\[0\], got float32"),
    ("complex after real", [X, X.cfloat()], SUM, {}, r"inputs\[1\] must be float32.*, got complex64"),
    ("sparse input", [X, X.to_sparse()], SUM, {}, r"."),
    ("too many dimensions", [torch.ones([1] * 13)], IDENTITY, {}, r"inputs\[0\] must have at most 12 dimensions, got 13"),
    ("rank of the table", [X, X], SUM[0], {}, r"table must have at least 2 dimensions"),
    ("rows of the table", [X], torch.zeros(9, 13), {}, r"table must have 1 to 8 rows \(dimension -2\), got shape \[9, 13\]"),
    ("columns of the table", [X, X], SUM[:, 1:], {}, r"table must end in \[1, 6\] = \[M, K \+ M \+ 3\] .*, got shape \[1, 5\]"),
    ("dtype of the table", [X, X], SUM.half(), {}, "table must be float32 or float64, got float16"),
    ("samples of the table", [X, X], torch.stack([SUM] * 3), {}, r"table must have 1 or 2 samples in dimension 0, got shape \[3, 1, 6\]"),
    ("steps without step", [X, X], STEPS[:, None].expand(3, 2, 1, 6), {}, r"table must have shape \[M, W\] or \[B, M, W\], got \[3, 2, 1, 6\]"),
    ("step without steps", [X, X], SUM, {"step": torch.tensor(0)}, r"table must have shape \[S, M, W\] or \[S, B, M, W\] .*got \[1, 6\]"),
    ("step past the end", [X, X], STEPS, {"step": torch.tensor(3)}, r"step must be in 0\.\.2 .*, got 3"),
    ("negative step", [X, X], STEPS, {"step": torch.tensor(-1)}, r"step must be in 0\.\.2 .*, got -1"),
    ("int32 step", [X, X], STEPS, {"step": torch.tensor(1, dtype=torch.int32)}, "step must be int64, got int32"),
    ("noise in the gate alone", [X], IDENTITY, {"gate_table": torch.tensor([[0.0, 0.0, 0.5]]), "mask": X}, "rng is needed: the noise column of gate_table"),
    ("a tensor for a list", X, SUM, {}, "inputs must be a list of tensors, got one tensor"),
    ("a tensor for out", [X, X], SUM, {"out": X.clone()}, "out must be a list of tensors, got one tensor"),
    ("table on the meta device", [X, X], SUM.to("meta"), {}, "every tensor must be on cpu like inputs.*, got one on meta"),
    ("rng on the meta device", [X], NOISE, {"rng": RNG.to("meta")}, "every tensor must be on cpu like inputs.*, got one on meta"),
    ("dtype of the step", [X, X], STEPS, {"step": torch.tensor(1.0)}, "step must be int64, got float32"),
    ("two steps", [X, X], STEPS, {"step": torch.tensor([0, 1])}, r"step must have one element, got shape \[2\]"),
    ("noise without rng", [X], NOISE, {}, "rng is needed: the noise column of table is not zero"),
    ("dtype of rng", [X], NOISE, {"rng": RNG.float()}, "rng must be int64, got float32"),
    ("shape of rng", [X], NOISE, {"rng": torch.tensor([1, 2, 3])}, r"rng must be \(seed, offset\) .*, got shape \[3\]"),
    ("rng of another batch", [X], NOISE, {"rng": torch.ones(3, 2).long()}, r"rng must be .*\[2, 2\] per sample.*, got shape \[3, 2\]"),
    ("mask without gate_table", [X, X], SUM, {"mask": X > 0}, "gate_table is needed with mask, got none"),
    ("channels without gate_table", [X, X], SUM, {"channels": (0, 1)}, "gate_table is needed with channels, got none"),
    ("gate_table alone", [X, X], SUM, {"gate_table": GATE}, "mask or channels is needed with gate_table, got neither"),
    ("columns of gate_table", [X, X], SUM, {"gate_table": SUM, "mask": X > 0}, r"gate_table must end in \[1, 4\] = \[M, K \+ M \+ 1\]"),
    ("steps of gate_table", [X, X], STEPS, {"step": torch.tensor(0), "gate_table": torch.stack([GATE] * 2), "mask": X > 0},
     r"gate_table must have as many steps as table \(3\)"),
    ("shape of the mask", [X, X], SUM, {"gate_table": GATE, "mask": torch.ones(2, 3, 5)}, r"mask must broadcast to \[2, 3, 4\]"),
    ("rank of the mask", [X, X], SUM, {"gate_table": GATE, "mask": torch.ones(4)}, r"mask must broadcast to .* \(same rank\), got shape \[4\]"),
    ("dtype of the mask", [X, X], SUM, {"gate_table": GATE, "mask": X.long()}, "mask must be bool, uint8 or a real float, got int64"),
    ("channels out of range", [X, X], SUM, {"gate_table": GATE, "channels": (1, 4)}, r"channels must be .*<= 3, got \(1, 4\)"),
    ("channels reversed", [X, X], SUM, {"gate_table": GATE, "channels": (2, 1)}, r"channels must be .*, got \(2, 1\)"),
    ("one channel number", [X, X], SUM, {"gate_table": GATE, "channels": (2,)}, r"channels must be .*, got \(2\)"),
    ("no channels to range over", [X[0, 0]] * 2, SUM, {"gate_table": GATE, "channels": (0, 1)}, "channels needs inputs of at least 2 dimensions"),
    ("map_index without maps", [X, X], SUM, {"map_index": [0, -1]}, "maps is needed with map_index, got none"),
    ("shape of maps", [X, X], SUM, {"maps": torch.ones(1, 3, 5), "map_index": [0, -1]}, r"maps must have shape \[P, \*sample\]"),
    ("length of map_index", [X, X], SUM, {"maps": torch.ones(1, 3, 4), "map_index": [0]}, r"map_index must have M \* K = 2 entries, got 1"),
    ("map_index out of range", [X, X], SUM, {"maps": torch.ones(1, 3, 4), "map_index": [0, 1]}, r"map_index\[1\] must be -1 or below 1, got 1"),
    ("dtype of maps", [X, X], SUM, {"maps": torch.ones(1, 3, 4).long(), "map_index": [0, -1]}, "maps must be a real float, got int64"),
    ("length of dtypes", [X, X], SUM, {"dtypes": [F32, F32]}, "store must have M = 1 entries, got 2"),
    ("nothing stored", [X, X], SUM, {"dtypes": [None]}, "store must store at least one row, got none"),
    ("integer row", [X, X], SUM, {"dtypes": [torch.int64]}, "dtypes must be among"),
    ("complex row of real inputs", [X, X], SUM, {"dtypes": [torch.complex64]}, r"store\[0\] must be float32.*, got complex64"),
    ("real row of complex inputs", [X.cfloat()] * 2, SUM, {"dtypes": [F32]}, r"store\[0\] must be complex64"),
    ("shape of out", [X, X], SUM, {"out": [torch.ones(2, 3, 5)]}, r"out\[0\] must have shape \[2, 3, 4\], got \[2, 3, 5\]"),
    ("dtype of out", [X, X], SUM, {"out": [X.double()], "dtypes": [F32]}, r"out\[0\] must be float32 as in store, got float64"),
    ("count of out", [X, X], SUM, {"out": [X.clone(), X.clone()], "dtypes": [F32]}, r"out must have 1 tensors, one per stored row, got 2"),
    ("expanded out", [X, X], SUM, {"out": [torch.ones(1, 3, 4).expand(2, 3, 4)]}, r"out\[0\] must not have elements that share memory"),
]  # fmt: skip
