# SPDX-License-Identifier: Apache-2.0
"""Builds the native half of fastdiff with CMake. Everything declarative is in pyproject.toml.

Environment variables, all optional:

    FASTDIFF_CUDA         1: compile the CUDA kernels; 0: do not. Unset: compile them if nvcc is found,
                          through CUDACXX, CUDA_HOME (or CUDA_PATH), PATH and /usr/local/cuda, in this order.
    TORCH_CUDA_ARCH_LIST  compute capabilities to compile for, separated by spaces or semicolons: "9.0a" or
                          "8.0;9.0a;10.0f+PTX". Unset: Ampere to Blackwell, whatever GPU this machine has.
    MAX_JOBS              compiler processes at a time. Unset: one per CPU and per 2 GiB of available memory.
    CMAKE_ARGS            more arguments for CMake, e.g. "-DCMAKE_BUILD_TYPE=Debug".
    CXX, CXXFLAGS         the C++ compiler and its additional flags, as CMake reads them.

The run-time variable FASTDIFF_CPU_ISA is read in python/fastdiff/_native.py.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()

# Machine code for each generation (that for 8.0 serves 8.6 and 8.9 too), and PTX of the oldest for the rest.
DEFAULT_ARCHS = "8.0+PTX 9.0a 10.0f 12.0f"
# nvcc knows the Blackwell family targets from 12.9 on.
DEFAULT_ARCHS_BEFORE_12_9 = "8.0+PTX 9.0a"
# What one compiler process may need: nvcc on the larger kernels.
BYTES_PER_JOB = 2 << 30


def find_nvcc() -> str | None:
    """The CUDA compiler, looked for where users say it is before where it usually is."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [os.environ.get("CUDACXX"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    found = (shutil.which(candidate) for candidate in (*candidates, "/usr/local/cuda/bin/nvcc") if candidate)
    return next(filter(None, found), None)


def chosen_nvcc() -> str | None:
    """nvcc if the CUDA kernels are to be built, or None."""
    wanted = os.environ.get("FASTDIFF_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"FASTDIFF_CUDA must be 0, 1 or unset, got {wanted!r}")
    nvcc = None if wanted == "0" else find_nvcc()
    if wanted == "1" and nvcc is None:
        raise SystemExit("FASTDIFF_CUDA=1, but nvcc is not in CUDACXX, CUDA_HOME, PATH or /usr/local/cuda")
    return nvcc


def default_archs(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", text)
    if release is None:
        raise SystemExit(f"{nvcc} --version does not name a release:\n{text}")
    recent = (int(release[1]), int(release[2])) >= (12, 9)
    return DEFAULT_ARCHS if recent else DEFAULT_ARCHS_BEFORE_12_9


def cmake_archs(arch_list: str) -> str:
    """TORCH_CUDA_ARCH_LIST as CMAKE_CUDA_ARCHITECTURES: "8.0+PTX 9.0a" is "80;90a-real"."""
    targets = []
    for entry in re.split(r"[\s;]+", arch_list.strip(" ;")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST: {entry!r} is no compute capability; write e.g. '8.0 9.0a 10.0f+PTX', "
                f"got {arch_list!r}"
            )
        targets.append(f"{match[1]}{match[2]}{match[3]}{'' if match[4] else '-real'}")
    return ";".join(dict.fromkeys(targets))


def job_count() -> int:
    if jobs := os.environ.get("MAX_JOBS"):
        if not jobs.isdigit() or int(jobs) == 0:
            raise SystemExit(f"MAX_JOBS must be a positive integer, got {jobs!r}")
        return int(jobs)
    # Not the free pages of sysconf: most of a busy machine's memory is file cache, there for the taking.
    available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    jobs_in_memory = int(available[1]) * 1024 // BYTES_PER_JOB if available else 1
    return max(1, min(len(os.sched_getaffinity(0)), jobs_in_memory))


def tool(name: str, folder_attribute: str) -> str:
    """cmake or ninja, from the Python package of that name if it is installed: PATH need not have it."""
    try:
        folder = getattr(importlib.import_module(name), folder_attribute, None)
    except ImportError:
        folder = None
    found = shutil.which(name, path=folder) or shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} is needed to build fastdiff: pip install {name}")
    return found


def run(*command: str | Path) -> None:
    if subprocess.run(command).returncode != 0:
        raise SystemExit("fastdiff: the build failed; the first error above says why")


class CMakeBuild(build_ext):
    """Builds both libraries and puts them into the package's folder; ninja does the least that is needed."""

    def build_extension(self, ext: Extension) -> None:
        package = (ROOT / self.get_ext_fullpath(ext.name)).parent
        build = (ROOT / self.build_temp).resolve()
        cmake = tool("cmake", "CMAKE_BIN_DIR")
        package.mkdir(parents=True, exist_ok=True)
        run(cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *self.cmake_arguments())
        run(cmake, "--build", build, "--parallel", str(job_count()))
        run(cmake, "--install", build, "--prefix", package)

    def copy_extensions_to_source(self) -> None:
        """For editable installs: setuptools by itself copies only the one library that it knows of."""
        super().copy_extensions_to_source()
        shutil.copy2(Path(self.build_lib, "fastdiff", "libfastdiff.so"), ROOT / "python" / "fastdiff")

    def cmake_arguments(self) -> list[str]:
        # Passed on every run, so that a build folder follows its user from one environment to the next.
        arguments = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'BIN_DIR')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
        ]
        nvcc = chosen_nvcc()
        arguments.append(f"-DFASTDIFF_CUDA={'ON' if nvcc else 'OFF'}")
        if nvcc:
            archs = cmake_archs(os.environ.get("TORCH_CUDA_ARCH_LIST") or default_archs(nvcc))
            arguments += [
                f"-DCMAKE_CUDA_COMPILER={nvcc}",
                f"-DFASTDIFF_CUDA_ARCHS={archs}",
                f"-DFASTDIFF_NVCC_THREADS={min(job_count(), 2)}",
            ]
        return arguments + shlex.split(os.environ.get("CMAKE_ARGS", ""))


if __name__ == "__main__":
    bench_packages = ["fastdiff.bench", *(f"fastdiff.bench.{name}" for name in find_packages("bench"))]
    setup(
        packages=[*find_packages("python"), *bench_packages],
        package_dir={"": "python", "fastdiff.bench": "bench"},
        # The one extension that setuptools knows of has no sources: CMake builds it, and libfastdiff.so too.
        # It is here so that the wheel gets the tag of the interpreter that fastdiff._C is built for.
        ext_modules=[Extension("fastdiff._C", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
    )
