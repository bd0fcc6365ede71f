# SPDX-License-Identifier: Apache-2.0
"""What the contract cannot know about guidance_coefficients: the latch, the degenerate cases, its refusals.

That each method is the paper's is tested on predictions, in tests/guiders.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from fastdiff import _C, guidance_coefficients, guidance_stats
from fastdiff.guidance.guidance_coefficients import METHODS, PARAMETERS
from torch import Tensor

from tests.kit.backends import simt_worker
from tests.kit.compare import assert_same_bits
from tests.kit.simt.worker import SimtWorker
from tests.kit.trees import Canary

NUMEL = 60


def stats(features: int = 2, samples: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(0)
    u, c, *rest = (torch.randn(samples, NUMEL, generator=g, dtype=torch.float64) for _ in range(features))
    return guidance_stats(u, c, rest)


def parameters(**values: float) -> Tensor:
    given = {"scale": 4.0, "threshold": 2.0, "along_prediction": 1.0} | values
    return torch.tensor([given.get(name, 0.0) for name in PARAMETERS], dtype=torch.float64)


S, P, T = stats(), parameters(), torch.zeros(2, 7)
CALL = {"method": "cfg", "numel": NUMEL, "row": 0, "targets": [0, 1]}
STEPS = {"step": torch.tensor(1)}
LATCH = torch.zeros(3, dtype=torch.uint8)

REFUSALS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("method", [S, P, T], {"method": "dpm"}, "method must be one of cfg, apg, .*, got 'dpm'"),
    ("stats dtype", [S.float(), P, T], {}, "stats must be float64, got float32"),
    ("stats rank", [S[0], P, T], {}, r"stats must have shape \[B, sums\], got \[5\]"),
    ("stats count", [S[:, :4], P, T], {}, r"stats must have 5, 9 or 14 sums per sample .*, got \[3, 4\]"),
    ("third feature", [S, P, T], {"method": "norm_balanced"},
     r"stats must have 9 or 14 sums per sample .*, got \[3, 5\]"),
    ("parameters dtype", [S, P.float(), T], {}, "parameters must be float64, got float32"),
    ("parameters shape", [S, P[:9], T], {}, r"parameters must have shape \(10\), got \[9\]"),
    ("parameters of steps", [S, P, T.expand(2, 2, 7)], STEPS, r"parameters must have shape \(2, 10\), got \[10\]"),
    ("table dtype", [S, P, T.half()], {}, "table must be float32 or float64, got float16"),
    ("table rank", [S, P, T[0]], {}, r"table must have shape \[M, C\], got \[7\]"),
    ("table of steps", [S, P, T], STEPS, r"table must have shape \[S, M, C\] \(with step\), got \[2, 7\]"),
    ("step", [S, P.expand(2, 10), T.expand(2, 2, 7)], {"step": torch.tensor(2)}, r"step must be in 0\.\.1, got 2"),
    ("step dtype", [S, P.expand(2, 10), T.expand(2, 2, 7)], {"step": torch.tensor(1.0)},
     "step must be an int64 tensor of one element, got float32"),
    ("row", [S, P, T], {"row": 2}, r"row must be in 0\.\.1, got 2"),
    ("targets", [S, P, T], {"targets": [0]}, "targets must be 2 columns, one per feature of stats, got 1"),
    ("target", [S, P, T], {"targets": [0, 7]}, r"targets\[1\] must be in 0\.\.6, got 7"),
    ("numel", [S, P, T], {"numel": 0}, "numel must be the number of elements of a sample, at least 1, got 0"),
    ("latch dtype", [S, P, T], {"latch": LATCH.float()}, "latch must be uint8, got float32"),
    ("latch shape", [S, P, T], {"latch": LATCH[:2]}, r"latch must have shape \(3\), got \[2\]"),
    ("latch of prices", [S, P, T], {"method": "black_scholes", "targets": [*range(5)], "latch": LATCH},
     "latch must be none with black_scholes"),
    ("candidates", [S.repeat(1, 2), P, T], {"method": "black_scholes"}, "stats must have 1 to 8 candidates"),
    ("count of out", [S, P, T], {"latch": LATCH}, r"out must be 2 tensors \(with latch\), got 1"),
    ("device", [S, P.to("meta"), T], {}, "every tensor must be on cpu like stats, got one on meta"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "options", "message"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS]
)
def test_refuses(inputs: list[Tensor], options: dict[str, Any], message: str) -> None:
    canary = Canary(torch.zeros(3, 2, 7))
    before = canary.tensor.clone()
    with pytest.raises(RuntimeError, match=f"^fastdiff::guidance_coefficients: {message}"):
        guidance_coefficients(*inputs, **(CALL | options), out=[canary.tensor])
    assert_same_bits([canary.tensor], [before], "something was written")


def test_refuses_results_over_inputs() -> None:
    table = torch.zeros(3, 2, 7)
    with pytest.raises(RuntimeError, match=r"out\[0\] must not share memory with table"):
        guidance_coefficients(S, P.expand(3, 10), table, **CALL, step=torch.tensor(0), out=[table])
    latch = torch.zeros(4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"out\[1\] must be exactly latch or not share memory with it"):
        guidance_coefficients(S, P, T, **CALL, latch=latch[:3], out=[torch.zeros(3, 2, 7), latch[1:]])


def test_the_kernel_checks_a_step_that_the_host_cannot_read() -> None:
    out = [torch.zeros(3, 2, 7)]
    call = {"stats": S, "parameters": P.expand(2, 10), "table": T.expand(2, 2, 7).contiguous(), "numel": NUMEL,
            "row": 0, "targets": [0, 1], "method": 0}  # fmt: skip
    simt_worker().call("guidance_coefficients", **call, step=torch.tensor(1), out=out)
    assert bool((out[0][:, 0, 1] == 3.0).all())
    assert isinstance(simt_worker(), SimtWorker)


def weights(method: str, sums: Tensor, **values: float) -> Tensor:
    """w of each sample [B, features]."""
    features = next(f for f in (2, 3, 4) if f * (f + 3) // 2 == sums.shape[1])
    table = torch.zeros(1, features, dtype=torch.float64)
    call = {"method": method, "numel": NUMEL, "row": 0, "targets": [*range(features)]}
    return guidance_coefficients(sums, parameters(**values), table, **call)[0][:, 0]


def test_what_is_added_to_c() -> None:
    assert torch.equal(weights("cfg", S), torch.tensor([[0.0, 3.0]] * 3, dtype=torch.float64))
    assert torch.equal(weights("cfg", S, from_cond=1.0), torch.tensor([[0.0, 4.0]] * 3, dtype=torch.float64))
    three = weights("cfg", stats(3), first=0.25)
    assert torch.equal(three, torch.tensor([[0.0, 3.0, 0.25]] * 3, dtype=torch.float64))


def test_rows_and_columns_are_those_asked_for() -> None:
    table = torch.arange(21.0).reshape(3, 7)
    (got,) = guidance_coefficients(S, P, table, method="cfg", numel=NUMEL, row=1, targets=[5, 2])
    want = table.clone()
    want[1, 2] += 3
    assert torch.equal(got, want.expand(3, 3, 7))


def test_the_latch() -> None:
    table = torch.ones(3, 7)
    sums = guidance_stats(*[torch.eye(3, NUMEL, dtype=torch.float64)] * 2)  # c = u: a cosine of 1
    sums[1] = S[1]
    latch = torch.zeros(3, dtype=torch.uint8)
    for threshold, want in ((1.5, [0, 0, 0]), (0.9, [1, 0, 1]), (1.5, [1, 0, 1]), (-1.0, [1, 1, 1])):
        out = [torch.empty(3, 3, 7), latch]
        guidance_coefficients(sums, parameters(threshold=threshold), table, method="cfg", numel=NUMEL, row=1,
                              targets=[0, 1], latch=latch, out=out)  # fmt: skip
        assert latch.tolist() == want
        for sample, latched in enumerate(want):
            assert bool((out[0][sample, :2] == 0).all()) == bool(latched)
            assert bool((out[0][sample, 2] == 1).all())


def test_an_unset_prediction_does_not_open_the_latch() -> None:
    latch = torch.tensor([1, 0, 0], dtype=torch.uint8)
    sums = S.clone()
    sums[0] = math.nan
    sums[1] = math.nan
    table, after = guidance_coefficients(sums, parameters(threshold=0.9), T, **CALL, latch=latch)
    assert after.tolist() == [1, 0, 0]
    assert bool((table[0] == 0).all())


def test_degenerate_predictions() -> None:
    zero = torch.zeros(2, NUMEL, dtype=torch.float64)
    one = torch.ones(2, NUMEL, dtype=torch.float64)
    same = guidance_stats(one, one)
    assert torch.equal(weights("apg", same, first=0.5, second=1.0)[:, 1], torch.tensor([3.0, 3.0]).double())
    # CFG-Zero*: u = 0 cannot be fitted, and is scaled by 0
    assert bool(weights("zero_star", guidance_stats(zero, one)).isfinite().all())
    # Guide-and-Rescale: a ratio of 1 where there is no update, a factor of 1 where there is no gradient
    for g, d, kappa in ((one, zero, 1.5), (zero, one, 1.0), (zero, zero, 1.0)):
        got = weights("norm_balanced", guidance_stats(one, one + d, [g]), first=1.5, second=1.5)
        assert torch.equal(got[:, 2], torch.full((2,), kappa).double()), (kappa, got)
    # Perp-Neg: no direction, nothing along it
    got = weights("perpendicular", guidance_stats(one, one, [zero], mix=[(1, -1, 0)]), first=1.0)
    assert torch.equal(got, torch.tensor([[0.0, 3.0, -4.0]] * 2, dtype=torch.float64))


def test_every_method_has_a_number() -> None:
    """The order is part of the schema: the native enum has the same."""
    assert METHODS.index("cfg") == 0 and METHODS.index("black_scholes") == 7
    for method in METHODS[:-1]:
        sums = stats(3)
        assert weights(method, sums, first=0.5, second=0.7).shape == (3, 3)
    assert "guidance_coefficients" in dir(_C)
