# SPDX-License-Identifier: Apache-2.0
"""Turns the logs of tools/gpu_check.sh into one JSON document: `python tools/gpu_report.py LOGS REPORT.json`.

Exits with 0 if the library was built, all tests with a GPU passed, and no sanitizer that ran found anything.
"""

from __future__ import annotations

import datetime
import importlib
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SCHEMA, VERSION = "fastdiff-gpu-check", 1
KEPT_LINES = 40  # of the log of a step that failed
OUTCOMES = {0: "passed", 9: "failed", 124: "timed out", 137: "killed"}


def main(logs: Path, target: Path) -> int:
    report = gather(logs)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{target}: {json.dumps(report['summary'])}")
    return 0 if all(value is not False for value in report["summary"].values()) else 1


def gather(logs: Path) -> dict[str, Any]:
    """Everything about one run; what a step did not leave behind is null."""
    steps = list(read_steps(logs))
    tests = {name: read_tests(logs / f"{name}.xml") for name in ("tests_cuda", "tests_rest")}
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "machine": machine(logs),
        "summary": summary(steps, tests),
        "steps": steps,
        "tests": tests,
        "benchmarks": read_json(logs / "bench.json"),
    }


def summary(steps: list[dict[str, Any]], tests: dict[str, Any]) -> dict[str, bool | None]:
    """True, False, or null for what did not run."""
    ended = {step["name"]: step["outcome"] for step in steps}
    sanitizers = [ended[name] for name in ended if name.startswith("sanitizer")]
    finished = [outcome for outcome in sanitizers if outcome not in ("timed out", "killed")]
    cuda = tests["tests_cuda"]
    return {
        "built": ended.get("build") == "passed",
        "tests_passed": bool(
            cuda and cuda["passed"] and not cuda["failed"] and ended["tests_cuda"] == "passed"
        ),
        "sanitizers_clean": all(outcome == "passed" for outcome in finished) if finished else None,
        "benchmarks_right": ended["benchmarks"] == "passed" if "benchmarks" in ended else None,
    }


def read_steps(logs: Path) -> Iterator[dict[str, Any]]:
    for line in (logs / "steps.tsv").read_text().splitlines():
        name, status, seconds, limit = line.split("\t")
        lines = (logs / f"{name}.log").read_text(errors="replace").splitlines()
        outcome = OUTCOMES.get(int(status), "failed")
        yield {
            "name": name,
            "outcome": outcome,
            "status": int(status),
            "seconds": int(seconds),
            "limit": int(limit),
            "log": lines[-KEPT_LINES:] if outcome != "passed" else lines[-3:],
        }


def read_tests(path: Path) -> dict[str, Any] | None:
    """Counts, the names of failures, and why tests were skipped, from pytest's JUnit file."""
    if not path.is_file():
        return None
    cases = ElementTree.parse(path).getroot().findall(".//testcase")
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [mark for case in cases if (mark := case.find("skipped")) is not None]
    passed = [case for case in cases if len(case) == 0 or case[0].tag not in ("failure", "error", "skipped")]
    return {
        "passed": len(passed),
        # The tests of this folder skip themselves without a GPU, so one that passed has had one.
        "passed_on_gpu": sum(str(case.get("classname")).startswith("tests.cuda.") for case in passed),
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "skipped": sorted({str(mark.get("message")) for mark in skipped}),
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def machine(logs: Path) -> dict[str, Any]:
    text = (logs / "machine.log").read_text(errors="replace") if (logs / "machine.log").is_file() else ""
    release = re.search(r"release (\S+),", text)
    gpu = re.search(r"^.+, [\d.]+, \d+ MiB$", text, re.MULTILINE)
    return {
        "gpu": gpu[0] if gpu else None,
        "nvcc": release[1] if release else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: package_version(name) for name in ("torch", "cupy", "diffusers", "fastdiff")},
    }


def package_version(name: str) -> str | None:
    try:
        return str(importlib.import_module(name).__version__)
    except ImportError:
        return None


def output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
