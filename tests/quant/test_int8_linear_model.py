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
        (QuantConfig(scheme="fp8"), 0.06, 3),
        (QuantConfig(scheme="fp8_weight"), 0.04, 3),
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


def test_layers_that_do_more_than_their_class_are_left_alone() -> None:
    class Tripled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    model = nn.Sequential(Tripled(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64).double())
    model[1].register_forward_hook(lambda *_: None)
    assert [report.name for report in quantize_(model, progress=False)] == ["2"]


def test_modules_that_read_weights_themselves_are_left_alone() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval().requires_grad_(False)
    model = nn.Sequential(layer, nn.Linear(64, 64))
    quantize_(model, progress=False)
    assert model(torch.randn(2, 5, 64)).shape == (2, 5, 64)


def test_a_layer_with_two_names_is_one_layer() -> None:
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert len(quantize_(model, progress=False)) == 1
    assert isinstance(model[0], QuantLinear)
    assert model[0] is model[2]


def test_layers_that_were_reached_at_other_timesteps_have_steps_of_their_own() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor, late: bool) -> Tensor:
            y: Tensor = self.b(self.a(x)) if late else self.a(x)
            return y

    model, x = Late(), torch.randn(3, 64)

    def run(collector: Collector) -> None:
        for t in (1.0, 0.5, 0.1):
            collector.at(t)
            model(x, t < 0.2)

    quantize_(model, QuantConfig(activations="timestep"), run, progress=False)
    assert (model.a.timesteps, model.b.timesteps) == ((1.0, 0.5, 0.1), (0.1,))
    set_timestep(model, 0.1)
    assert (model.a.step.item(), model.b.step.item()) == (2, 0)


def test_ranges_are_not_moved_where_nothing_can_be_divided() -> None:
    model = nn.Sequential(nn.LayerNorm(64, elementwise_affine=False), nn.Linear(64, 64))
    before = model[1].weight.clone()
    with pytest.raises(ValueError, match="must have parameters"):
        quantize_(
            model, QuantConfig(smooth={"0": ("1",)}), lambda _: model(torch.randn(2, 64)), progress=False
        )
    assert torch.equal(model[1].weight, before)


def test_a_moved_model_keeps_nothing_behind() -> None:
    model = block()
    quantize_(model, progress=False)
    model.to("meta")
    assert all(t.is_meta for t in (model.up._like.weight, model.up.packed.weight))


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
def test_a_model_without_memory_becomes_that_of_a_file(scheme: str, tmp_path: Path) -> None:
    model = block()
    quantize_(model, QuantConfig(scheme=scheme), progress=False)
    save_quantized(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = block()
    load_quantized_(empty, tmp_path / "model.safetensors")
    assert torch.equal(empty(X), model(X))


def test_tied_parameters_stay_tied_in_a_model_without_memory(tmp_path: Path) -> None:
    def tied() -> nn.ModuleDict:
        model = nn.ModuleDict(
            {"words": nn.Embedding(9, 64), "up": nn.Linear(64, 96), "head": nn.Linear(64, 9)}
        )
        model["head"].weight = model["words"].weight
        return model

    model = tied()
    quantize_(model, QuantConfig(skip=("head",)), progress=False)
    save_quantized(model, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = tied()
    load_quantized_(empty, tmp_path / "model.safetensors")
    assert empty["head"].weight is empty["words"].weight
    assert torch.equal(empty["head"].weight, model["head"].weight)
    empty["words"].to("meta")
    with pytest.raises(ValueError, match="all of the model must be on the meta device, or nothing"):
        load_quantized_(empty, tmp_path / "model.safetensors")


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_layers_tell_shapes_where_nothing_is_computed(scheme: str) -> None:
    model = block()
    quantize_(model, QuantConfig(scheme=scheme), progress=False)
    assert model.to("meta")(X.to("meta")).shape == (2, 16, 64)


@pytest.mark.parametrize("scheme", ["int8", "int8_weight", "fp8"])
def test_autocast_decides_the_dtype_as_for_plain_layers(scheme: str) -> None:
    model = block()
    quantize_(model, QuantConfig(scheme=scheme), progress=False)
    x = torch.randn(9, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.up(x).dtype == torch.bfloat16
        assert torch.equal(model.up(x), model.up(x.bfloat16()))
        assert model.conv(X).dtype == torch.bfloat16
    assert model.up(x).dtype == torch.float32


def test_files_are_checked(tmp_path: Path) -> None:
    model = block()
    quantize_(model, progress=False)
    save_quantized(model, tmp_path / "model.safetensors")
    other = block()
    other.up = nn.Linear(32, 32)
    with pytest.raises(ValueError, match=r"up must be \[256, 64\] as in the file, got \[32, 32\]"):
        load_quantized_(other, tmp_path / "model.safetensors")
    assert type(other.down) is nn.Linear
    seven = block()
    quantize_(seven, QuantConfig(bits=7), progress=False)
    with pytest.raises(RuntimeError, match=r"up.settings is \[8\], but the layer's is \[7\]"):
        seven.load_state_dict(model.state_dict())


def test_integers_are_not_taken_for_activations() -> None:
    model = block()
    quantize_(model, progress=False)
    with pytest.raises(TypeError, match=r"x must be floating, got torch\.int8"):
        model.up(torch.zeros(2, 64, dtype=model.up.weight.dtype))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantConfig(scheme="int3"), "scheme must be one of .*'int8'.*, got 'int3'"),
        (lambda: QuantConfig(group=48), r"group must be one of \(32, 64, 128\), got 48"),
        (lambda: QuantConfig(bits=6), r"bits must be one of \(7, 8\), got 6"),
        (
            lambda: QuantConfig("fp8", activations="static"),
            "are for scheme 'int8', got 'static' and 8 with 'fp8'",
        ),
        (lambda: QuantConfig("int4", bits=7), "are for scheme 'int8', got 'dynamic' and 7 with 'int4'"),
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
