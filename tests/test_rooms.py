# SPDX-License-Identifier: Apache-2.0
"""The layout of the repository, as a test: which line may stand where, and that no room lacks a part."""

from __future__ import annotations

import importlib
import io
import re
import tokenize
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ["solver", "guidance", "attention", "wavelet", "quant"]
ROOMS = sorted(path for family in FAMILIES for path in (ROOT / "csrc" / family).glob("*/"))
OPS = [room.name for room in ROOMS]
each_room = pytest.mark.parametrize("room", ROOMS, ids=OPS)

NATIVE = (".h", ".cuh", ".cpp", ".cu")
SOURCE_SUFFIXES = (*NATIVE, ".py", ".pyi", ".cmake", ".map", ".toml", ".yaml", ".sh")
SOURCE_NAMES = ("CMakeLists.txt", "Makefile", "MANIFEST.in", ".clang-format", ".gitignore", "run")
IGNORED = re.compile(r"(^|/)(\.venv|\.git|build|dist|__pycache__|\.\w+_cache|[\w.]+\.egg-info)(/|$)")


def is_source(name: str) -> bool:
    return name.endswith(SOURCE_SUFFIXES) or name.rpartition("/")[2] in SOURCE_NAMES


@cache
def files(*folders: str) -> tuple[str, ...]:
    """Every source file below the folders, as a path from the root with forward slashes."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    names = (path.relative_to(ROOT).as_posix() for path in found)
    return tuple(sorted(name for name in names if is_source(name) and not IGNORED.search(name)))


@cache
def code(name: str) -> str:
    """A file without its comments and, in Python, without its strings: what the compiler acts on."""
    text = (ROOT / name).read_text()
    if name.endswith(NATIVE):
        return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    if not name.endswith(".py"):
        return text
    lines = text.splitlines(keepends=True)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING):
            continue
        (first, begin), (last, end) = token.start, token.end
        if first == last:
            lines[first - 1] = lines[first - 1][:begin] + " " * (end - begin) + lines[first - 1][end:]
        else:
            lines[first - 1] = lines[first - 1][:begin] + "\n"
            lines[first:last] = ["\n"] * (last - first)
    return "".join(lines)


# ---- where a line of code knows its room ------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """In ``folders``, lines that match ``pattern`` may stand only in files that match one of ``homes``."""

    name: str
    pattern: str
    example: str
    folders: tuple[str, ...]
    homes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


FAMILY_FILES = rf"python/fastdiff/({'|'.join(FAMILIES)})/\w+\.py"

RULES = [
    Rule(
        "torch headers stay in the adaptors",
        r'#include\s*[<"](torch|ATen|c10)/',
        "#include <torch/csrc/stable/tensor.h>",
        ("csrc",),
        (r"csrc/core/host\.h", r".*_op\.cpp"),
    ),
    Rule(
        "pybind11 stays in the adaptors",
        r'#include\s*[<"](pybind11/|core/python\.h)',
        '#include "core/python.h"',
        ("csrc",),
        (r"csrc/core/(python|exchange)\.h", r"csrc/module\.cpp", r".*_py\.(cpp|h)"),
    ),
    Rule(
        "kernels are launched in one way",
        r"<<<",
        "kernel<<<grid, block>>>(params);",
        ("csrc",),
        (r"csrc/core/\w+\.cuh",),
    ),
    Rule(
        "intrinsics stay behind the lanes",
        r"\b_mm\d*_\w+|\b_tile_\w+|\bv(ld|st)\dq?_\w+|<(immintrin|arm_neon)\.h>",
        "auto v = _mm256_loadu_ps(p);",
        ("csrc",),
        (r"csrc/core/(lanes(_avx2|_avx512|_int8)?|dots|nibbles|tiles_amx)\.h",),
    ),
    Rule(
        "PTX stays in its headers",
        r"\basm\b",
        'asm volatile("cp.async.wait_all;");',
        ("csrc",),
        (r"csrc/core/ptx(_sm90)?\.cuh", r"csrc/core/lanes\.h"),
    ),
    Rule(
        "arguments are refused at the desk",
        r"\brefuse\(|\bRefusal\(|STD_TORCH_CHECK",
        'refuse(argument, " must be float32");',
        ("csrc",),
        (r".*_desk\.cpp", r".*_op\.(cpp|h)", r"csrc/core/(view|host|python)\.h", r"csrc/core/space\.cpp"),
    ),
    Rule(
        "torch operators are named by their own file",
        r"\btorch\.(library|ops)\b|\bfrom torch import (library|ops)\b",
        "torch.ops.fastdiff.linear_step(x)",
        ("python",),
        # The execution of a plan calls the op itself: its wrapper's checks were made when the plan was.
        (r"python/fastdiff/_native\.py", FAMILY_FILES, r"python/fastdiff/planners/_execution\.py"),
    ),
    Rule(
        "environment variables are read in two places",
        r"\bos\.(environ|getenv)\b|\bfrom os import\b|\b(secure_)?getenv\s*\(",
        "os.environ['FASTDIFF_CUDA']",
        ("csrc", "python", "bench", "tools", "examples"),
        (r"python/fastdiff/_native\.py",),
    ),
    Rule(
        "only commands print",
        r"(?<![\w.])print\(|\bsys\.std(out|err)\b",
        "print(x)",
        ("python",),
        (r"python/fastdiff/cli/\w+\.py",),
    ),
    Rule(
        "native code neither prints nor ends the process",
        r"\b(f?printf|puts|abort|_?exit)\s*\(|std::(cout|cerr|clog|terminate)\b",
        "std::abort();",
        ("csrc",),
    ),
    Rule(
        "time is measured in bench",
        r"\bperf_counter|\btime\.(time|monotonic|process_time)\b|\bcuda\.Event\(|\bcudaEvent|std::chrono",
        "begin = time.perf_counter()",
        ("csrc", "python", "tests"),
        # The emulator has no bench: that it is quick enough for the suite is a test.
        (r"tests/test_simt\.py",),
    ),
    Rule(
        "nothing is caught without being named",
        r"\bexcept\s*:|\bexcept\s+(Base)?Exception\b|\bcatch\s*\(\.\.\.\)",
        "except Exception:",
        ("csrc", "python", "bench", "tools", "examples"),
    ),
    Rule(
        "nothing is unpickled",
        r"\bpickle\b|\btorch\.load\(|allow_pickle",
        "torch.load(path)",
        ("python", "bench", "tools", "examples"),
    ),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=str)


@each_rule
def test_line_is_at_home(rule: Rule) -> None:
    strays = [
        f"{name}:{number}: {line.strip()}"
        for name in files(*rule.folders)
        if not any(re.fullmatch(home, name) for home in rule.homes)
        for number, line in enumerate(code(name).splitlines(), start=1)
        if re.search(rule.pattern, line)
    ]
    assert strays == []


@each_rule
def test_rule_finds_what_it_forbids(rule: Rule) -> None:
    assert re.search(rule.pattern, rule.example)


# ---- what may include what --------------------------------------------------------------------------


@pytest.mark.parametrize("name", files("csrc"))
def test_includes_point_downwards(name: str) -> None:
    """A room includes itself, its family and the floor; the floor only itself, and its CUDA half the emulator."""
    own = name.removeprefix("csrc/").rpartition("/")[0] + "/"
    family = own.partition("/")[0]
    emulator = ("simt/",) if re.fullmatch(r"csrc/core/\w+\.cuh", name) else ()
    included = re.findall(r'#include "([^"]+)"', code(name))
    shared = rf"{family}/\w+\.(h|cuh)"
    allowed = ("core/", own, *emulator)
    assert [p for p in included if not p.startswith(allowed) and not re.fullmatch(shared, p)] == []


# ---- every room is complete -------------------------------------------------------------------------

PARTS = [
    "csrc/{family}/{op}/{op}.h",
    "csrc/{family}/{op}/{op}_math.h",
    "csrc/{family}/{op}/{op}_desk.cpp",
    "csrc/{family}/{op}/{op}_op.cpp",
    "csrc/{family}/{op}/{op}_py.cpp",
    "csrc/{family}/{op}/{op}_cpu.cpp",
    "csrc/{family}/{op}/{op}_cuda.cu",
    "python/fastdiff/{family}/{op}.py",
    "tests/{family}/test_{op}.py",
    "bench/{op}.py",
]


def test_there_are_rooms() -> None:
    assert "linear_step" in OPS


@pytest.mark.parametrize("part", PARTS)
@each_room
def test_room_has_part(room: Path, part: str) -> None:
    name = part.format(family=room.parent.name, op=room.name)
    assert (ROOT / name).is_file(), f"{name} is missing"


@each_room
def test_room_holds_nothing_else(room: Path) -> None:
    assert [path.name for path in room.iterdir() if not path.name.startswith(room.name)] == []


@pytest.mark.parametrize(
    ("folders", "belongs_to_no_room"),
    [
        ([f"python/fastdiff/{family}" for family in FAMILIES], r"_\w+"),
        ([f"tests/{family}" for family in FAMILIES], r"conftest|__init__"),
        (["bench"], r"__init__|__main__|main|kit|report|peers"),
    ],
    ids=["python", "tests", "bench"],
)
def test_file_belongs_to_a_room(folders: list[str], belongs_to_no_room: str) -> None:
    stems = [Path(name).stem for name in files(*folders) if name.endswith(".py")]
    strays = [stem for stem in stems if not stem.removeprefix("test_").startswith(tuple(OPS))]
    assert [stem for stem in strays if not re.fullmatch(belongs_to_no_room, stem)] == []


@each_room
@pytest.mark.parametrize("package", ["fastdiff", "fastdiff.{family}"])
def test_op_is_exported(room: Path, package: str) -> None:
    module = importlib.import_module(package.format(family=room.parent.name))
    assert room.name in module.__all__
    assert callable(getattr(module, room.name))


# plan.py is what planners make; every other file is one planner, a function of the same name.
PLANNERS = sorted({path.stem for path in (ROOT / "python/fastdiff/planners").glob("[!_]*.py")} - {"plan"})
each_planner = pytest.mark.parametrize("planner", PLANNERS)


@each_planner
def test_planner_is_exported(planner: str) -> None:
    module = importlib.import_module("fastdiff.planners")
    assert planner in module.__all__
    assert callable(getattr(module, planner))


@each_planner
def test_planner_is_tested(planner: str) -> None:
    texts = [path.read_text() for path in (ROOT / "tests/planners").glob("test_*.py")]
    assert any(re.search(rf"\bplanners(\.| import (\w+, )*){planner}\b", text) for text in texts)


@each_room
@pytest.mark.parametrize("document", ["docs/ops.md", "README.md"])
def test_op_is_documented(room: Path, document: str) -> None:
    assert re.search(rf"\b{room.name}\b", (ROOT / document).read_text())


# ---- every file -------------------------------------------------------------------------------------

EVERYWHERE = ("csrc", "python", "tests", "bench", "tools", "examples", "cmake", ".ci")
TOP = tuple(sorted(path.name for path in ROOT.iterdir() if path.is_file() and is_source(path.name)))
MAX_LINES = 600


@pytest.mark.parametrize("name", [*files(*EVERYWHERE), *TOP])
def test_file_says_its_licence(name: str) -> None:
    head = (ROOT / name).read_text().splitlines()[:2]
    assert any("SPDX-License-Identifier: Apache-2.0" in line for line in head)


@pytest.mark.parametrize("name", files("csrc", "python", "tests", "bench"))
def test_file_can_be_read_in_one_sitting(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "package", ["python/fastdiff", *(f"python/fastdiff/{family}" for family in FAMILIES), "bench"]
)
def test_package_is_marked(package: str) -> None:
    # A folder without this file is left out of the wheel.
    if (ROOT / package).is_dir():
        assert (ROOT / package / "__init__.py").is_file()


def test_formatters_have_one_version() -> None:
    """The hooks of pre-commit and the extra that `make check` uses."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = set(re.findall(r"additional_dependencies: \[(\S+)\]", hooks))
    formatters = ("ruff", "clang-format")
    assert pinned == {pin for pin in project["optional-dependencies"]["dev"] if pin.startswith(formatters)}
