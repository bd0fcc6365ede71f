# SPDX-License-Identifier: Apache-2.0
"""What the documents claim: code runs and prints what they say, links lead somewhere, generated parts are fresh."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import io
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import fastdiff
import pytest
import torch
from fastdiff import guidance, planners
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


# ---- code ------------------------------------------------------------------------------------------------------


@each_document
def test_python_runs_and_prints_what_follows(path: Path) -> None:
    """The blocks of a document run one after the other; a text block right after one is its output."""
    found = blocks(path)
    namespace: dict[str, Any] = {}
    for n, (language, text) in enumerate(found):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, f"{path.name}, block {n}", "exec"), namespace)
        if printed.getvalue():
            assert found[n + 1] == ("text", printed.getvalue())


@each_document
def test_languages_are_known(path: Path) -> None:
    assert {language for language, _ in blocks(path)} <= {"python", "text", "sh", "math"}


SHELL = [
    (path.name, line)
    for path in DOCUMENTS
    for lang, text in blocks(path)
    if lang == "sh"
    for line in text.splitlines()
]


@pytest.mark.parametrize(("document", "line"), SHELL)
def test_commands_exist(document: str, line: str) -> None:
    """`make` targets, subcommands of `fastdiff` and `pip install` are looked up, not carried out."""
    command, *arguments = line.partition("#")[0].split()
    if command == "make":
        assert shutil.which("make"), "make is needed"
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[-1] in targets
    elif command == "fastdiff":
        subprocess.run([sys.executable, "-m", "fastdiff.cli", *arguments], check=True, capture_output=True)
    else:
        assert (command, arguments) == ("pip", ["install", "."]), f"{document}: nothing tests this command"
        assert (ROOT / "pyproject.toml").is_file()


# ---- names -----------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{path.name}: {target}"


@each_document
def test_named_files_and_tests_exist(path: Path) -> None:
    text = path.read_text()
    known = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`((?:tests|tools|bench|examples|csrc|docs|python|cmake)/[\w./]+)`", text):
        assert (ROOT / name).exists() or name.startswith("bench/results"), f"{path.name}: {name}"
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in known, f"{path.name}: {test}"


def test_variables_are_those_that_are_read() -> None:
    readme = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    setup = (ROOT / "setup.py").read_text()
    assert readme == {
        "FASTDIFF_CUDA",
        "TORCH_CUDA_ARCH_LIST",
        "MAX_JOBS",
        "CMAKE_ARGS",
        fastdiff._native.ISA_VARIABLE,
    }
    assert all(f'"{name}"' in setup for name in readme - {fastdiff._native.ISA_VARIABLE})


def test_project_is_described_as_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    readme = (ROOT / "README.md").read_text()
    assert "python3 (3.11 or later)" in readme
    assert project["requires-python"] == ">=3.11"
    named = {name for name in planners.__all__ if inspect.isfunction(getattr(planners, name))}
    assert named <= set(re.findall(r"`(\w+)`", readme))


# ---- docs/papers.md --------------------------------------------------------------------------------------------

PAPERS = re.findall(
    r"^\| (\d+) \| (.+?) \| (.+?) \| (\w+) \| (.+) \|$", (ROOT / "docs/papers.md").read_text(), re.MULTILINE
)
OPTIONS = {
    "maps",
    "mask",
    "channels",
    "gate_table",
    "clip_sample",
    "use_clipped_model_output",
    "guided([...])",
    "exact_third=True",
    "schedules.from_levels",
    "inside_plan",
}


def test_every_paper_has_a_row() -> None:
    assert [int(row[0]) for row in PAPERS] == list(range(1, 57))
    families = {name for row in PAPERS for name in row[2].split(", ")}
    assert families == {"solver", "guidance", "attention", "wavelet", "quant", "none yet", "none"}


@pytest.mark.parametrize("row", PAPERS, ids=lambda row: f"paper-{row[0]}")
def test_paper_names_what_exists(row: tuple[str, ...]) -> None:
    _, _, family, today, text = row
    names = set(re.findall(r"`([^`]+)`", text))
    known = set(planners.__all__) | set(fastdiff.__all__) | OPTIONS | {"schedules.flow"}
    guidances = {name for name in names if is_guidance(name)}
    assert names - guidances <= known
    assert today in ("planner", "guidance", "op", "table", "planned", "none")
    assert (today == "guidance") <= bool(guidances)
    assert (today == "op") <= bool(names & set(fastdiff.__all__))
    assert (today == "planner") <= bool(names & set(planners.__all__))
    assert (today == "none") == (family == "none")


def is_guidance(name: str) -> bool:
    """`CFG(channels=(0, 3))` and `Compose.guardians` are, if fastdiff.guidance has them."""
    head, _, attribute = name.partition("(")[0].partition(".")
    return head in guidance.__all__ and (not attribute or hasattr(getattr(guidance, head), attribute))


def test_papers_are_counted() -> None:
    said = dict(
        re.findall(
            r"^- \*\*(\w+)\*\*:.*?\((\d+) papers\)",
            (ROOT / "docs/papers.md").read_text(),
            re.MULTILINE | re.DOTALL,
        )
    )
    assert {kind: int(n) for kind, n in said.items()} == {
        kind: sum(row[3] == kind for row in PAPERS)
        for kind in ("planner", "guidance", "op", "table", "planned", "none")
    }


# ---- generated parts -------------------------------------------------------------------------------------------


def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results_are_the_committed_ones() -> bool:
    """Not so after `make bench`, and not known outside a git checkout."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "bench/results"]
    run = subprocess.run(command, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    return run is not None and run.returncode == 0 and not run.stdout


@pytest.mark.parametrize("name", ["docs/ops.md", "README.md", "docs/performance.md"])
def test_generated_parts_are_fresh(name: str) -> None:
    if name != "docs/ops.md" and not results_are_the_committed_ones():
        pytest.skip("`git status bench/results` shows results that are not committed, or there is no git")
    assert make_docs().documents()[ROOT / name] == (ROOT / name).read_text(), (
        "run `python tools/make_docs.py`"
    )


def test_results_are_shown_with_their_misses() -> None:
    """The section on results, for a made-up document of `fastdiff bench`."""
    rival = {"rival": "fastdiff"}
    row = {
        "id": "op/case/1x4/fp32",
        "op": "op",
        "case": "case",
        "shape": [1, 4],
        "dtype": "fp32",
        "results": {
            "fastdiff": {"median_s": 4e-6, "rival": None},
            "eager": {"median_s": 8e-6} | rival,
            "copy_": rival,
        },
        "ratios": {"eager": 2.0},
        "gb_per_s": 12.34,
        "copy_share": 0.5,
        "targets": [{"target": "≥ 6× eager", "met": False}],
    }
    facts = dict.fromkeys(
        ("device", "threads", "cores", "isa", "torch", "diffusers", "fastdiff", "commit"), "?"
    )
    data = {"date": "2026-01-01", "environment": facts, "rows": [row]}
    text = make_docs().result_section(ROOT / "bench/results/x.json", data)
    assert "| op case | 1×4 | fp32 | 4 µs | 2.0 | 12.3 | 50% |" in text
    assert "Targets: 0 of 1 met." in text
    assert "- op/case/1x4/fp32: ≥ 6× eager" in text


# ---- docs/performance.md ---------------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Counts operations on tensors of a given size, and the bytes of their operands."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.operations, self.bytes = elements, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        large = [t for t in leaves if isinstance(t, torch.Tensor) and t.numel() == self.elements]
        self.operations += bool(large)
        self.bytes += sum(t.numel() * t.element_size() for t in large)
        return result


@pytest.mark.parametrize(
    ("dtype", "operations", "per_element"), [(torch.float32, 13, 128), (torch.bfloat16, 15, 88)]
)
def test_traffic_of_diffusers_is_as_stated(dtype: torch.dtype, operations: int, per_element: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(20)
    x, uncond, cond = torch.randn(3, 1, 4, 8, 8).to(dtype).unbind()
    for t in scheduler.timesteps[:6]:
        with Traffic(x.numel()) as traffic:
            x = scheduler.step(uncond + 7.5 * (cond - uncond), t, x).prev_sample
    assert (traffic.operations, traffic.bytes) == (operations, per_element * x.numel())
    assert "| 13, bf16: 15 | 128 | 88 |" in (ROOT / "docs/performance.md").read_text()
