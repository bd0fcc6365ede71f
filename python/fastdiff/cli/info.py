# SPDX-License-Identifier: Apache-2.0
"""``fastdiff info``: what is installed, what was built, what this machine can run, and why not more."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fastdiff
from fastdiff import _native
from fastdiff._version import __version__

Section = dict[str, Any]

#: Optional packages, and the extra that brings each.
OPTIONAL_PACKAGES = {
    "diffusers": "bench",
    "matplotlib": "bench",
    "pytest-benchmark": "bench",
    "rich": "bench",
    "safetensors": "demo",
    "scikit-learn": "demo",
    "cupy-cuda13x": "cupy",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(args: argparse.Namespace) -> int:
    report = gather()
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    return 0


def gather() -> dict[str, Section]:
    """Everything that ``fastdiff info`` prints, as plain data."""
    module = importlib.import_module("fastdiff._C")
    facts = module.facts()
    return {
        "versions": _versions(),
        "build": _build(module, facts),
        "cpu": {
            "name": _cpu_name(),
            "instruction sets built": facts["isas"],
            "best supported": facts["isa_detected"],
            "in use": fastdiff.isa(),
            "torch threads": torch.get_num_threads(),
        },
        "cuda": _cuda(module, facts),
        "optional packages": {name: _version_or_hint(name) for name in OPTIONAL_PACKAGES},
    }


def as_text(report: dict[str, Section]) -> str:
    """One paragraph for each section, one aligned line for each fact."""
    width = max(len(key) for section in report.values() for key in section)
    lines: list[str] = []
    for title, section in report.items():
        lines += [title, *(f"  {key:<{width}}  {_value_text(value)}" for key, value in section.items()), ""]
    return "\n".join(lines).rstrip()


def _versions() -> Section:
    return {
        "fastdiff": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda or "none (a CPU-only torch)",
        "numpy": metadata.version("numpy"),
    }


def _build(module: ModuleType, facts: dict[str, Any]) -> Section:
    return {
        "operators": str(_native.LIBRARY_PATH),
        "module": module.__file__,
        "compiler": facts["compiler"],
        "CUDA architectures": facts["cuda_archs"] or "none (built without nvcc, or with FASTDIFF_CUDA=0)",
    }


def _cuda(module: ModuleType, facts: dict[str, Any]) -> Section:
    cuda = module.cuda_facts()
    section: Section = {"driver": cuda["driver"], "runtime": cuda["runtime"]}
    for index, device in enumerate(cuda["devices"]):
        section[f"device {index}"] = device
    section["available"] = _why_no_cuda(facts["has_cuda"], cuda) or "yes"
    return section


def _why_no_cuda(built: bool, cuda: dict[str, Any]) -> str | None:
    """The first thing that keeps CUDA tensors from the kernels, in the order in which to mend it."""
    if not built:
        return "no: fastdiff was built without CUDA; install nvcc and rebuild with FASTDIFF_CUDA=1"
    if cuda["driver"] is None:
        return "no: this machine has no CUDA driver"
    if cuda["unavailable"]:
        return f"no: {cuda['unavailable']}"
    if torch.version.cuda is None:
        return "no: this torch is CPU-only, so that there are no CUDA tensors to work on"
    return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version_or_hint(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"missing: pip install 'torch-fastdiff[{OPTIONAL_PACKAGES[name]}]'"


def _value_text(value: object) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "none" if value is None else str(value)
