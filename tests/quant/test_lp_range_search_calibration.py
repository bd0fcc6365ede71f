# SPDX-License-Identifier: Apache-2.0
"""Calibration beside lp_range_search: moving ranges, timesteps, changes of a model without effect, a run's tables."""

from __future__ import annotations

import copy

import pytest
import torch
from fastdiff.quant import (
    Collector,
    EmaRange,
    affine_parameters,
    fold_scale,
    migrate,
    sample_timesteps,
    smoothquant_scales,
)
from torch import Tensor, nn


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("lowest", "highest", "scale", "zero_point"),
    [
        (-1.0, 1.55, 0.01, 100 - 128),
        (0.5, 2.55, 0.01, -128),
        (-2.55, -1.0, 0.01, 127),
        (-1.0, 1.0, 2 / 255, 0),  # round(127.5) is even
        (0.0, 0.0, 1e-8, -128),
    ],
)
def test_affine_parameters(lowest: float, highest: float, scale: float, zero_point: int) -> None:
    got = affine_parameters(torch.tensor(lowest), torch.tensor(highest))
    assert (float(got[0]), int(got[1])) == (pytest.approx(scale), zero_point)
    assert [t.dtype for t in got] == [torch.float32, torch.int32]


def test_quantised_numbers_reach_both_ends_of_the_range() -> None:
    x = torch.linspace(-0.7, 1.9, 1000)
    scale, zero_point = affine_parameters(*x.aminmax())
    q = (x / scale).round().add(zero_point).clamp(-128, 127)
    assert (int(q.min()), int(q.max())) == (-128, 127)
    assert float((x - (q - zero_point) * scale).abs().max()) <= float(scale) * 0.51
    peer = torch.fake_quantize_per_tensor_affine(x, scale, zero_point + 128, 0, 255)
    torch.testing.assert_close((q - zero_point) * scale, peer)


def test_ema_range() -> None:
    r = EmaRange()
    with pytest.raises(RuntimeError, match="there was no batch"):
        r.parameters()
    r.update(torch.tensor([-1.0, 3.0]))
    r.update(torch.tensor([-2.0, 1.0]))
    assert (float(r.lowest), float(r.highest)) == (pytest.approx(-1.1), pytest.approx(2.8))
    assert float(r.parameters()[0]) == pytest.approx(3.9 / 255)


def test_sample_timesteps() -> None:
    g = torch.Generator().manual_seed(0)
    t = sample_timesteps(20000, 1000, generator=g)
    assert (int(t.min()), int(t.max()), t.dtype) == (0, 999, torch.int64)
    # A normal distribution with its tails at the ends: 16 % below 0, 6.7 % above 1.
    assert float((t == 0).double().mean()) == pytest.approx(0.159, abs=0.01)
    assert float((t == 999).double().mean()) == pytest.approx(0.067, abs=0.01)
    assert float(t.double().median()) == pytest.approx(400, abs=15)
    u = sample_timesteps(20000, 10, mode="uniform", generator=g)
    assert torch.bincount(u, minlength=10).tolist() == pytest.approx([2000] * 10, rel=0.1)
    with pytest.raises(ValueError, match="mode must be"):
        sample_timesteps(1, 10, mode="other")


@pytest.mark.parametrize("before", ["norm", "linear"])
def test_migration_leaves_the_results(before: str) -> None:
    first = nn.LayerNorm(12) if before == "norm" else nn.Linear(5, 12)
    readers = [nn.Linear(12, 7), nn.Linear(12, 3)]
    nn.init.normal_(first.weight)
    x = normal(40, first.weight.shape[-1])
    hidden = first(x).detach()
    want = [reader(hidden) for reader in readers]
    absmax = hidden.abs().amax(0) * torch.arange(12)  # as if channels differed
    scales = smoothquant_scales(absmax, [r.weight.detach() for r in readers])
    assert float(scales[0]) == 1  # a channel that is 0 stays
    weights = torch.cat([r.weight for r in readers]).abs().amax(0)
    migrate(first, readers, scales)
    for got, w in zip((reader(first(x)) for reader in readers), want, strict=True):
        torch.testing.assert_close(got, w, rtol=1e-4, atol=1e-4)
    # With alpha = 1/2 activations and weights have the same maxima afterwards.
    torch.testing.assert_close((absmax / scales)[1:], (weights * scales)[1:])


@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Linear(5, 4, bias=False), nn.Conv2d(5, 4, 3)], ids=str)
def test_folded_scales(layer: nn.Linear | nn.Conv2d) -> None:
    x, gamma = normal(2, 5, 5, 5), normal(4, seed=1)
    want = layer(x) * (gamma if isinstance(layer, nn.Linear) else gamma[:, None, None])
    folded = copy.deepcopy(layer)
    fold_scale(folded, gamma)
    torch.testing.assert_close(folded(x), want)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor, timestep: Tensor | int) -> Tensor:
        return self.linear(self.conv(x).movedim(1, -1))


def test_collector() -> None:
    model, batches = Network(), [normal(2, 3, 4, 4, seed=n) * (n + 1) for n in range(3)]
    with Collector(model, per_timestep=True) as collector, torch.no_grad():
        for t, x in zip((900, 500, 100), batches, strict=True):
            collector.at(torch.tensor(t))
            model(x, t)
    model(batches[0] * 100, 0)  # is not watched any more
    assert sorted(collector.absmax) == ["conv", "linear"]
    torch.testing.assert_close(collector.absmax["conv"], torch.cat(batches).abs().amax((0, 2, 3)))
    assert collector.absmax["linear"].shape == (4,)
    timesteps, scale, zero_point = collector.table("conv")
    assert timesteps.tolist() == [900, 500, 100]
    want = [affine_parameters(*x.aminmax()) for x in batches]
    assert scale.tolist() == [float(s) for s, _ in want]
    assert zero_point.tolist() == [int(z) for _, z in want]
    ema = EmaRange()
    for x in batches:
        ema.update(x)
    assert [float(t) for t in collector.ranges["conv"].parameters()] == [float(t) for t in ema.parameters()]


@pytest.mark.parametrize("argument", [1, "timestep"])
def test_collector_reads_the_timestep(argument: int | str) -> None:
    model, x = Network(), normal(2, 3, 4, 4)
    chosen = Collector(model, lambda name, _: name == "linear", timestep=argument, per_timestep=True)
    with chosen:
        for t in (7, 7, 3):
            step = torch.full((2,), t)
            model(x, step) if argument == 1 else model(x, timestep=step)
    assert chosen.table("linear").timesteps.tolist() == [7, 3]
    assert sorted(chosen.ranges) == ["linear"]


def test_collector_needs_the_timestep() -> None:
    model = Network()
    with Collector(model, per_timestep=True), pytest.raises(RuntimeError, match="call at"):
        model(normal(2, 3, 4, 4), 0)
