# SPDX-License-Identifier: Apache-2.0
"""quantize_(): which layers, what they become, ranges from calibration, and files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fastdiff.cli.digits import load_digits_denoiser
from fastdiff.quant import (
    Collector,
    QuantConfig,
    QuantConv2d,
    QuantLinear,
    load_quantized_,
    quantize_,
    save_quantized,
    set_timestep,
)
from torch import Tensor, nn

from tests.kit.compare import assert_same_bits


class Block(nn.Module):
    """A norm, what reads it, a convolution, and an output that should stay as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 64, 3, padding=1, stride=2)
        self.norm = nn.LayerNorm(64)
        self.up = nn.Linear(64, 256)
        self.down = nn.Linear(256, 64, bias=False)
        self.out = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).flatten(2).transpose(1, 2)
        y: Tensor = self.out(h + self.down(nn.functional.gelu(self.up(self.norm(h)))))
        return y


def block() -> Block:
    torch.manual_seed(0)
    return Block().eval().requires_grad_(False)


X = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))


def calibration(model: nn.Module) -> Any:
    def run(collector: Collector) -> None:
        for t in (900, 500, 100):
            collector.at(t)
            model(X * (1 + t / 1000))

    return run


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize(
    ("config", "limit", "layers"),
    [
        (QuantConfig(), 0.02, 4),
        (QuantConfig(bits=7), 0.03, 4),
        (QuantConfig(symmetric=False), 0.02, 4),
        (QuantConfig(scheme="int8_weight"), 0.01, 3),
        (QuantConfig(scheme="int4", group=32), 0.15, 3),
        (QuantConfig(scheme="bf16"), 0.005, 3),
        (QuantConfig(activations="static"), 0.04, 4),
        (QuantConfig(activations="static", bits=7), 0.06, 4),
        (QuantConfig(activations="timestep"), 0.03, 4),
        (QuantConfig(smooth={"norm": ("up",)}), 0.02, 4),
    ],
    ids=str,
)
def test_a_model_gives_nearly_the_same(config: QuantConfig, limit: float, layers: int) -> None:
    model = block()
    want = model(X)
    reports = quantize_(model, config, calibration(model), progress=False)
    set_timestep(model, 0)
    assert error(model(X), want) < limit
    assert len(reports) == layers
    assert all(report.output_error is not None and report.output_error < limit for report in reports)
    assert all(report.nbytes < 0.6 * report.before for report in reports)


def test_names_and_conditions_choose() -> None:
    model = block()
    config = QuantConfig(skip=("o*", "up"), only=lambda _, m: isinstance(m, nn.Linear))
    assert [report.name for report in quantize_(model, config, progress=False)] == ["down"]
    assert isinstance(model.down, QuantLinear)
    assert type(model.up) is nn.Linear


def test_ranges_of_a_timestep_are_those_that_were_seen() -> None:
    model = block()
    with Collector(model, per_timestep=True) as collector:
        calibration(model)(collector)
    table = collector.table("up")
    quantize_(model, QuantConfig(activations="timestep"), calibration(model), progress=False)
    for n, timestep in enumerate((901, 480, 0)):
        set_timestep(model, timestep)
        got = [model.up.ranges()[key] for key in ("x_scale", "x_zero_point")]
        assert_same_bits(got, [table.scale[n : n + 1], table.zero_point[n : n + 1]])
    assert model.up.step is model.conv.step


@pytest.mark.parametrize("activations", ["dynamic", "static", "timestep"])
def test_a_file_gives_the_same_model(activations: str, tmp_path: Path) -> None:
    model, again = block(), block()
    quantize_(model, QuantConfig(activations=activations, skip=("out",)), calibration(model), progress=False)
    save_quantized(model, tmp_path / "model.safetensors")
    load_quantized_(again, tmp_path / "model.safetensors")
    set_timestep(model, 500)
    set_timestep(again, 500)
    assert_same_bits([again(X)], [model(X)])
    assert isinstance(again.conv, QuantConv2d)


def test_scales_stay_float32_when_a_model_is_converted() -> None:
    model = block()
    want = model(X)
    quantize_(model, QuantConfig(activations="static"), calibration(model), progress=False)
    model.to(torch.bfloat16)
    assert model.up.scale.dtype == model.up.x_scale.dtype == torch.float32
    assert model.up.bias.dtype == torch.bfloat16
    assert error(model(X.bfloat16()).float(), want) < 0.05


def test_compiles_to_one_graph_for_all_timesteps() -> None:
    model = block()
    quantize_(model, QuantConfig(activations="timestep"), calibration(model), progress=False)
    count = 0

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal count
        count += 1
        return graph

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for timestep in (900, 500, 100):
        set_timestep(model, timestep)
        assert_same_bits([compiled(X)], [model(X)])
    assert count == 1


def test_samples_of_a_trained_model_stay_what_they_are() -> None:
    """One evaluation of the digits' UNet; examples/quantised_digits.py has whole runs."""
    model = load_digits_denoiser()
    x, labels = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    want = model(x, 500, labels)
    small = copy.deepcopy(model)
    quantize_(small, QuantConfig(skip=("stem", "head")), progress=False)
    assert error(small(x, 500, labels), want) < 0.03


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantConfig(scheme="int3"), "scheme must be one of .*'int8'.*, got 'int3'"),
        (lambda: QuantConfig(bits=6), r"bits must be one of \(7, 8\), got 6"),
        (
            lambda: quantize_(block(), QuantConfig(skip=("*",))),
            "must contain a layer that is to be quantised",
        ),
        (lambda: quantize_(nn.Linear(64, 64)), "below itself"),
        (lambda: quantize_(block(), QuantConfig(activations="static")), "need a calibration"),
        (
            lambda: quantize_(block(), calibration=lambda _: None),
            "did not reach conv, up, down, out; skip them",
        ),
    ],
)
def test_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
