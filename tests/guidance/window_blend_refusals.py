# SPDX-License-Identifier: Apache-2.0
"""Calls that window_blend refuses, and how its message begins."""

from __future__ import annotations

from typing import Any

import torch
from fastdiff.guidance import window_views

SIZE = (6, 10)
BOXES = window_views(SIZE, (4, 6), (2, 4))  # 2 rows of 2
VIEWS = torch.randn(4, 2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
OUT = torch.ones(2, 3, 6, 10)


def boxes_with(n: int, *box: int) -> dict[str, Any]:
    return {"boxes": [box if i == n else b for i, b in enumerate(BOXES)]}


def inside(n: int, *box: int) -> str:
    return (
        rf"boxes\[{n}\] must be inside the image of 6 x 10 .*, got \({box[0]}, {box[1]}, {box[2]}, {box[3]}\)"
    )


FLOATS = "must be float32, float16, bfloat16 or float64"
FOUR_EACH = r"boxes must be one \(y0, y1, x0, x1\) for each of 4 views, got 12 numbers"
COVER = "boxes must cover every pixel of the image of"
ONE_VIEW = {"views": VIEWS[:1], "boxes": BOXES[:1]}
WEIGHTS = r"weights must have shape \(4\), \(4, 6\) or \(4, 4, 6\), got"

REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("integers", {"views": VIEWS.long()}, f"views {FLOATS}, got int64"),
    ("complex", {"views": VIEWS.cfloat()}, f"views {FLOATS}, got complex64"),
    ("two dimensions", {"views": VIEWS[0, 0, 0]}, r"views must have at least 3 dimensions .*, got \[4, 6\]"),
    ("no view", {"views": VIEWS[:0], "boxes": []}, r"views must be at least one view .*, got \[0, 2, 3, 4, 6\]"),
    ("an empty sequence", {"views": [], "boxes": []}, "views must be at least one view, got none"),
    ("empty views", {"views": VIEWS[..., :0]}, r"views must be .* at least one pixel, got \[4, 2, 3, 4, 0\]"),
    ("views of several sizes", {"views": [VIEWS[0], VIEWS[1, ..., :5]]},
     r"views\[1\] must be float32 \[2, 3, 4, 6\] on cpu like views\[0\], got float32 \[2, 3, 4, 5\] on cpu"),
    ("views of several dtypes", {"views": [VIEWS[0], VIEWS[1].half()]}, r"views\[1\] must be .*, got float16 \[2, 3"),
    ("no size", {"size": (0, 10)}, r"size must be \(H, W\), both in 1\.\.2\^31, got \(0, 10\)"),
    ("a huge size", {"size": (6, 2**40)}, r"size must be \(H, W\), both in 1\.\.2\^31, got \(6, 1099511627776\)"),
    ("too few boxes", {"boxes": BOXES[:3]}, FOUR_EACH),
    ("boxes of three numbers", {"boxes": [b[:3] for b in BOXES]}, FOUR_EACH),
    ("another height", boxes_with(1, 0, 3, 4, 10), r"boxes\[1\] must be 4 x 6 like its view, got \(0, 3, 4, 10\)"),
    ("another width", boxes_with(2, 2, 6, 0, 7), r"boxes\[2\] must be 4 x 6 like its view, got \(2, 6, 0, 7\)"),
    ("backwards", boxes_with(2, 6, 2, 0, 6), r"boxes\[2\] must be 4 x 6 like its view, got \(6, 2, 0, 6\)"),
    ("overflow", boxes_with(0, 2**63 - 1, -(2**63) + 3, 0, 6), r"boxes\[0\] must be inside the image"),
    ("below", boxes_with(3, 3, 7, 4, 10), inside(3, 3, 7, 4, 10)),
    ("above", boxes_with(3, -1, 3, 4, 10), inside(3, -1, 3, 4, 10)),
    ("to the right", boxes_with(3, 2, 6, 5, 11), inside(3, 2, 6, 5, 11)),
    ("to the left", boxes_with(0, 0, 4, -2, 4), inside(0, 0, 4, -2, 4)),
    ("circular, but below", boxes_with(3, 3, 7, 4, 10) | {"circular": True}, inside(3, 3, 7, 4, 10)),
    ("wider than a circle", {"size": (6, 5), "circular": True}, r"boxes\[0\] must not be wider than the image"),
    ("a hole", boxes_with(3, *BOXES[0]),
     rf"{COVER} 6 x 10, got none at 8 pixels, \(y, x\) = \(4, 6\), \(4, 7\), \(4, 8\), \.\.\."),
    ("a column", ONE_VIEW | {"size": (4, 7)}, rf"{COVER} 4 x 7, .* 4 pixels, .*\(0, 6\), \(1, 6\), \(2, 6\), \.\.\."),
    ("three pixels", ONE_VIEW | {"views": VIEWS[:1, ..., :3, :], "boxes": [(0, 3, 0, 6)], "size": (3, 7)},
     rf"{COVER} 3 x 7, got none at 3 pixels, \(y, x\) = \(0, 6\), \(1, 6\), \(2, 6\)$"),
    ("one pixel", ONE_VIEW | {"views": VIEWS[:1, ..., :1, :], "boxes": [(0, 1, 0, 6)], "size": (1, 7)},
     rf"{COVER} 1 x 7, got none at 1 pixel, \(y, x\) = \(0, 6\)$"),
    ("floating point boxes", {"boxes": torch.tensor(BOXES).float()}, r"boxes must be integers \[V, 4\], got float32"),
    ("a flat tensor of boxes", {"boxes": torch.tensor(BOXES).flatten()}, r"boxes must be integers \[V, 4\], got int64"),
    ("integer weights", {"weights": torch.ones(4).long()}, f"weights {FLOATS}, got int64"),
    ("number of weights", {"weights": torch.ones(3)}, rf"{WEIGHTS} \[3\]"),
    ("size of weights", {"weights": torch.ones(6, 4)}, rf"{WEIGHTS} \[6, 4\]"),
    ("weights of other views", {"weights": torch.ones(1, 4, 6)}, rf"{WEIGHTS} \[1, 4, 6\]"),
    ("a 0-d weight", {"weights": torch.tensor(1.0)}, rf"{WEIGHTS} \[\]"),
    ("weights elsewhere", {"weights": torch.ones(4, device="meta")}, "weights must be on cpu like views, got meta"),
    ("shape of out", {"out": torch.ones(2, 3, 6, 9)}, r"out must have shape \(2, 3, 6, 10\), got \[2, 3, 6, 9\]"),
    ("rank of out", {"out": torch.ones(3, 6, 10)}, r"out must have shape \(2, 3, 6, 10\), got \[3, 6, 10\]"),
    ("dtype of out", {"out": OUT.double()}, "out must be float32 like views, got float64"),
    ("device of out", {"out": OUT.to("meta")}, "out must be on cpu like views, got meta"),
    ("expanded out", {"out": OUT[:1].expand(2, -1, -1, -1)}, "out must not have elements that share memory"),
]  # fmt: skip
