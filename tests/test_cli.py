# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, what it refuses, and how it fails without the native library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fastdiff
import pytest
import torch
from fastdiff.cli import main

from tests.kit.backends import usable_isas


def test_info_names_versions_builds_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for wanted in (
        fastdiff.__version__,
        torch.__version__,
        "instruction sets built",
        "in use",
        fastdiff.isa(),
    ):
        assert wanted in text
    if not torch.cuda.is_available():
        assert "no:" in text, "says why CUDA is not available"


def test_info_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["torch"] == torch.__version__
    assert set(usable_isas()) <= set(json.dumps(facts).replace('"', " ").split())


def test_unknown_commands_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["flatten"])
    assert ended.value.code == 2
    assert "flatten" in capsys.readouterr().err


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    package = Path(fastdiff.__file__).parent
    ignore = shutil.ignore_patterns("libfastdiff.so", "__pycache__")
    shutil.copytree(package, tmp_path / "fastdiff", ignore=ignore)
    run = subprocess.run(
        [sys.executable, "-c", "import fastdiff"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "ImportError: fastdiff: libfastdiff.so is not beside" in run.stderr
    assert "pip install ." in run.stderr
