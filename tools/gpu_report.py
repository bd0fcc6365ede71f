# SPDX-License-Identifier: Apache-2.0
"""Turns the logs of tools/gpu_check.sh into one JSON document: `python tools/gpu_report.py LOGS REPORT.json [COMMIT]`.

Exits with 0 if, as far as is known, the library was built, all tests with a GPU passed, no sanitizer found anything and
all results in the benchmarks were right. tools/make_docs.py shows the document in docs/performance.md.
"""

from __future__ import annotations

import datetime
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.tables import markdown_table, time_text  # noqa: E402

SCHEMA, VERSION = "fastdiff-gpu-check", 1
KEPT_LINES = 40  # of the log of a step that failed
OUTCOMES = {0: "passed", 124: "timed out", 127: "not found", 137: "killed"}
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
OURS, EAGER, COMPILED, COPY = "fastdiff", "eager", "torch.compile", "copy_"


def main(logs: Path, target: Path, named: str) -> int:
    report = merged(read_json(target), gather(logs, named or commit()))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{target}: {json.dumps(report['summary'])}")
    return 0 if all(value is not False for value in report["summary"].values()) else 1


def gather(logs: Path, head: str | None) -> dict[str, Any]:
    """Everything about one run of the commit ``head``; what a step did not leave behind is null."""
    benchmarks = read_json(logs / "benchmarks.json")
    if benchmarks is not None:
        benchmarks["environment"]["commit"] = head
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": head,
        "machine": machine(logs / "machine.log"),
        "steps": list(read_steps(logs)),
        "tests": read_tests(logs / "tests.xml"),
        "benchmarks": benchmarks,
    }


def merged(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """The new run, and of the steps that it left out what an earlier one found at the same commit."""
    if old is not None and old["commit"] == new["commit"] is not None:
        names = {step["name"] for step in new["steps"]}
        kept = {"machine": "machine", "tests": "tests", "benchmarks": "benchmarks"}
        new |= {part: old[part] for part, step in kept.items() if step not in names}
        new["steps"] = [step for step in old["steps"] if step["name"] not in names] + new["steps"]
    return new | {"summary": summary(new)}


def summary(report: dict[str, Any]) -> dict[str, bool | None]:
    """True, False, or null for what did not run, or not to its end."""
    steps, tests, benchmarks = (
        {s["name"]: s for s in report["steps"]},
        report["tests"],
        report["benchmarks"],
    )
    ended = {name: step["outcome"] for name, step in steps.items()}
    sanitizers = [ended.get(name) for name in SANITIZERS]
    found = any(steps[name]["findings"] for name in SANITIZERS if name in steps)
    ours = [
        result["wrong"] is None
        for row in (benchmarks or {"rows": ()})["rows"]
        for result in row["results"].values()
        if result["rival"] is None
    ]
    return {
        "built": ended["build"] == "passed" if "build" in ended else None,
        "tests_passed": ended["tests"] == "passed"
        and bool(tests and tests["passed_on_gpu"] and not tests["failed"])
        if "tests" in ended
        else None,
        "sanitizers_clean": False
        if found or "failed" in sanitizers
        else True
        if all(outcome == "passed" for outcome in sanitizers)
        else None,
        "benchmarks_right": all(ours) if ours else None if "benchmarks" not in ended else False,
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
            "findings": [text for text in lines if is_finding(text)][:KEPT_LINES],
            "log": lines[-KEPT_LINES:] if outcome != "passed" else lines[-3:],
        }


def is_finding(line: str) -> bool:
    """Of a sanitizer, also of one that ran out of time before its summary."""
    return re.match(r"={9} (?!.*(COMPUTE-SANITIZER|SUMMARY: 0 |=$))", line) is not None


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


def machine(log: Path) -> dict[str, Any] | None:
    if not log.is_file():
        return None
    text = log.read_text(errors="replace")
    release = re.search(r"release (\S+),", text)
    gpu = re.search(r"^.+, [\d.]+, \d+ MiB$", text, re.MULTILINE)
    return {
        "gpu": gpu[0] if gpu else None,
        "nvcc": release[1] if release else None,
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: package_version(name) for name in ("torch", "cupy-cuda13x", "diffusers", "torch-fastdiff")},
    }


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """What was checked, with "+" if files differ from it; the results themselves may."""
    git = ("git", "-C", str(ROOT))
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!bench/results"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if same.returncode else "")


# ---- docs/performance.md ---------------------------------------------------------------------------------------

LEGEND = """\
Cold: the L2 cache has none of a call's inputs, as between the steps of a sampling loop; warm: the same call again and
again. The rate counts bytes read once and written once, or for matrix products multiplications and additions; the
ceiling is a large copy or a large product in bfloat16 in the same run. Columns with × say how many times as long as
fastdiff the others take, cold; the peer is the fastest of those that are neither eager code nor torch.compile."""


def status(report: dict[str, Any]) -> str:
    """One line on the checks of one report."""
    ended = {step["name"]: step["outcome"] for step in report["steps"]}
    tools = ", ".join(f"{name} {ended.get(name, 'did not run')}" for name in SANITIZERS)
    passed = report["tests"]["passed"]
    return (
        f"{report['date'][:10]}, commit {report['commit']}: {passed} tests passed; compute-sanitizer: {tools}"
    )


def section(path: str, benchmarks: dict[str, Any]) -> str:
    """The results of `fastdiff bench --device cuda` for readers."""
    facts, ceilings = benchmarks["environment"], benchmarks["ceilings"]
    heads = [
        "case",
        "shape",
        "dtype",
        "cold",
        "warm",
        "rate",
        "of the ceiling",
        "eager ×",
        "torch.compile ×",
        "peer ×",
    ]
    software = ", ".join(f"{name} {facts[name]}" for name in ("torch", "diffusers", "fastdiff"))
    return "\n\n".join(
        [
            f"### {facts['device']}",
            f"`{path}`, {benchmarks['date'][:10]}, commit {facts['commit']}; {software}.",
            LEGEND,
            f"Ceilings: a copy {ceilings['copy_gb_per_s']:.0f} GB/s, a product {ceilings['bf16_tflop_per_s']:.0f} "
            f"TFLOP/s; the shortest time that this clock can show is {time_text(ceilings['call_s'])}.",
            markdown_table(heads, [line(row, ceilings) for row in benchmarks["rows"]]),
        ]
    )


def line(row: dict[str, Any], ceilings: dict[str, float]) -> list[str]:
    ours, ratios = row["results"].get(OURS, {}), row["ratios"]
    cold, warm = ours.get("median_s"), ours.get("warm_s")
    rate, share = rate_and_share(row, ceilings, cold) if cold else ("–", "–")
    peers = {n: r for n, r in ratios.items() if r is not None and not n.startswith((EAGER, COMPILED, COPY))}
    peer = min(peers, key=lambda name: peers[name]) if peers else None
    return [
        f"{row['op']} {row['case']}",
        "×".join(map(str, row["shape"])),
        row["dtype"],
        *("–" if seconds is None else time_text(seconds) for seconds in (cold, warm)),
        rate,
        share,
        *("–" if (ratio := ratios.get(name)) is None else f"{ratio:.1f}" for name in (EAGER, COMPILED)),
        "–" if peer is None else f"{peers[peer]:.1f} {peer}",
    ]


def rate_and_share(row: dict[str, Any], ceilings: dict[str, float], seconds: float) -> tuple[str, str]:
    """By whichever takes longer at its ceiling, moving the bytes or multiplying."""
    gigabytes, teraflops = row["bytes"] / 1e9, row["flops"] / 1e12
    moving, multiplying = gigabytes / ceilings["copy_gb_per_s"], teraflops / ceilings["bf16_tflop_per_s"]
    amount, unit = (gigabytes, "GB/s") if moving >= multiplying else (teraflops, "TFLOP/s")
    rate = amount / seconds
    text = f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"
    return f"{text} {unit}", f"{max(moving, multiplying) / seconds:.0%}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), "".join(sys.argv[3:])))
