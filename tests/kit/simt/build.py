# SPDX-License-Identifier: Apache-2.0
"""Compiles .cu files with g++ against the emulator: the module of all kernels, and stand-alone test programs.

Objects lie in build/simt/ and are compiled again only when the command, the compiler or the content of a file
that went into them has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

KIT = Path(__file__).resolve().parent
ROOT = KIT.parents[2]
CSRC = ROOT / "csrc"
OUT = ROOT / "build" / "simt"
MODULE = "_simt"
JOBS = 2

Checks = Literal["memory", "races", "none"]
"""What a build looks for.

memory: ASan and UBSan. races: UBSan, and the detector of races.cpp, which sees every access to shared memory.
none: only what the emulator itself checks; the fastest to compile and run.
"""

_BASE = [
    *("-std=c++20", "-g1", "-gdwarf-4", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer"),
    *("-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    "-fno-strict-aliasing",  # nvcc's device code knows no such rules
    "-Wa,--no-warn",  # gcc puts a template's noinit variable in a section of another type than it announced
]
# What ASan finds as well, or what is none of a kernel's mistakes, is left out: a third of the time to compile.
_UNDEFINED = [
    *("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    "-fno-sanitize=null,object-size,vptr,nonnull-attribute,returns-nonnull-attribute,return,builtin,pointer-overflow",
]
_ADDRESS = ["-fsanitize=address", *_UNDEFINED]
# On what tests give them kernels take longer to compile than to run, so -O0; not with the race detector, which is
# called at each access.
# NOTE: it implements the functions that -fsanitize=thread calls: nothing is linked with libtsan.
_KERNEL_FLAGS: dict[Checks, list[str]] = {
    "memory": ["-O0", *_ADDRESS],
    "races": ["-O1", "-fsanitize=thread", *_UNDEFINED],
    "none": ["-O0"],
}
_LINK_FLAGS: dict[Checks, list[str]] = {"memory": _ADDRESS, "races": _ADDRESS, "none": []}
_RACE_DETECTOR = KIT / "races.cpp"


def compiler() -> str:
    """The C++ compiler: $CXX, else g++. It has to be gcc 11 or later."""
    return os.environ.get("CXX") or "g++"


def build_module(checks: Checks = "memory") -> Path:
    """Build the Python extension `_simt`, which has the kernels of csrc/, and return its path.

    It needs ASan's runtime in the process before it: see `preload_environment`.
    """
    version = re.search(r'__version__ = "(.+)"', (ROOT / "python/fastdiff/_version.py").read_text())
    if version is None:
        raise RuntimeError("python/fastdiff/_version.py does not state a version")
    return build_extension(_module_sources(checks), MODULE, checks, {"FASTDIFF_VERSION": f'"{version[1]}"'})


def build_extension(
    sources: Sequence[Path], name: str, checks: Checks = "memory", definitions: dict[str, str] | None = None
) -> Path:
    """Build a Python extension `name` from any sources and return its path."""
    import pybind11

    define = {
        "FASTDIFF_HAS_CUDA": "1",
        "FASTDIFF_ISAS": '""',
        "FASTDIFF_CUDA_ARCHS": '"simt"',
        "FASTDIFF_MODULE_NAME": name,
        **(definitions or {}),
    }
    flags = [f"-D{key}={value}" for key, value in define.items()]
    for folder in (pybind11.get_include(), sysconfig.get_path("include")):
        flags += ["-isystem", folder]
    target = _folder(name, checks) / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    return _build(sources, target, flags, ["-shared"], checks)


def build_library(sources: Sequence[Path], name: str, checks: Checks = "none") -> Path:
    """Build a shared library, for ctypes, and return its path."""
    return _build(sources, _folder(name, checks) / f"{name}.so", [], ["-shared"], checks)


def build_program(source: Path | Sequence[Path], name: str, checks: Checks = "memory") -> Path:
    """Build a program from one or several .cu files, one of which has main(), and return its path."""
    sources = [source] if isinstance(source, Path) else list(source)
    return _build(sources, _folder(name, checks) / name, [], [], checks)


def preload_environment(checks: Checks) -> dict[str, str]:
    """The environment in which a process that was not built with sanitizers can load such an extension."""
    environment = dict(os.environ)
    environment["ASAN_OPTIONS"] = "detect_leaks=0"
    environment["UBSAN_OPTIONS"] = "print_stacktrace=1:abort_on_error=1"
    if checks != "none":
        environment["LD_PRELOAD"] = " ".join(_library(name) for name in ("libasan.so", "libstdc++.so.6"))
    return environment


def _module_sources(checks: Checks) -> list[Path]:
    core = [p for p in CSRC.glob("core/*.cpp") if not p.name.endswith("_op.cpp")]
    rooms = [p for pattern in ("*_desk.cpp", "*_py.cpp", "*.cu") for p in CSRC.rglob(pattern)]
    if checks == "races":  # no test looks for those of the others, whose kernels take minutes to compile
        rooms = [p for p in rooms if {"solver", "guidance", "wavelet"} & set(p.parts)]
    return [*sorted({*core, *rooms}), CSRC / "module.cpp"]


def _folder(name: str, checks: Checks) -> Path:
    return OUT / name / checks


def _build(sources: Sequence[Path], target: Path, flags: list[str], link: list[str], checks: Checks) -> Path:
    units = _units([*sources, _RACE_DETECTOR] if checks == "races" else sources)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target), ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(lambda unit: _compile(unit, target.parent, flags, checks), units))
        command = [compiler(), *link, *_LINK_FLAGS[checks], *map(str, objects), "-o", str(target), "-ldl"]
        _make(target, command, objects)
    return target


def _units(sources: Sequence[Path]) -> list[list[Path]]:
    """What is compiled at a time: a file, or all that see pybind11, whose templates take longer than what they do."""
    adaptors = [p for p in sources if p.name == "module.cpp" or p.name.endswith("_py.cpp")]
    others = [[p] for p in sources if p not in adaptors]
    return [adaptors, *others] if adaptors else others


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """No other process builds the same target meanwhile."""
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(unit: Sequence[Path], beside: Path, flags: list[str], checks: Checks) -> Path:
    *first, source = unit
    name = os.path.relpath(source, ROOT).replace("../", "").replace("/", ".")
    # What is no kernel is compiled alike for all checks that link with the same runtime.
    is_shared = source.suffix != ".cu" and source != _RACE_DETECTOR and checks != "none" and not first
    folder = beside.parent / "host" if is_shared else beside / "objects"
    target, depends = folder / f"{name}.o", folder / f"{name}.d"
    folder.mkdir(parents=True, exist_ok=True)
    if source == _RACE_DETECTOR:
        checked = ["-O1"]
    elif source.suffix == ".cu":
        checked = _KERNEL_FLAGS[checks]
    else:
        checked = ["-O0", *_LINK_FLAGS[checks]]
    includes = ["-DFASTDIFF_SIMT=1", f"-I{KIT}", f"-I{CSRC}", *_toolkit()]
    includes += [word for path in first for word in ("-include", str(path))]
    language = ["-x", "c++"] if source.suffix == ".cu" else []
    output = ["-MMD", "-MF", str(depends), "-c", *language, str(source), "-o", str(target)]
    with _alone(target):
        _make(target, [compiler(), *_BASE, *checked, *flags, *includes, *output], unit, depends)
    return target


def _make(target: Path, command: list[str], inputs: Sequence[Path], depends: Path | None = None) -> None:
    """Run `command` unless `target` was made by the same command from the same content."""
    stamp = target.with_name(target.name + ".key")
    if target.exists() and stamp.exists() and stamp.read_text() == _key(command, inputs, depends):
        return
    stamp.unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    stamp.write_text(_key(command, inputs, depends))


def _key(command: list[str], inputs: Sequence[Path], depends: Path | None) -> str:
    files = set(inputs)
    if depends is not None and depends.exists():
        words = depends.read_text().replace("\\\n", " ").split(":", 1)[1].split()
        files.update(Path(word) for word in words)
    digest = hashlib.sha256("\0".join([_compiler_version(), *command]).encode())
    for file in sorted(files):
        digest.update(str(file).encode())
        digest.update(file.read_bytes() if file.exists() else b"missing")
    return digest.hexdigest()


@cache
def _compiler_version() -> str:
    return _output([compiler(), "--version"])


@cache
def _library(name: str) -> str:
    return str(Path(_output([compiler(), f"-print-file-name={name}"])).resolve())


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@cache
def toolkit_include() -> Path | None:
    """The include folder of a CUDA toolkit, if one is installed: for cuda_fp16.h and its kin only."""
    nvcc = shutil.which("nvcc")
    beside_nvcc = Path(nvcc).resolve().parents[1] if nvcc else None
    homes = (os.environ.get("CUDA_HOME"), "/usr/local/cuda", beside_nvcc)
    includes = [Path(home) / "include" for home in homes if home]
    return next((include for include in includes if (include / "cuda_fp16.h").exists()), None)


def _toolkit() -> list[str]:
    include = toolkit_include()
    return ["-idirafter", str(include)] if include else []  # after ours, which has its own cuda_runtime.h
