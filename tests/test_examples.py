# SPDX-License-Identifier: Apache-2.0
"""Every program in examples/ runs by itself and prints what it is about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import fastdiff
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "examples"
MAX_LINES = 60

# What must be in the output of each program.
EXPECTED = {
    "adaptive_guidance": r"(.*cosine of epsilon: 4\d.*\n.*cosine of x0: 2\d\.\d % of the evaluations saved.*\n){2}",
    "any_diffusers_scheduler": r"(\w+: \w+ of order \d, relative difference \de-0[4-9]\n){5}\d\d classes|not installed",
    "compile_one_graph": r"10 steps, 1 graph, result finite: True",
    "cuda_graph": r"same bits as eager True" if torch.cuda.is_available() else r"no CUDA device",
    "guidance_methods": r"(\w.*: \d+ evaluations\n){14}saved guidance-methods.png",
    "inpainting_paste": r"given half: largest difference 0\.0e\+00\nother half: standard deviation 0\.5",
    "numpy_arrays": r"largest difference from NumPy [0-9]e-0[78]\n.*\n.*torch imported: False",
    "per_request_seeds": r"(.*same bits True\n){4}",
    "quantised_digits": r"dynamic: 21 layers, .* by [12]\.\d %.*\nstatic: .*\ntimestep: .* by [2-5]\.\d %",
    "replace_diffusers_step": r"fastdiff: relative error \d\.\de-0[6-9]|diffusers is not installed",
    "sparse_attention": r"2 attention modules compute \d\d% of the blocks, 8% .*\n.*by \d+\.\d%\n.*shows which",
    "wavelet_denoising": r"error [0-9]\.\de-0[67]\nnoisy 20\.0 dB, denoised 23\.\d dB\nsaved wavelet-denoising.png",
    "sample_gaussian": r"80 steps: mean 0\.7\d+, std 0\.20\d+, largest error \d\.\de-03",
}

# Without these there is nothing to show.
NEEDED = {
    "adaptive_guidance": ["safetensors"],
    "guidance_methods": ["safetensors", "matplotlib"],
    "quantised_digits": ["safetensors"],
    "sparse_attention": ["matplotlib"],
    "wavelet_denoising": ["matplotlib", "PIL", "pywt", "sklearn"],
}


def test_every_program_is_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_program_runs(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"{name}.py"
    for package in NEEDED.get(name, ()):
        pytest.importorskip(package)
    # The package that is under test, wherever it was imported from.
    environment = os.environ | {"PYTHONPATH": str(Path(fastdiff.__file__).parents[1]), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert re.search(EXPECTED[name], run.stdout), run.stdout


@pytest.mark.parametrize("name", EXPECTED)
def test_program_is_small(name: str) -> None:
    assert len((FOLDER / f"{name}.py").read_text().splitlines()) < MAX_LINES
