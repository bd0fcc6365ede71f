# SPDX-License-Identifier: Apache-2.0
"""What dwt, wavedec and the lists of wavelets and modes refuse, in which words; nothing is written then."""

from __future__ import annotations

import re
from typing import Any

import pytest
import pywt
import torch
from fastdiff.wavelet import dwt, idwt, wavedec
from fastdiff.wavelet._filters import MODES, filter_bank

from tests.kit.compare import assert_same_bits
from tests.kit.trees import Canary
from tests.wavelet.dwt_oracle import FLOATS, normal

X = normal(2, 3, 8, 10, dtype=torch.float32)
OUT = torch.ones(2, 3, 4, 5, 6)  # db2's bands of 8 and 10
TAPS = filter_bank("db2").analysis_taps
GRID = r"grid must be 2 sizes of at least the bands' \(5, 6\), got"
SCALE = r"scale must broadcast to \[2, 3, 4\], got"
TAPS_ARE = "taps must be two filters of one even length from 2 to 112, got"

REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("no taps", {"taps": []}, f"{TAPS_ARE} 0 numbers"),
    ("one tap each", {"taps": [1.0, 1.0]}, f"{TAPS_ARE} 2 numbers"),
    ("an odd number", {"taps": TAPS[:7]}, f"{TAPS_ARE} 7 numbers"),
    ("an odd length", {"taps": TAPS[:6]}, f"{TAPS_ARE} 6 numbers"),
    ("114 taps", {"taps": [1.0] * 228}, f"{TAPS_ARE} 228 numbers"),
    ("a NaN among them", {"taps": [*TAPS[:7], float("nan")]}, "taps must be finite, got -?nan"),
    ("an infinity among them", {"taps": [float("inf"), *TAPS[1:]]}, "taps must be finite, got inf"),
    ("no dimension", {"ndim": 0}, "ndim must be 1, 2 or 3, got 0"),
    ("four dimensions", {"ndim": 4}, "ndim must be 1, 2 or 3, got 4"),
    ("minus one", {"ndim": -1}, "ndim must be 1, 2 or 3, got -1"),
    ("no such edge", {"edge": 10}, "edge must be 0 to 9, got 10"),
    ("a negative edge", {"edge": -1}, "edge must be 0 to 9, got -1"),
    ("integers", {"x": X.int()}, f"x {FLOATS}, got int32"),
    ("complex", {"x": X.cfloat()}, f"x {FLOATS}, got complex64"),
    ("too few dimensions", {"x": X[0, 0, 0]}, r"x must have 2 to 11 dimensions, got \[10\]"),
    ("too many", {"x": X.view(*(1,) * 8, 2, 3, 8, 10)},
     r"x must have 2 to 11 dimensions, got \[(1, ){8}2, 3, 8, 10\]"),
    ("no rows", {"x": X[..., :0, :]},
     r"x must have at least one sample in each transformed dimension, got \[2, 3, 0, 10\]"),
    ("no columns", {"x": X[..., :0]},
     r"x must have at least one sample in each transformed dimension, got \[2, 3, 8, 0\]"),
    ("no grid", {"grid": []}, rf"{GRID} \(\)"),
    ("a grid of one", {"grid": [8]}, rf"{GRID} \(8\)"),
    ("a grid of three", {"grid": [8, 8, 8]}, rf"{GRID} \(8, 8, 8\)"),
    ("too small a grid", {"grid": [5, 5]}, rf"{GRID} \(5, 5\)"),
    ("a negative grid", {"grid": [-5, 6]}, rf"{GRID} \(-5, 6\)"),
    ("three bands' scales", {"scale": torch.ones(3)}, rf"{SCALE} \[3\]"),
    ("two channels' scales", {"scale": torch.ones(2, 4)}, rf"{SCALE} \[2, 4\]"),
    ("more dimensions of scales", {"scale": torch.ones(1, 2, 3, 4)}, rf"{SCALE} \[1, 2, 3, 4\]"),
    ("an empty scale", {"scale": torch.ones(0)}, rf"{SCALE} \[0\]"),
    ("integer scales", {"scale": torch.ones(4).long()}, f"scale {FLOATS}, got int64"),
    ("scales on meta", {"scale": torch.ones(4, device="meta")}, "scale must be on cpu like x, got meta"),
    ("a result of another dtype", {"result": OUT.half()}, "out must be float32 like x, got float16"),
    ("a result of one plane", {"result": OUT[0]},
     r"out must have shape \[2, 3, 4, 5, 6\], got \[3, 4, 5, 6\]"),
    ("a result of another size", {"result": OUT[..., :5]},
     r"out must have shape \[2, 3, 4, 5, 6\], got \[2, 3, 4, 5, 5\]"),
    ("a result without its grid", {"grid": [8, 8]},
     r"out must have shape \[2, 3, 4, 8, 8\], got \[2, 3, 4, 5, 6\]"),
    ("a result on meta", {"result": OUT.to("meta")}, "out must be on cpu like x, got meta"),
    ("an expanded result", {"result": OUT[:1].expand(2, 3, 4, 5, 6)},
     r"out must not have elements that share memory \(expanded\?\)"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_refuses(options: dict[str, Any], message: str, mode: Any) -> None:
    """By the operator that writes into a tensor and, if the result is not what is wrong, by the other one."""
    canary = Canary(OUT)
    before = canary.tensor.clone()
    arguments = {"x": X, "taps": TAPS, "ndim": 2, "edge": 0, "result": canary.tensor} | options
    with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::dwt: {message}(\n|$)"):
        torch.ops.fastdiff.dwt.out(**arguments)
    assert_same_bits([canary.tensor], [before], "something was written")
    assert canary.is_alive()
    if not message.startswith("out "):
        del arguments["result"]
        with mode(), pytest.raises(RuntimeError, match=f"^fastdiff::dwt: {message}(\n|$)"):
            torch.ops.fastdiff.dwt.default(**arguments)


def test_the_same_call_is_right_otherwise() -> None:
    out = OUT.clone()
    torch.ops.fastdiff.dwt.out(X, TAPS, 2, 0, result=out)
    assert_same_bits([out], [dwt(X, "db2", ndim=2)])


def test_refuses_memory_in_common() -> None:
    room = torch.zeros(2000)
    x, out = room[:480].view(X.shape), room[470 : 470 + OUT.numel()].view(OUT.shape)
    with pytest.raises(RuntimeError, match=r"^fastdiff::dwt: out must not share memory with x"):
        dwt(x, "db2", ndim=2, out=out)
    with pytest.raises(RuntimeError, match=r"^fastdiff::dwt: out must not share memory with scale"):
        dwt(X, "db2", ndim=2, scale=out.flatten()[-4:], out=out)
    assert not bool(room.any())


def test_a_meta_tensor_has_a_meta_result() -> None:
    assert dwt(X.to("meta"), "db2", ndim=2).shape == OUT.shape
    with pytest.raises(RuntimeError, match="scale must be on meta like x, got cpu"):
        dwt(X.to("meta"), "db2", ndim=2, scale=torch.ones(4))


# ---- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["db0", "morl", "Haar", "", "haar "])
def test_unknown_wavelet(name: str) -> None:
    message = rf"wavelet must be the name of a discrete wavelet as in pywt\.wavelist\(kind='discrete'\), got '{name}'"
    for call in (lambda: dwt(X, name, ndim=2), lambda: idwt(OUT, name, ndim=2)):
        with pytest.raises(ValueError, match=f"^fastdiff: {message}$"):
            call()


@pytest.mark.parametrize("mode", ["Zero", "per", "circular", ""])
def test_unknown_mode(mode: str) -> None:
    message = re.escape(f"fastdiff: mode must be one of {', '.join(MODES)}, got '{mode}'")
    for call in (lambda: dwt(X, "haar", ndim=2, mode=mode), lambda: idwt(OUT, "haar", ndim=2, mode=mode)):
        with pytest.raises(ValueError, match=f"^{message}$"):
            call()


@pytest.mark.parametrize(
    ("filters", "lengths"),
    [
        ([[1.0] * 3] * 4, "[3, 3, 3, 3]"),
        ([[1.0] * 2, [1.0] * 4, [1.0] * 2, [1.0] * 2], "[2, 4, 2, 2]"),
        ([[1.0] * 2] * 3, "[2, 2, 2]"),
        ([[1.0] * 2] * 5, "[2, 2, 2, 2, 2]"),
        ([], "[]"),
    ],
    ids=["odd", "unequal", "three", "five", "none"],
)
def test_wrong_filters(filters: list[list[float]], lengths: str) -> None:
    message = (
        "fastdiff: wavelet must have four filters (dec_lo, dec_hi, rec_lo, rec_hi) of one even length, "
        f"got lengths {lengths}"
    )
    for call in (lambda: dwt(X, filters, ndim=2), lambda: idwt(OUT, filters, ndim=2)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


def test_filters_of_no_tap() -> None:
    with pytest.raises(RuntimeError, match=f"^fastdiff::dwt: {TAPS_ARE} 0 numbers"):
        dwt(X, [[]] * 4, ndim=2)


@pytest.mark.parametrize("level", [-1, -7])
def test_wrong_level(level: int) -> None:
    with pytest.raises(ValueError, match=f"^fastdiff: level must be 0 or more, got {level}$"):
        wavedec(X, "haar", ndim=2, level=level)


def test_continuous_wavelets_are_not_in_the_list() -> None:
    for name in pywt.wavelist(kind="continuous"):
        with pytest.raises(ValueError, match="wavelet must be the name of a discrete wavelet"):
            filter_bank(name)
