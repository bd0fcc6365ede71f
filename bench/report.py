# SPDX-License-Identifier: Apache-2.0
"""What was measured, as text, JSON and a comparison with an earlier run."""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fastdiff
import torch
from fastdiff.bench.kit import COPY, DTYPE_NAMES, Measurement, Row, Target

SCHEMA, VERSION = "fastdiff-bench", 1
Line = list[str]


# ---- where it was measured -----------------------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, Any]:
    """What a time depends on, as far as the machine tells."""
    return {
        "device": device_name(device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": fastdiff.isa(),
        "last_level_cache": _first_line("/sys/devices/system/cpu/cpu0/cache/index3/size"),
        "load_average": os.getloadavg()[0],
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
        "fastdiff": fastdiff.__version__,
        "commit": commit(),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout that the command runs in, with "+" if files differ from it."""
    root = checkout()
    if root is None:
        return None
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")


def checkout() -> Path | None:
    """The checkout of this project that the command runs in, if it does."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "bench/kit.py").is_file()), None)


def results_folder(device: torch.device) -> Path:
    """bench/results/<machine> in a checkout, fastdiff-bench elsewhere; results there are the machine's latest."""
    words = re.findall(r"[a-z0-9]+", device_name(device).lower())
    slug = "-".join(w for w in words if w not in ("nvidia", "r", "tm", "cpu", "processor"))
    root = checkout()
    return root / "bench/results" / slug if root else Path.cwd() / "fastdiff-bench"


def _first_line(path: str) -> str | None:
    file = Path(path)
    return file.read_text().strip() if file.is_file() else None


# ---- as data -------------------------------------------------------------------------------------------------


def document(
    rows: Sequence[Row], device: torch.device, ceilings: dict[str, float] | None = None
) -> dict[str, Any]:
    """The JSON document. A number that was not measured, or is of a wrong result, is null."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "date": now,
        "environment": environment(device),
        "ceilings": ceilings,
        "rows": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    case = row.case
    ratios = {name: _finite(row.ratio(name)) for name, m in row.measurements.items() if m.rival is not None}
    return {
        "id": case.id,
        "op": case.op,
        "case": case.name,
        "title": case.title,
        "shape": list(case.shape),
        "dtype": DTYPE_NAMES[case.dtype],
        "bytes": case.bytes_moved,
        "flops": case.flops,
        "results": {name: _measurement(m) for name, m in row.measurements.items()},
        "unmeasured": row.unmeasured,
        "ratios": {name: ratio for name, ratio in ratios.items() if name != COPY},
        "gb_per_s": _finite(row.gigabytes_per_second),
        "copy_share": ratios.get(COPY),
        "targets": [{"target": target_text(t), "met": row.met(t)} for t in case.targets],
    }


def _measurement(m: Measurement) -> dict[str, Any]:
    return {
        "rival": m.rival,
        "wrong": m.verdict.wrong,
        "error": _finite(m.verdict.error),
        "clock": m.clock or None,
        "cache": m.cache or None,
        "rounds": m.rounds,
        "repeats": m.repeats,
        "median_s": _finite(m.median),
        "quartiles_s": [_finite(q) for q in m.quartiles],
        "best_s": _finite(m.best),
        "warm_s": _finite(m.warm),
        "noisy": m.is_noisy,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def save(path: Path, data: dict[str, Any]) -> None:
    """The whole document, or, if that is cut short, what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    part.replace(path)


def load(path: Path) -> dict[str, Any]:
    """A document that `save` wrote.

    Raises:
        ValueError: it is something else, or of another version.
    """
    data = json.loads(path.read_text())
    found = (data.get("schema"), data.get("version")) if isinstance(data, dict) else None
    if found != (SCHEMA, VERSION):
        raise ValueError(f"{path}: expected a {SCHEMA} document of version {VERSION}, got {found}")
    return dict(data)


# ---- as text -------------------------------------------------------------------------------------------------


def header(facts: dict[str, Any]) -> str:
    software = " · ".join(f"{name} {facts[name]}" for name in ("torch", "diffusers", "fastdiff"))
    machine = f"{facts['device']} · {facts['threads']} of {facts['cores']} threads · {facts['isa']}"
    return f"{machine} · {software}" + (f" · commit {facts['commit']}" if facts["commit"] else "")


def table(rows: Sequence[Row]) -> tuple[Line, list[Line]]:
    """Column heads and cells. A baseline's cell is its time, how many times ours that is, and its target's mark."""
    names = dict.fromkeys(name for row in rows for name in row.measurements if name != COPY)
    baselines = [n for n in names if any(r.measurements[n].rival for r in rows if n in r.measurements)]
    ours = [n for n in names if n not in baselines]
    heads = ["op", "shape", "dtype", *baselines, *ours, "GB/s", "of copy"]
    lines = []
    for row in rows:
        share, speed = row.ratio(COPY), row.gigabytes_per_second
        times = [_time_cell(row, name) for name in (*baselines, *ours)]
        rate = "–" if speed is None else f"{speed:.1f}" if speed < 100 else f"{speed:.0f}"
        copied = "–" if share is None else f"{share:.0%}" + _mark(row, COPY)
        op = f"{row.case.op} {row.case.name}"
        lines.append([op, shape_text(row.case.shape), DTYPE_NAMES[row.case.dtype], *times, rate, copied])
    return heads, lines


def _time_cell(row: Row, name: str) -> str:
    m = row.measurements.get(name)
    if m is None:
        return "–"
    if m.verdict.wrong is not None:
        return "WRONG"
    ratio = row.ratio(name)
    return time_text(m.median) + ("" if ratio is None else f" {ratio_text(ratio):>5}") + _mark(row, name)


def _mark(row: Row, name: str) -> str:
    met = [row.met(target) for target in row.case.targets if target.name == name]
    return "" if not met or met[0] is None else " ✓" if met[0] else " ✗"


LEGEND = (
    "Times are medians per step; 7.1× says how many times as long as fastdiff (for “diffusers step”: as plan.step).\n"
    "✓ ✗: target met (by the medians and by the best times), missed. GB/s: bytes read once and written once over\n"
    "fastdiff's time; of copy: Tensor.copy_ of as many bytes is 100 %. Every result was compared with float64 first."
)


def target_lines(rows: Sequence[Row]) -> list[Line]:
    """Every target with what was measured: [id, target, measured, verdict]."""
    verdicts = {True: "met", False: "MISSED", None: "not measured"}
    return [
        [row.case.id, target_text(t), _measured_text(row, t), verdicts[row.met(t)]]
        for row in rows
        for t in row.case.targets
    ]


def target_text(target: Target) -> str:
    if target.seconds is not None:
        return f"{target.name} ≤ {time_text(target.seconds)}"
    subject = "the bandwidth of copy_" if target.name == COPY else target.name
    return f"≥ {target.factor:.3g}× {subject}"


def _measured_text(row: Row, target: Target) -> str:
    if row.met(target) is None:
        return "–"
    if target.factor is not None:
        return f"{row.sure_ratio(target.name):.2f}×"
    return time_text(row.measurements[target.name].median)


def noise_line(rows: Sequence[Row]) -> str:
    """Empty on a quiet machine."""
    noisy = [m.is_noisy for row in rows for m in row.measurements.values() if not m.verdict.wrong]
    if not any(noisy):
        return ""
    return (
        f"NOTE: {sum(noisy)} of {len(noisy)} medians are more than twice the best time: the machine was busy "
        f"(load average {os.getloadavg()[0]:.1f}), and their ratios are not to be relied on (“noisy” in the JSON)."
    )


def wrong_lines(rows: Sequence[Row]) -> list[str]:
    return [f"WRONG: {row.case.id}: {m.name}: {m.verdict.wrong}" for row in rows for m in row.wrong]


def unmeasured_lines(rows: Sequence[Row]) -> list[str]:
    return [f"NOT MEASURED: {row.case.id}: {row.unmeasured}" for row in rows if row.unmeasured]


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[Line, list[Line]]:
    """Our times then and now, and eager's: what changed for both is the machine, not the code."""
    before = {row["id"]: row["results"] for row in old["rows"]}
    lines = []
    for row in new["rows"]:
        for name, now in row["results"].items():
            then = before.get(row["id"], {}).get(name)
            if now["rival"] is not None or then is None or not (then["median_s"] and now["median_s"]):
                continue
            apart = (
                now["quartiles_s"][0] > then["quartiles_s"][1]
                or now["quartiles_s"][1] < then["quartiles_s"][0]
            )
            drift = _change(before[row["id"]].get("eager"), row["results"].get("eager"))
            times = [time_text(then["median_s"]), time_text(now["median_s"]), _change(then, now)]
            lines.append([row["id"], name, *times, drift, "yes" if apart else "no"])
    return ["case", "ours", "then", "now", "change", "eager's change", "quartiles apart"], lines


def _change(then: dict[str, Any] | None, now: dict[str, Any] | None) -> str:
    if not then or not now or not then["median_s"] or not now["median_s"]:
        return "–"
    return f"{now['median_s'] / then['median_s'] - 1:+.0%}"


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def time_text(seconds: float) -> str:
    """Three digits with their unit."""
    unit, name = next((u for u in ((1.0, "s"), (1e-3, "ms")) if seconds >= u[0]), (1e-6, "µs"))
    value = seconds / unit
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"


def ratio_text(ratio: float) -> str:
    return f"{ratio:.1f}×" if ratio < 100 else f"{ratio:.0f}×"


def show(heads: Line, lines: Sequence[Line], *, left: int = 3) -> None:
    """Print a table, the first ``left`` columns aligned left; with rich if it is installed, else in plain text."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join(plain(heads, lines, left=left)))
        return
    rich_table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for n, head in enumerate(heads):
        rich_table.add_column(head, justify="left" if n < left else "right", no_wrap=True)
    for previous, line in itertools.pairwise([[""], *lines]):
        if previous[0] not in ("", line[0]):
            rich_table.add_row()
        first = "" if line[0] == previous[0] else line[0]
        rich_table.add_row(
            first, *(f"[{style}]{cell}[/]" if (style := _style(cell)) else cell for cell in line[1:])
        )
    # A table that is too wide for the terminal is still whole in a file or a pager.
    needed = max(map(len, plain(heads, lines, left=left)))
    console = Console(highlight=False)
    console.width = max(console.width, needed)
    console.print(rich_table)


def _style(cell: str) -> str:
    if cell in ("WRONG", "MISSED") or cell.endswith("✗"):
        return "bold red"
    return "green" if cell.endswith("✓") or cell == "met" else ""


def plain(heads: Line, lines: Sequence[Line], *, left: int = 3) -> Iterator[str]:
    """An aligned table; the first cell is shown where it changes."""
    widths = [max(map(len, column)) for column in zip(heads, *lines, strict=True)]

    def aligned(line: Line) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(f"{c:<{w}}" if n < left else f"{c:>{w}}" for n, (c, w) in enumerate(cells)).rstrip()

    yield aligned(heads)
    for previous, line in itertools.pairwise([[""], *lines]):
        if previous[0] not in ("", line[0]):
            yield ""
        yield aligned(["" if line[0] == previous[0] else line[0], *line[1:]])


# ---- as a picture --------------------------------------------------------------------------------------------

BAR = 0.19  # inches
COLORS = (
    "#4C72B0", "#8FB0D9", "#DD8452", "#55A868", "#8172B3", "#C44E52", "#937860", "#DA8BC3", "#8C8C8C",
)  # fmt: skip


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """How many times as long as fastdiff each baseline takes: a panel per case and dtype, a group per shape.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    baselines = list(
        dict.fromkeys(n for r in rows for n, m in r.measurements.items() if m.rival and n != COPY)
    )
    colors = dict(zip(baselines, itertools.cycle(COLORS)))
    works = list(dict.fromkeys(_work(r) for r in rows))
    dtypes = list(dict.fromkeys(r.case.dtype for r in rows))
    panels = [[_rows_of(rows, work, dtype) for dtype in dtypes] for work in works]
    heights = [
        max(sum(_height(_bars(row, baselines)) for row in group) for group in groups) * BAR + 0.1
        for groups in panels
    ]
    ratios = [ratio for row in rows for _, ratio in _bars(row, baselines)] or [1.0]

    figure = Figure(
        figsize=(4.5 + 4 * len(dtypes), sum(heights) + 0.42 * len(works) + 1.6), layout="constrained"
    )
    axes = figure.subplots(len(works), len(dtypes), sharex=True, squeeze=False, height_ratios=heights)
    named = ""
    for (op, name), groups, line in zip(works, panels, axes, strict=True):
        for dtype, group, axis in zip(dtypes, groups, line, strict=True):
            axis.set_visible(bool(group))
            _panel(axis, group, [_bars(row, baselines) for row in group], colors)
            axis.set_title(f"{name}, {DTYPE_NAMES[dtype]}", loc="left", fontsize=10.5, fontweight="bold")
            axis.set_xlim(min(*ratios, 0.9) / 1.2, max(*ratios, 2.0) * 1.6)
        if op != named:  # once for each op: a panel of one group is shorter than its name
            line[0].set_ylabel(op, color="0.35", fontsize=9)
        named = op
    for axis in axes[-1]:
        axis.set_xlabel("time ÷ fastdiff's time, log scale: above 1× fastdiff is faster", fontsize=9)
    handles: list[Any] = [Patch(color=colors[name], label=name) for name in baselines]
    handles.append(Line2D([], [], color="black", linewidth=1.6, label="target"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, color="0.35")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _rows_of(rows: Sequence[Row], work: tuple[str, str], dtype: torch.dtype) -> list[Row]:
    return [row for row in rows if _work(row) == work and row.case.dtype == dtype]


def _work(row: Row) -> tuple[str, str]:
    """Op and title of the panel that a row belongs to."""
    return row.case.op, row.case.panel or row.case.title


def _height(bars: Sequence[tuple[str, float]]) -> float:
    """Of a row's bars and the gap after them, in bars."""
    return len(bars) + (1 if len(bars) > 1 else 0.35)


def _bars(row: Row, baselines: Sequence[str]) -> list[tuple[str, float]]:
    return [(name, ratio) for name in baselines if (ratio := row.ratio(name)) is not None]


def _panel(
    axis: Any, rows: Sequence[Row], bars: Sequence[list[tuple[str, float]]], colors: dict[str, str]
) -> None:
    ticks, labels, y = [], [], 0.0
    for row, group in zip(rows, bars, strict=True):
        goals = {t.name: t.factor for t in row.case.targets if t.factor is not None}
        for n, (name, ratio) in enumerate(group):
            goal = goals.get(name, 1.0)
            axis.barh(y + n, ratio - 1, left=1, height=0.86, color=colors[name])
            if name in goals:
                axis.plot([goal, goal], [y + n - 0.43, y + n + 0.43], color="black", linewidth=1.6)
            end = (max(ratio, goal), y + n)
            label = ratio_text(ratio)
            axis.annotate(label, end, (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        ticks.append(y + (len(group) - 1) / 2)
        labels.append(row.case.title if row.case.panel else shape_text(row.case.shape))
        y += _height(group)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axis.axvline(1, color="0.2", linewidth=0.8)
    axis.set_yticks(ticks, labels, fontsize=8.5)
    axis.set_ylim(max(y, 1) - 0.5, -1)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
