# SPDX-License-Identifier: Apache-2.0
"""`fastdiff bench`: what it refuses, what it saves, and what it says of a target. No test depends on a time."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from fastdiff.bench import block_sparse_attention, kit, linear_step, main, report, weight_linear_libraries
from fastdiff.bench import block_sparse_attention_flexdit as flexdit
from fastdiff.bench.kit import Call, Case, Contender, Measurement, Row, Target, Verdict

from tests.kit import elsewhere

CPU = torch.device("cpu")
BRIEF = kit.Effort(block=1e-6, seconds=0.0, min_rounds=2, max_rounds=2)
X = torch.linspace(-1, 1, 64)


def doubled() -> Sequence[Tensor]:
    return (2 * X,)


def nearly_doubled() -> Sequence[Tensor]:
    """Wrong in one element, by 1 %."""
    y = 2 * X
    y[17] *= 1.01
    return (y,)


def a_case(*, eager: Call = doubled, ours: Call = doubled, targets: tuple[Target, ...] = ()) -> Case:
    def build(device: torch.device) -> list[Contender]:
        check = kit.close_to([2 * X.double()], roundoffs=1)
        return [Contender("eager", eager, check), Contender(kit.OURS, ours, check, rival=None)]

    return Case("linear_step", "double", "y = 2 x", (64,), torch.float32, 2, build, targets)


def with_times(eager: float, ours: float, *, best: tuple[float, float], target: Target) -> Row:
    """A row as if these medians and best times had been measured."""
    times = {"eager": (eager, best[0], kit.OURS), kit.OURS: (ours, best[1], None)}
    measurements = {
        name: Measurement(name, rival, Verdict(0.0), median=median, best=fastest)
        for name, (median, fastest, rival) in times.items()
    }
    return Row(a_case(targets=(target,)), measurements)


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    return main.run(parser.parse_args(arguments))


# ---- a wrong result --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("culprit", ["eager", "ours"])
def test_a_wrong_result_is_neither_timed_nor_compared(culprit: str) -> None:
    row = kit.measure(a_case(**{culprit: nearly_doubled}), CPU, BRIEF)
    name = {"eager": "eager", "ours": kit.OURS}[culprit]
    wrong = row.measurements[name]
    assert wrong.verdict.wrong is not None
    assert "relative error 4.6e-03" in wrong.verdict.wrong
    assert math.isnan(wrong.median)
    assert wrong.rounds == 0
    assert row.ratio("eager") is None
    assert row.met(Target("eager", factor=1e-9)) is None


def test_a_wrong_result_shows_and_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = a_case(ours=nearly_doubled, targets=(Target("eager", factor=1e-9),))
    monkeypatch.setattr(main, "all_cases", lambda: [wrong])
    assert run("--quick", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")) == 1
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if "WRONG" in line)
    assert "×" not in row
    assert "not measured" in printed
    saved = report.load(tmp_path / "r.json")["rows"][0]
    assert saved["ratios"] == {"eager": None}
    assert saved["gb_per_s"] is None
    assert saved["copy_share"] is None
    assert "relative error" in saved["results"]["fastdiff"]["wrong"]


@pytest.mark.parametrize(
    ("got", "why"),
    [
        (2 * X[:32], "shapes"),
        (torch.where(X > 0.5, math.nan, 2 * X), "relative error nan"),
        (2 * X + 1e-6, "relative error"),
    ],
    ids=["shape", "NaN", "small error"],
)
def test_check_refuses(got: Tensor, why: str) -> None:
    verdict = kit.close_to([2 * X.double()], roundoffs=1)([got])
    assert verdict.wrong is not None
    assert why in verdict.wrong


@pytest.mark.parametrize(
    ("shift", "scale", "right"), [(0.0, 1.0, True), (0.1, 1.0, False), (0.0, 1.1, False)]
)
def test_fresh_noise_is_checked_by_its_moments(shift: float, scale: float, right: bool) -> None:
    mean = torch.ones(100_000, dtype=torch.float64)
    z = torch.randn(100_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    verdict = kit.normal_around(mean, 0.5)([mean + 0.5 * (scale * z + shift)])
    assert (verdict.wrong is None) == right


def test_a_case_that_fails_is_wrong_and_the_next_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> list[Contender]:
        raise NotImplementedError("not on this device\nand more")

    def refused() -> Sequence[Tensor]:
        raise RuntimeError("no kernel")

    failing = dataclasses.replace(a_case(), name="failing", build=broken)
    monkeypatch.setattr(main, "all_cases", lambda: [failing, a_case(eager=refused)])
    assert run("--quick", "--json", str(tmp_path / "r.json")) == 1
    first, second = (row["results"] for row in report.load(tmp_path / "r.json")["rows"])
    assert first["fastdiff"]["wrong"] == "NotImplementedError: not on this device"
    assert second["eager"]["wrong"] == "RuntimeError: no kernel"
    assert second["fastdiff"]["median_s"] > 0
    assert run("--quick", "--case", "*/double/*") == 0  # what a peer refuses is no failure of ours


def test_a_case_that_lacks_a_package_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: object) -> list[Contender]:
        raise ModuleNotFoundError("No module named 'pywt'")

    lacking = dataclasses.replace(a_case(), name="lacking", build=build)
    monkeypatch.setattr(main, "all_cases", lambda: [lacking, a_case()])
    assert run("--quick", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")) == 0
    why = "ModuleNotFoundError: No module named 'pywt'"
    assert f"NOT MEASURED: linear_step/lacking/64/fp32: {why}" in capsys.readouterr().out
    first, second = report.load(tmp_path / "r.json")["rows"]
    assert (first["results"], first["unmeasured"], second["unmeasured"]) == ({}, why, None)
    assert second["results"]["fastdiff"]["median_s"] > 0
    assert run("--quick", "--case", "*/lacking/*") == 2


# ---- the cases -------------------------------------------------------------------------------------------------


def test_cases_have_distinct_ids() -> None:
    ids = [case.id for case in main.all_cases()]
    assert len(set(ids)) == len(ids)
    assert "linear_step/cfg_dpmpp_2m/1x4x64x64/bf16" in ids


def is_small(case: Case) -> bool:
    """Quick to check; guidance has no smaller shapes."""
    limit = main.QUICK_ELEMENTS if case.op.startswith("guidance") else 4 * 64 * 64
    return math.prod(case.shape) <= limit


def uncompiled(function: Any = None, **_: object) -> Any:
    """In place of `torch.compile`, which takes seconds and is torch's: the expression as it is."""
    return function or uncompiled


# Of what nobody writes as an expression of PyTorch.
RIVALS = {
    "dwt": {"PyWavelets", "ptwt"},
    "idwt": {"PyWavelets", "ptwt"},
    "block_sparse_attention": {"dense SDPA", "FlexAttention"},
    "block_sparse_attention/flexdit": {"dense DiT", "published"},
    "block_sparse_attention_backward": {"dense SDPA"},
    "mask_blocks": {"eager", "create_block_mask", "attention"},
    "normed_token_mean": {"published", "torch.compile"},
    "match_tokens": {"tomesd's form", "torch.compile"},
    "select_blocks": {"eager"},
    "int8_linear": {"eager"},
    **{f"weight_linear/libraries_{kind}_5": {"F.linear"} for kind in ("int8", "int8_both", "int4")},
    "int8_conv2d": {"eager", "FBGEMM", "oneDNN"},
    "fake_quant": {"eager", "torch.compile", "torch.fake_quantize"},
    "weight_linear": {"eager", "torch.compile", "F.linear"},
}


@pytest.mark.parametrize("case", list(filter(is_small, main.all_cases())), ids=lambda c: c.id)
def test_every_contender_is_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", uncompiled)
    with torch.no_grad():
        contenders = case.build(CPU)
        is_loop = case.id.startswith("linear_step/step_")
        of_op = RIVALS.get(case.op, {"eager", "torch.compile"})
        rivals = {"diffusers step"} if is_loop else RIVALS.get(f"{case.op}/{case.name}", of_op)
        assert {c.name for c in contenders} >= {"fastdiff", *rivals}
        assert {c.name: kit.verify(c).wrong for c in contenders} == {c.name: None for c in contenders}


def test_multiplications_of_flexdit_are_those_of_the_papers() -> None:
    """524.6 G for DiT-XL/2 at 512 pixels (Peebles and Xie 2023); 55 % fewer (FlexDiT)."""
    sizes = flexdit.XL_512
    assert sizes.depth == 28
    assert sizes.multiplications(densities=False) / 524.6e9 == pytest.approx(1, abs=0.005)
    assert 1 - sizes.multiplications(densities=True) / 524.6e9 == pytest.approx(0.55, abs=0.03)


def test_our_step_is_closer_to_float64_than_eager() -> None:
    for case in linear_step.cases():
        if case.name != "cfg_dpmpp_2m" or case.shape != (1, 4, 64, 64):
            continue
        with torch.no_grad():
            errors = {c.name: kit.verify(c).error for c in case.build(CPU) if c.name in ("eager", "fastdiff")}
        assert errors["fastdiff"] <= errors["eager"]


def test_a_loop_starts_again_after_reset() -> None:
    case = next(c for c in linear_step.cases() if c.shape == (1, 1, 4, 4))
    for contender in case.build(CPU):
        if contender.reset is None:
            continue
        with torch.no_grad():
            assert [kit.verify(contender).wrong for _ in range(2)] == [None, None]


@pytest.mark.parametrize("error", [ImportError, AttributeError, OSError, RuntimeError, NotImplementedError])
def test_a_library_that_fails_is_left_out(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise error("no such layer")

    monkeypatch.setattr(weight_linear_libraries.importlib.util, "find_spec", lambda package: package)
    for make in ("_torchao", "_quanto", "_bitsandbytes"):
        monkeypatch.setattr(weight_linear_libraries, make, refuse)
    assert list(weight_linear_libraries._libraries("int8", torch.ones(2, 2))) == []


# ---- a GPU's clocks, without one -------------------------------------------------------------------------------

CUDA = torch.device("cuda")


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a block of calls gives the device to do, in this order; each takes a second for its result."""
    log: list[str] = []

    class Graph:
        def __init__(self, call: Call, repeats: int) -> None:
            call()
            self.repeats = repeats

        def replay(self) -> None:
            log.append(f"replay of {self.repeats}")

    def event_time(call: Any, repeats: int) -> float:
        log.append("begin")
        for _ in range(repeats):
            call()
        log.append("end")
        return 1.0

    monkeypatch.setattr(kit, "capture", Graph)
    monkeypatch.setattr(kit, "event_time", event_time)
    monkeypatch.setattr(kit, "sweep_cache", lambda device: log.append("sweep"))
    return log


def test_inputs_are_out_of_the_cache_before_the_clock_starts(queued: list[str]) -> None:
    clock = kit.make_clock(Contender("eager", doubled, lambda _: Verdict(0.0)), CUDA, kit.Effort())
    assert (clock.name, clock.cache, clock.repeats, clock.block()) == ("CUDA graph", "cold", 1, 1.0)
    assert queued == ["sweep", "begin", "replay of 1", "end"]


def test_warm_calls_follow_each_other(queued: list[str]) -> None:
    effort = kit.Effort(block=1.0, cold=False)
    clock = kit.make_clock(Contender("eager", doubled, lambda _: Verdict(0.0)), CUDA, effort)
    queued.clear()
    assert (clock.name, clock.cache, clock.block()) == ("CUDA graph", "warm", 1.0)
    assert queued == ["begin", f"replay of {clock.repeats}", "end"]


def test_code_that_waits_for_the_device_is_timed_without_a_graph(
    queued: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(kit, "capture", refuse)
    clock = kit.make_clock(Contender("eager", doubled, lambda _: Verdict(0.0)), CUDA, kit.Effort())
    assert (clock.name, clock.cache, clock.block()) == ("CUDA events", "cold", 1.0)
    assert queued == ["sweep", "begin", "end"]


class Stream:
    def wait_stream(self, other: Stream) -> None: ...


class Streams:
    """In place of `torch.cuda`: the current stream, what is done about waits, and captures that end as torch's do."""

    Stream, CUDAGraph = Stream, object

    def __init__(self) -> None:
        self.first = self.current = Stream()
        self.mode: int | str = 0
        self.captures = 0

    def current_stream(self) -> Stream:
        return self.current

    def set_stream(self, stream: Stream) -> None:
        self.current = stream

    def get_sync_debug_mode(self) -> int | str:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.mode = mode

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph: object) -> Iterator[None]:
        self.captures += 1
        before, self.current = self.current, Stream()
        yield  # an error leaves the stream as it is
        self.current = before


@pytest.mark.parametrize("waits", [True, False], ids=["that waits", "that cannot be captured"])
def test_a_call_without_a_graph_leaves_the_stream_as_it_was(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Streams()
    monkeypatch.setattr(torch, "cuda", streams)

    def call() -> None:
        if streams.mode == "error" if waits else streams.captures:
            raise RuntimeError(
                "called a synchronizing CUDA operation" if waits else "operation not permitted"
            )

    with pytest.raises(RuntimeError):
        kit.capture(call, 1)
    assert (streams.current, streams.mode) == (streams.first, 0)
    assert streams.captures == (0 if waits else 1)
    kit.capture(lambda: None, 1)
    assert (streams.current, streams.mode) == (streams.first, 0)


def test_a_loop_is_reset_before_the_clock_starts(queued: list[str]) -> None:
    loop = Contender("plan.step", doubled, lambda _: Verdict(0.0), reset=lambda: queued.append("reset"))
    clock = kit.make_clock(loop, CUDA, kit.Effort())
    assert (clock.name, clock.cache, clock.block()) == ("CUDA events", "warm", 1.0)
    assert queued == ["reset", "begin", "end"]


# One of each kind: all solvers, step_..., are built alike.
FIRST = {(case.op, case.name.split("_")[0]): case for case in reversed(main.all_cases()) if is_small(case)}
# torch's vmap makes tensors where the mode in this test does not see it.
UNSEEN = {"FlexAttention", "create_block_mask"}


@pytest.mark.parametrize("case", FIRST.values(), ids=lambda case: case.id)
def test_cases_are_all_on_their_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs, references and checks: a tensor left on the CPU would end the case on a GPU."""
    monkeypatch.setattr(torch, "compile", uncompiled)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: argparse.Namespace(cuda_stream=0))
    monkeypatch.setattr(block_sparse_attention, "flex_attention", lambda plan: doubled)
    with torch.no_grad(), elsewhere.Elsewhere():
        for contender in case.build(elsewhere.DEVICE):
            if contender.name not in UNSEEN:
                assert kit.verify(contender).wrong is None, contender.name


def test_ceilings_are_rates() -> None:
    found = kit.ceilings(CPU, elements=1 << 16, side=64)
    assert set(found) == {"copy_gb_per_s", "bf16_tflop_per_s", "call_s"}
    assert all(0 < value < math.inf for value in found.values())


# ---- what is said ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eager", "best", "met"),
    [(6.5, (6.1, 1.0), True), (5.9, (6.1, 1.0), False), (600.0, (5.9, 1.0), False)],
    ids=["met", "missed", "met by stalls only"],
)
def test_target_needs_medians_and_best_times(eager: float, best: tuple[float, float], met: bool) -> None:
    row = with_times(eager, 1.0, best=best, target=Target("eager", factor=6.0))
    assert row.met(row.case.targets[0]) is met
    assert report.target_lines([row])[0][-1] == ("met" if met else "MISSED")
    assert report.table([row])[1][0][3].endswith("✓" if met else "✗")


@pytest.mark.parametrize(("ours", "met"), [(14e-6, True), (16e-6, False)])
def test_target_in_seconds(ours: float, met: bool) -> None:
    row = with_times(1.0, ours, best=(1.0, ours), target=Target(kit.OURS, seconds=15e-6))
    assert row.met(row.case.targets[0]) is met


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.6e-7, "0.76 µs"), (1.234e-5, "12.3 µs"), (4.56e-3, "4.56 ms"), (123.4, "123 s")]
)
def test_time_text(seconds: float, text: str) -> None:
    assert report.time_text(seconds) == text


def test_plain_table_is_aligned_and_names_an_op_once() -> None:
    lines = list(report.plain(["op", "time"], [["a", "1 ms"], ["a", "12 ms"], ["b", "3 ms"]], left=1))
    assert lines == ["op   time", "a    1 ms", "    12 ms", "", "b    3 ms"]


# ---- a run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to run in, and one case to run."""
    monkeypatch.setattr(main, "all_cases", lambda: [a_case(targets=(Target("eager", factor=2.0),))])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_saves_json_and_plot(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A whole run, since no filter is given: both files go to the default folder.
    assert run("--threads", "1") == 0
    printed = capsys.readouterr().out
    for word in ("eager", "fastdiff", "GB/s", "of copy", "fp32", "1 of", "Targets:"):
        assert word in printed
    data = report.load(tiny / "fastdiff-bench/cpu-1-threads.json")
    assert (tiny / "fastdiff-bench/cpu-1-threads.png").read_bytes().startswith(b"\x89PNG")
    assert data["environment"]["threads"] == 1
    assert data["environment"]["torch"] == torch.__version__
    (row,) = data["rows"]
    assert row["id"] == "linear_step/double/64/fp32"
    assert row["bytes"] == 2 * 64 * 4
    assert set(row["results"]) == {"eager", "fastdiff", "copy_"}
    for result in row["results"].values():
        low, high = result["quartiles_s"]
        assert result["wrong"] is None
        assert result["clock"] == "wall"
        assert 0 < result["best_s"] <= low <= result["median_s"] <= high
    assert row["ratios"]["eager"] == pytest.approx(
        row["results"]["eager"]["median_s"] / row["results"]["fastdiff"]["median_s"]
    )
    assert [set(target) for target in row["targets"]] == [{"target", "met"}]


def test_run_restores_threads(tiny: Path) -> None:
    before = torch.get_num_threads()
    assert run("--threads", "1", "--quick") == 0
    assert torch.get_num_threads() == before


def test_part_of_the_cases_does_not_replace_the_machine_s_results(tiny: Path) -> None:
    assert run("--case", "*/double/*") == 0
    assert list(tiny.iterdir()) == []


def test_a_budget_goes_to_every_op_and_its_largest_cases(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def case(op: str, size: int) -> Case:
        return dataclasses.replace(a_case(), op=op, name=f"of_{size}", shape=(size,))

    cases = [case("a", 1), case("a", 3), case("a", 2), case("b", 7), case("b", 9)]
    order = [(c.op, c.shape[0]) for c in main.in_turns(cases)]
    assert order == [("b", 9), ("a", 3), ("b", 7), ("a", 2), ("a", 1)]
    monkeypatch.setattr(main, "all_cases", lambda: cases)
    assert run("--budget", "0", "--json", "r.json") == 0
    assert [row["id"] for row in report.load(tiny / "r.json")["rows"]] in ([], ["b/of_9/9/fp32"])
    assert run("--budget", "1000", "--quick", "--json", "r.json") == 0
    assert [row["shape"] for row in report.load(tiny / "r.json")["rows"]] == [[1], [3], [2], [7], [9]]
    assert [path.name for path in tiny.iterdir()] == ["r.json"]


def test_a_run_that_is_cut_short_has_saved_its_rows(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> list[Contender]:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "all_cases", lambda: [a_case(), dataclasses.replace(a_case(), build=stop)])
    with pytest.raises(KeyboardInterrupt):
        run("--quick", "--json", "r.json")
    assert [row["id"] for row in report.load(tiny / "r.json")["rows"]] == ["linear_step/double/64/fp32"]


def test_a_budget_begins_with_what_a_gpu_is_for() -> None:
    """Products of many rows in half precision; what other libraries are asked for comes last."""
    first: dict[str, list[str]] = {}
    for case in main.in_turns(main.all_cases()):
        first.setdefault(case.op, []).append(f"{case.name}/{kit.DTYPE_NAMES[case.dtype]}")
    assert set(first["int8_linear"][:2]) == {"gelu_4096/bf16", "products_4096/bf16"}
    assert first["weight_linear"][0] == "e4m3_4096/bf16"
    assert first["block_sparse_attention"][0].endswith("/bf16")
    others = [name.startswith("libraries_") for name in first["weight_linear"]]
    assert others == sorted(others)
    assert others[-1]


def test_repro_command_runs_the_same_row(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--quick", "--threads", "1", "--repro") == 0
    command = next(line for line in capsys.readouterr().out.splitlines() if "fastdiff bench --case" in line)
    assert command.strip() == (
        "fastdiff bench --case linear_step/double/64/fp32 --device cpu --threads 1 --quick"
    )
    assert run(*command.split()[2:]) == 0


def test_compare_shows_then_and_now(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--quick", "--json", "old.json") == 0
    capsys.readouterr()
    assert run("--quick", "--compare", "old.json") == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split()[:2] == ["linear_step/double/64/fp32", "fastdiff"]
    assert line.count("%") == 2


@pytest.mark.parametrize(
    "content", ["[]", '{"schema": "other"}', '{"schema": "fastdiff-bench", "version": 0}']
)
def test_compare_refuses_other_documents(tiny: Path, content: str) -> None:
    (tiny / "old.json").write_text(content)
    with pytest.raises(ValueError, match="expected a fastdiff-bench document of version 1"):
        run("--compare", "old.json")


def test_nothing_to_measure_is_an_error(tiny: Path) -> None:
    assert run("--op", "no_such_op") == 2


def test_json_has_no_nan(tiny: Path) -> None:
    row = kit.measure(dataclasses.replace(a_case(eager=nearly_doubled)), CPU, BRIEF)
    report.save(tiny / "r.json", report.document([row], CPU))
    json.loads((tiny / "r.json").read_text(), parse_constant=lambda name: pytest.fail(name))
