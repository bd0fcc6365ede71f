# SPDX-License-Identifier: Apache-2.0
"""`tools/gpu_check.sh` and its report, with programs in place of those that only a machine with a GPU has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools import gpu_report

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = ["memcheck", "racecheck", "initcheck", "synccheck"]
STEPS = ["machine", "wheels", "build", "tests", "benchmarks", *SANITIZERS]

CEILINGS = {"copy_gb_per_s": 4000.0, "bf16_tflop_per_s": 800.0, "call_s": 2e-6}
FACTS = {
    "device": "NVIDIA H200",
    "torch": "2.11.0",
    "diffusers": "0.42.1",
    "fastdiff": "0.1.0",
    "commit": None,
}


def row(op: str, seconds: float, *, size: int, flops: float = 0.0, **others: float) -> dict[str, Any]:
    """As `fastdiff bench` writes it; `others` are the contenders' times."""
    results = {"fastdiff": {"median_s": seconds, "warm_s": seconds / 2, "rival": None, "wrong": None}}
    for name, time in others.items():
        results[name] = {"median_s": time, "warm_s": None, "rival": "fastdiff", "wrong": None}
    ratios = {name: time / seconds for name, time in others.items()}
    shape = {"shape": [2, 3], "dtype": "bf16", "case": "case", "bytes": size, "flops": flops}
    return shape | {"op": op, "results": results, "ratios": ratios}


BENCHMARKS = {
    "schema": "fastdiff-bench",
    "date": "2026-01-02T03:04:05",
    "environment": FACTS,
    "ceilings": CEILINGS,
    "rows": [
        row("step", 1e-3, size=2_000_000_000, eager=8e-3, **{"eager, floats": 5e-3, "torch.compile": 1.5e-3}),
        row("attention", 2e-3, size=2_000_000, flops=8e11, **{"dense SDPA": 6e-3, "FlexAttention": 5e-3}),
    ],
}
TESTS = """<testsuites><testsuite>
<testcase classname="tests.cuda.test_cuda" name="a"/><testcase classname="tests.test_contract" name="b"/>
<testcase classname="tests.cuda.test_cuda" name="c"><skipped message="two devices"/></testcase>
</testsuite></testsuites>"""

# What a step does besides is in a variable of its name: FAKE_tests="exit 1".
PYTHON = """\
case "$*" in
  "-m pip "*" .") eval "${FAKE_build:-}" ;;
  "-m fastdiff.cli bench "*) eval "${FAKE_benchmarks:-}"; cp "$FAKES/benchmarks.json" "$logs/benchmarks.json" ;;
  *"import DPMSolver"*) eval "${FAKE_wheels:-}" ;;
  *--junitxml*) eval "${FAKE_tests:-}"; cp "$FAKES/tests.xml" "$logs/tests.xml" ;;
  tools/*) exec "$REAL_PYTHON" "$@" ;;
esac
"""
SANITIZER = """\
echo "========= COMPUTE-SANITIZER"
name=FAKE_$2
eval "${!name:-}"
echo "========= 1 passed in 1.00s ========="
echo "========= ERROR SUMMARY: 0 errors"
"""
OTHERS = {
    "nvcc": 'echo "Cuda compilation tools, release 13.0, V13.0.88"',
    "nvidia-smi": 'echo "NVIDIA H200, 580.1, 143771 MiB"',
}

Check = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Runs the script on such a machine: `check("tests", FAKE_tests="exit 1")` returns its status and the report."""
    (tmp_path / "benchmarks.json").write_text(json.dumps(BENCHMARKS))
    (tmp_path / "tests.xml").write_text(TESTS)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in {"python": PYTHON, "compute-sanitizer": SANITIZER, **OTHERS}.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (programs / name).chmod(0o755)
    places = {
        "RESULTS": tmp_path,
        "WORK": tmp_path / "work",
        "FAKES": tmp_path,
        "PYTHON": programs / "python",
    }
    places |= {"REAL_PYTHON": Path(sys.executable), "OUT": tmp_path / "out"}
    places["OUT"].mkdir()

    def run(*steps: str, **variables: str) -> tuple[int, dict[str, Any]]:
        environment = (
            os.environ | {name: str(place) for name, place in places.items()} | {"COMMIT": "abc"} | variables
        )
        environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        command = ["bash", str(ROOT / "tools/gpu_check.sh"), *steps]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        report = tmp_path / "gpu-check.json"
        assert report.is_file(), done.stdout + done.stderr
        return done.returncode, json.loads(report.read_text())

    return run


def outcomes(report: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["outcome"] for step in report["steps"]}


def test_all_steps_run_within_ten_minutes(check: Check, tmp_path: Path) -> None:
    status, report = check()
    assert status == 0, report
    assert outcomes(report) == dict.fromkeys(STEPS, "passed")
    limits = {
        step["name"]: step["limit"] + 5 for step in report["steps"]
    }  # a step may take 5 seconds to end,
    limits["tests"] += 7  # and tests 12
    side_by_side = max(limits[name] for name in SANITIZERS)
    assert sum(limits.values()) - sum(limits[name] for name in SANITIZERS) + side_by_side < 590
    assert report["summary"] == {
        "built": True,
        "tests_passed": True,
        "sanitizers_clean": True,
        "benchmarks_right": True,
    }
    assert report["machine"]["gpu"] == "NVIDIA H200, 580.1, 143771 MiB"
    assert report["machine"]["nvcc"] == "13.0"
    assert report["tests"] == {"passed": 2, "passed_on_gpu": 1, "failed": [], "skipped": ["two devices"]}
    assert report["benchmarks"]["ceilings"] == CEILINGS
    assert report["benchmarks"]["environment"]["commit"] == report["commit"] == "abc"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu-check.json", "logs"}
    assert (tmp_path / "out/logs/machine.log").is_file()


def test_a_step_that_fails_or_hangs_stops_no_other(check: Check) -> None:
    race = 'echo "========= Error: Race reported between Write access and Read access"; exit 9'
    status, report = check(
        FAKE_build="exit 1",
        FAKE_tests="sleep 50",
        LIMIT_tests="1",
        FAKE_racecheck=race,
        FAKE_initcheck="exit 127",
    )
    assert status == 1
    assert outcomes(report) == dict.fromkeys(STEPS, "passed") | {
        "build": "failed",
        "tests": "timed out",
        "racecheck": "failed",
        "initcheck": "not found",
    }
    assert report["summary"] == {
        "built": False,
        "tests_passed": False,
        "sanitizers_clean": False,
        "benchmarks_right": True,
    }
    found = {step["name"]: step["findings"] for step in report["steps"] if step["findings"]}
    assert found == {"racecheck": ["========= Error: Race reported between Write access and Read access"]}
    assert report["tests"] is None


@pytest.mark.parametrize("chosen", ["", "dwt or idwt"])
def test_sanitizers_run_what_they_are_asked_for(check: Check, chosen: str) -> None:
    _, report = check("memcheck", FAKE_memcheck='echo "$*"', SANITIZE=chosen)
    expected = chosen or "wgmma or test_equals_the_reference"
    assert f"-k ({expected}) and cuda" in "\n".join(report["steps"][0]["log"])


def test_what_is_to_come_first_does() -> None:
    options = (
        "-q -p no:cacheprovider --collect-only tests/test_gpu_check.py tests/quant/test_int8_linear_wgmma.py"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        *options.split(),
        "--first",
        "wgmma",
        "--first",
        "unknown_step",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    names = [line for line in done.stdout.splitlines() if "::" in line]
    is_first = ["wgmma" in name or "unknown_step" in name for name in names]
    assert is_first == sorted(is_first, reverse=True)
    assert 1 < sum(is_first) < len(names)


def test_a_run_that_is_cut_short_has_reported_what_it_did(check: Check, tmp_path: Path) -> None:
    seen = 'cp "$OUT/gpu-check.json" "$FAKES/seen.json"'
    check("machine", "build", "tests", "benchmarks", FAKE_benchmarks=seen)
    assert outcomes(json.loads((tmp_path / "seen.json").read_text())) == dict.fromkeys(
        ["machine", "build", "tests"], "passed"
    )


def test_tests_that_run_out_of_time_have_counted_those_before(check: Check) -> None:
    late = 'trap \'cp "$FAKES/tests.xml" "$logs/tests.xml"; exit 2\' INT; sleep 50'
    status, report = check("tests", FAKE_tests=late, LIMIT_tests="1")
    assert (status, outcomes(report)) == (1, {"tests": "timed out"})
    assert report["tests"]["passed"] == 2
    assert report["summary"]["tests_passed"] is False


def test_wheels_that_lack_diffusers_are_seen(check: Check) -> None:
    _, report = check("wheels", FAKE_wheels="echo 'No module named diffusers'; exit 1")
    (step,) = report["steps"]
    assert (step["outcome"], step["log"][-1]) == ("failed", "No module named diffusers")


def test_a_sanitizer_that_runs_out_of_time_is_not_clean(check: Check) -> None:
    status, report = check("memcheck", "synccheck", FAKE_memcheck="sleep 50", LIMIT_memcheck="1")
    assert status == 0
    assert outcomes(report) == {"memcheck": "timed out", "synccheck": "passed"}
    assert report["summary"]["sanitizers_clean"] is None
    invalid = 'echo "========= Invalid __global__ write of size 4 bytes"; sleep 50'
    status, report = check("memcheck", FAKE_memcheck=invalid, LIMIT_memcheck="1")
    assert status == 1
    assert report["summary"]["sanitizers_clean"] is False


def test_steps_that_are_left_out_keep_what_the_same_commit_gave(check: Check) -> None:
    check("machine", "build", "benchmarks", FAKE_build="exit 1")
    status, report = check("build", "tests")
    assert status == 0
    assert outcomes(report) == dict.fromkeys(["machine", "benchmarks", "build", "tests"], "passed")
    assert report["summary"] == {
        "built": True,
        "tests_passed": True,
        "sanitizers_clean": None,
        "benchmarks_right": True,
    }
    assert report["machine"]["nvcc"] == "13.0"
    status, report = check("tests", COMMIT="def")
    assert outcomes(report) == {"tests": "passed"}
    assert report["machine"] is report["benchmarks"] is report["summary"]["built"] is None


def test_a_wrong_result_of_ours_fails_and_a_peer_s_does_not(check: Check, tmp_path: Path) -> None:
    for name, right in (("eager", True), ("fastdiff", False)):
        wrong = json.loads(json.dumps(BENCHMARKS))
        wrong["rows"][0]["results"][name]["wrong"] = "relative error 1"
        (tmp_path / "benchmarks.json").write_text(json.dumps(wrong))
        status, report = check("benchmarks")
        assert (status, report["summary"]["benchmarks_right"]) == (0 if right else 1, right)


def test_an_unknown_step_is_named() -> None:
    command = ["bash", str(ROOT / "tools/gpu_check.sh"), "tests", "benchmark"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (f"gpu_check.sh: no step is called 'benchmark'; there are: {' '.join(STEPS)}\n")


# ---- the tables ------------------------------------------------------------------------------------------------


def test_tables_have_times_rates_shares_and_ratios() -> None:
    """2 GB in 1 ms are half of 4000 GB/s; 0.8 Tera-operations in 2 ms half of 800 TFLOP/s."""
    facts = FACTS | {"commit": "abc"}
    text = gpu_report.section("bench/results/h200/gpu-check.json", BENCHMARKS | {"environment": facts})
    assert "| step case | 2×3 | bf16 | 1 ms | 500 µs | 2000 GB/s | 50% | 8.0 | 1.5 | – |" in text
    assert (
        "| attention case | 2×3 | bf16 | 2 ms | 1 ms | 400 TFLOP/s | 50% | – | – | 2.5 FlexAttention |"
        in text
    )
    assert (
        "a copy 4000 GB/s, a product 800 TFLOP/s; the shortest time that this clock can show is 2 µs" in text
    )
    assert "### NVIDIA H200" in text
    assert "commit abc" in text


def test_a_row_without_a_right_result_has_no_numbers() -> None:
    broken = row("step", 1.0, size=8) | {
        "results": {"fastdiff": {"median_s": None, "warm_s": None, "rival": None}},
        "ratios": {"eager": None},
    }
    assert gpu_report.line(broken, CEILINGS) == ["step case", "2×3", "bf16", *"–––––––"]
