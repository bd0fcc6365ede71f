# SPDX-License-Identifier: Apache-2.0
"""What idwt and waverec refuse, in which words; nothing is written then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fastdiff.wavelet import idwt, wavedec, waverec
from fastdiff.wavelet._filters import filter_bank

from tests.kit.compare import assert_same_bits
from tests.kit.trees import Canary
from tests.wavelet.dwt_oracle import FLOATS, normal

Y = normal(2, 3, 4, 5, 6, dtype=torch.float32)
LOW, DETAILS = Y[:, :, 0], Y[:, :, 1:]
OUT = torch.ones(2, 3, 8, 10)  # db2's signals of 5 and 6 coefficients
TAPS = filter_bank("db2").synthesis_taps
TAPS_ARE = "taps must be two filters of one even length from 2 to 112, got"
SIZE = "size must be 2 sizes of at least 1, got"
BANDS = r"must have at least \(\d, \d\) coefficients in its last dimensions for size"
SCALE, THRESHOLD = (rf"{name} must broadcast to \[2, 3, 4\], got" for name in ("scale", "threshold"))
ALIKE = r"approximation must have the dimensions of y without that of the bands, \[2, 3, 3, 5, 6\], got"
APART = {"y": DETAILS, "approximation": LOW}

REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("no taps", {"taps": []}, f"{TAPS_ARE} 0 numbers"),
    ("an odd length", {"taps": TAPS[:6]}, f"{TAPS_ARE} 6 numbers"),
    ("114 taps", {"taps": [1.0] * 228}, f"{TAPS_ARE} 228 numbers"),
    ("a NaN among them", {"taps": [*TAPS[:7], float("nan")]}, "taps must be finite, got -?nan"),
    ("no dimension", {"ndim": 0}, "ndim must be 1, 2 or 3, got 0"),
    ("four dimensions", {"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
    ("no such edge", {"edge": 10}, "edge must be 0 to 9, got 10"),
    ("a negative edge", {"edge": -1}, "edge must be 0 to 9, got -1"),
    ("integers", {"y": Y.int()}, f"y {FLOATS}, got int32"),
    ("complex", {"y": Y.cfloat()}, f"y {FLOATS}, got complex64"),
    ("too few dimensions", {"y": Y[0, 0, 0]},
     r"y must have 4 bands in the dimension before the last 2, got \[5, 6\]"),
    ("three bands", {"y": DETAILS},
     r"y must have 4 bands in the dimension before the last 2, got \[2, 3, 3, 5, 6\]"),
    ("four bands and one more", {"approximation": LOW},
     r"y must have 3 bands in the dimension before the last 2, got \[2, 3, 4, 5, 6\]"),
    ("one size", {"size": [8]}, rf"{SIZE} \(8\)"),
    ("three sizes", {"size": [2, 8, 10]}, rf"{SIZE} \(2, 8, 10\)"),
    ("no samples", {"size": [0, 10]}, rf"{SIZE} \(0, 10\)"),
    ("fewer", {"size": [8, -1]}, rf"{SIZE} \(8, -1\)"),
    ("too large a size", {"size": [8, 11]}, rf"y {BANDS} \(8, 11\), got \[2, 3, 4, 5, 6\]"),
    ("too large in the other", {"size": [9, 10]}, rf"y {BANDS} \(9, 10\), got \[2, 3, 4, 5, 6\]"),
    ("an approximation of another dtype", APART | {"approximation": LOW.double()},
     "approximation must be float32 like y, got float64"),
    ("an integer approximation", APART | {"approximation": LOW.long()}, f"approximation {FLOATS}, got int64"),
    ("an approximation of one plane", APART | {"approximation": LOW[0]}, rf"{ALIKE} \[3, 5, 6\]"),
    ("an approximation with its band", APART | {"approximation": Y[:, :, :1]}, rf"{ALIKE} \[2, 3, 1, 5, 6\]"),
    ("an approximation of one channel", APART | {"approximation": LOW[:, :1]}, rf"{ALIKE} \[2, 1, 5, 6\]"),
    ("too small an approximation", APART | {"approximation": LOW[..., :5]},
     rf"approximation {BANDS} \(8, 10\), got \[2, 3, 5, 5\]"),
    ("an approximation on meta", APART | {"approximation": LOW.to("meta")},
     "approximation must be on cpu like y, got meta"),
    ("three bands' scales", {"scale": torch.ones(3)}, rf"{SCALE} \[3\]"),
    ("two channels' scales", {"scale": torch.ones(2, 4)}, rf"{SCALE} \[2, 4\]"),
    ("integer scales", {"scale": torch.ones(4).long()}, f"scale {FLOATS}, got int64"),
    ("scales on meta", {"scale": torch.ones(4, device="meta")}, "scale must be on cpu like y, got meta"),
    ("three bands' thresholds", {"threshold": torch.ones(3)}, rf"{THRESHOLD} \[3\]"),
    ("thresholds per sample", {"threshold": torch.ones(5, 6)}, rf"{THRESHOLD} \[5, 6\]"),
    ("as many as there are details", APART | {"threshold": torch.ones(3)}, rf"{THRESHOLD} \[3\]"),
    ("integer thresholds", {"threshold": torch.ones(4).int()}, f"threshold {FLOATS}, got int32"),
    ("thresholds on meta", {"threshold": torch.ones(4, device="meta")},
     "threshold must be on cpu like y, got meta"),
    ("a result of another dtype", {"result": OUT.half()}, "out must be float32 like y, got float16"),
    ("a result of one plane", {"result": OUT[0]}, r"out must have shape \[2, 3, 8, 10\], got \[3, 8, 10\]"),
    ("a result of another size", {"size": [7, 10]},
     r"out must have shape \[2, 3, 7, 10\], got \[2, 3, 8, 10\]"),
    ("a result on meta", {"result": OUT.to("meta")}, "out must be on cpu like y, got meta"),
    ("an expanded result", {"result": OUT[:1].expand(2, 3, 8, 10)},
     r"out must not have elements that share memory \(expanded\?\)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(options: dict[str, Any], message: str, mode: Any) -> None:
    canary = Canary(OUT)
    before = canary.tensor.clone()
    arguments = {
        "y": Y,
        "taps": TAPS,
        "ndim": 2,
        "edge": 0,
        "size": [8, 10],
        "result": canary.tensor,
    } | options
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::idwt: {message}(\n|$)"):
        torch.ops.fastdiff.idwt.out(**arguments)
    assert_same_bits([canary.tensor], [before], "something was written")
    assert canary.is_alive()
    if not message.startswith("out "):
        del arguments["result"]
        with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::idwt: {message}(\n|$)"):
            torch.ops.fastdiff.idwt.default(**arguments)


def test_the_same_call_is_right_otherwise() -> None:
    for given in ({"y": Y}, APART):
        out = OUT.clone()
        torch.ops.fastdiff.idwt.out(**given, taps=TAPS, ndim=2, edge=0, size=[8, 10], result=out)
        assert_same_bits([out], [idwt(Y, "db2", ndim=2)])


@pytest.mark.parametrize("name", ["y", "scale", "threshold", "approximation"])
def test_refuses_memory_in_common(name: str) -> None:
    room = torch.zeros(2000)
    out = room[: OUT.numel()].view(OUT.shape)
    inside = {
        "y": room[400 : 400 + DETAILS.numel()].view(DETAILS.shape),
        "scale": room[476:480],
        "threshold": room[:4],
        "approximation": room[300 : 300 + LOW.numel()].view(LOW.shape),
    }
    arguments: dict[str, Any] = APART | {name: inside[name]}
    with pytest.raises(RuntimeError, match=f"^fastdiff::idwt: out must not share memory with {name}"):
        idwt(arguments.pop("y"), "db2", ndim=2, **arguments, out=out)
    assert not bool(room.any())


def test_unknown_shrink() -> None:
    for shrink in ("Soft", "garrote", ""):
        with pytest.raises(
            ValueError, match=rf"^fastdiff: shrink must be one of soft, hard, got '{shrink}'$"
        ):
            idwt(Y, "db2", ndim=2, threshold=torch.ones(4), shrink=shrink)


def test_too_few_coefficients_for_any_signal() -> None:
    with pytest.raises(
        RuntimeError, match=r"^fastdiff::idwt: size must be 1 sizes of at least 1, got \(-2\)"
    ):
        idwt(normal(2, 2), "db4", ndim=1)


# ---- waverec ---------------------------------------------------------------------------------------------------


def test_one_threshold_for_each_level() -> None:
    coefficients = wavedec(OUT, "haar", ndim=2, level=2)
    for count in (0, 1, 3):
        message = f"^fastdiff: threshold must be one for each of 2 levels, got {count}$"
        with pytest.raises(ValueError, match=message):
            waverec(coefficients, "haar", ndim=2, threshold=[torch.ones(3)] * count)


def test_thresholds_of_another_number_of_bands() -> None:
    coefficients = wavedec(OUT, "haar", ndim=2, level=2)
    with pytest.raises(
        RuntimeError, match=r"^fastdiff::idwt: threshold must broadcast to \[2, 3, 4\], got \[5\]"
    ):
        waverec(coefficients, "haar", ndim=2, threshold=torch.ones(4))


def test_levels_that_do_not_fit() -> None:
    low, coarse, fine = wavedec(OUT, "haar", ndim=2, level=2)
    message = (
        r"^fastdiff: details of a level must have \[{}\] coefficients for the \[{}\] of the next, got \[{}\]$"
    )
    with pytest.raises(ValueError, match=message.format("2, 3", "4, 5", "2, 2")):
        waverec([low, coarse[..., :2], fine], "haar", ndim=2)
    with pytest.raises(ValueError, match=message.format("5, 5", "9, 10", "4, 5")):
        waverec([low, coarse, fine], "haar", ndim=2, size=(9, 10))
    with pytest.raises(
        RuntimeError, match=r"^fastdiff::idwt: approximation must have at least \(2, 3\) coefficients"
    ):
        waverec([low[..., :2], coarse, fine], "haar", ndim=2)
