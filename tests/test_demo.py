# SPDX-License-Identifier: Apache-2.0
"""`fastdiff demo`: both samplers give the same digits, the picture is there, and a difference fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("safetensors")

from fastdiff import cli
from fastdiff.cli import demo


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROWS", 2)
    monkeypatch.setattr(demo, "ROUNDS", 1)
    torch.set_num_threads(
        1
    )  # the model's many small kernels stall on a busy machine if each waits for a second thread


def run(folder: Path, *arguments: str) -> int:
    return cli.main(["demo", "--output", str(folder / "digits.png"), *arguments])


@pytest.mark.parametrize("solver", sorted(demo.SOLVERS))
def test_both_samplers_give_the_same_images(solver: str) -> None:
    theirs, ours = demo.sample_both(solver, 20, 3.0, 0)
    assert ours.images.shape == (20, 1, 8, 8)
    assert float((theirs.images - ours.images).abs().max()) <= demo.TOLERANCE


def test_images_are_digits() -> None:
    """Ink on paper, and one digit's images are more like each other than like another digit's."""
    _, ours = demo.sample_both("dpm_solver_pp", 20, 3.0, 0)
    first, second = ours.images.reshape(2, 10, 64)
    assert float(ours.images.min()) < -0.9
    assert float(ours.images.max()) > 0.9
    distance = torch.cdist(first, second)
    assert int((distance.argmin(1) == torch.arange(10)).sum()) >= 7


def test_demo_writes_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--steps", "5", "--seed", "3") == 0
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "the images agree" in printed
    assert printed.count("of it in the solver") == 2


def test_demo_fails_if_the_images_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = demo.sample_both("ddim", 5, 3.0, 0)
    wrong = ours.images.clone()
    wrong[7, 0, 3, 3] += 2 * demo.TOLERANCE
    monkeypatch.setattr(demo, "sample_both", lambda *_: (theirs, dataclasses.replace(ours, images=wrong)))
    assert run(tmp_path) == 1
    assert "THE IMAGES DIFFER" in capsys.readouterr().out
    assert (tmp_path / "digits.png").is_file()


def test_grid_puts_digits_into_columns() -> None:
    labels = torch.arange(10.0).repeat(demo.ROWS)[:, None, None, None].expand(-1, 1, 8, 8)
    picture = demo.grid(labels)
    assert list(picture.shape) == [demo.ROWS * 10 - 2, 98]
    assert [float(picture[row, 10 * n]) for row in (0, 10) for n in range(10)] == [*range(10), *range(10)]
