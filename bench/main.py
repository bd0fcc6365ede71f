# SPDX-License-Identifier: Apache-2.0
"""``fastdiff bench``: run the cases, print the table, save JSON and a plot."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import itertools
import math
import pkgutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fastdiff
import torch
from fastdiff import bench
from fastdiff._native import INSTRUCTION_SETS
from fastdiff.bench import kit, report
from fastdiff.bench.kit import DTYPE_NAMES, OURS, Case, Measurement, Row

QUICK_ELEMENTS = 1 << 17  # the largest shapes of --quick


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--op", action="append", metavar="NAME", help="only this op; may be repeated")
    parser.add_argument(
        "--case", action="append", metavar="ID", help="only these cases; * and ? match anything"
    )
    parser.add_argument(
        "--dtype", action="append", choices=sorted(DTYPE_NAMES.values()), help="may be repeated"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU (default: 2)")
    parser.add_argument("--isa", choices=INSTRUCTION_SETS, help="force the CPU kernels to it")
    parser.add_argument("--quick", action="store_true", help="small shapes, few rounds: does it work?")
    parser.add_argument(
        "--budget",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="begin no case after so long; ops take turns, each with its largest cases first",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to save the results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to save the plot")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="show what changed since that run")
    parser.add_argument(
        "--repro", action="store_true", help="print, for each row, the command that measures it alone"
    )


def run(args: argparse.Namespace) -> int:
    """Exit code 0: all our results are right; 1: at least one is wrong; 2: nothing was measured."""
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("fastdiff bench: no CUDA device; `fastdiff info` says why", file=sys.stderr)
        return 2
    old = report.load(args.compare) if args.compare else None
    chosen = choose(all_cases(), args)
    if not chosen:
        print("fastdiff bench: no case matches; without arguments all of them run", file=sys.stderr)
        return 2
    place = {case.id: n for n, case in enumerate(chosen)}
    with settings(args.threads, args.isa):
        print(report.header(report.environment(device)), end="\n\n")
        ceilings = kit.ceilings(device) if device.type == "cuda" else None
        effort = kit.QUICK if args.quick else kit.Effort()
        in_order = chosen if math.isinf(args.budget) else in_turns(chosen)
        rows: list[Row] = []
        for row in measured(in_order, device, effort, args.budget):
            rows = sorted([*rows, row], key=lambda row: place[row.case.id])
            if args.json:  # what was measured remains, if the run ends here
                report.save(args.json, report.document(rows, device, ceilings))
        data = report.document(rows, device, ceilings)
        show(rows)
    if args.repro:
        print("\nEach row alone:", *(repro(row.case, args) for row in rows), sep="\n  ")
    if old is not None:
        print(f"\nSince {args.compare} of {old['date']}:  {report.header(old['environment'])}")
        report.show(*report.compare(old, data), left=2)
    save(args, rows, data, device)
    if rows and all(row.unmeasured for row in rows):
        return 2
    return 1 if any(m.rival is None for row in rows for m in row.wrong) else 0


def all_cases() -> list[Case]:
    """The cases of every module in this package that has some: one per op, named after it."""
    modules = [importlib.import_module(f"{bench.__name__}.{m.name}") for m in _op_modules()]
    return [case for module in modules for case in module.cases()]


def _op_modules() -> Iterator[pkgutil.ModuleInfo]:
    ops = {name for name in fastdiff.__all__ if callable(getattr(fastdiff, name))}
    return (m for m in pkgutil.iter_modules(bench.__path__) if m.name in ops)


def choose(cases: Sequence[Case], args: argparse.Namespace) -> list[Case]:
    """The cases that the arguments leave."""
    return [
        case
        for case in cases
        if (not args.op or case.op in args.op)
        and (not args.dtype or DTYPE_NAMES[case.dtype] in args.dtype)
        and (not args.case or any(fnmatch.fnmatchcase(case.id, pattern) for pattern in args.case))
        and (not args.quick or math.prod(case.shape) <= QUICK_ELEMENTS)
    ]


@contextlib.contextmanager
def settings(threads: int, isa: str | None) -> Iterator[None]:
    """Threads and instruction set, for as long as it takes."""
    before = torch.get_num_threads(), fastdiff.isa()
    torch.set_num_threads(threads)
    if isa is not None:
        fastdiff.use_isa(isa)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        fastdiff.use_isa(before[1])


def in_turns(cases: Sequence[Case]) -> list[Case]:
    """A case of each op, then another of each, the largest first: what a run that is cut short should have done."""
    by_op: dict[str, list[Case]] = {}
    for case in sorted(cases, key=_size, reverse=True):
        by_op.setdefault(case.op, []).append(case)
    return [case for turn in itertools.zip_longest(*by_op.values()) for case in turn if case is not None]


def _size(case: Case) -> tuple[float, ...]:
    """Multiplications before elements; of the same work in half precision more. Other libraries' cases are least."""
    elements = case.bytes_moved / case.dtype.itemsize
    return not case.name.startswith("libraries_"), case.flops, elements, -case.dtype.itemsize


def measured(
    cases: Sequence[Case], device: torch.device, effort: kit.Effort, budget: float = math.inf
) -> Iterator[Row]:
    """Each case's row, with the progress on stderr; no case begins after ``budget`` seconds."""
    is_terminal = sys.stderr.isatty()
    start, end = ("\r\x1b[K", "") if is_terminal else ("", "\n")
    begin = time.monotonic()
    for n, case in enumerate(cases, start=1):
        if time.monotonic() - begin > budget:
            break
        print(
            f"{start}[{n:>{len(str(len(cases)))}}/{len(cases)}] {case.id}",
            end=end,
            file=sys.stderr,
            flush=True,
        )
        yield row_of(case, device, effort)
    print(start, end=end, file=sys.stderr, flush=True)


def row_of(case: Case, device: torch.device, effort: kit.Effort) -> Row:
    """An error in a case is its result, and the others are measured all the same; what lacks a package has none."""
    try:
        return kit.measure(case, device, effort)
    except ImportError as error:
        return Row(case, {}, unmeasured=kit.failed(error).wrong)
    except kit.FAILURES as error:
        return Row(case, {OURS: Measurement(OURS, None, kit.failed(error))})


def show(rows: Sequence[Row]) -> None:
    report.show(*report.table(rows))
    print(f"\n{report.LEGEND}")
    if targets := report.target_lines(rows):
        met = sum(line[-1] == "met" for line in targets)
        print(f"\nTargets: {met} of {len(targets)} met")
        report.show(["case", "target", "measured", ""], targets, left=2)
    for line in (report.noise_line(rows), *report.wrong_lines(rows), *report.unmeasured_lines(rows)):
        if line:
            print(f"\n{line}")


def repro(case: Case, args: argparse.Namespace) -> str:
    """The command that measures one row as this run did."""
    options = [f"--case {case.id}", f"--device {args.device}", f"--threads {args.threads}"]
    options += [f"--isa {args.isa}"] if args.isa else []
    options += ["--quick"] if args.quick else []
    return " ".join(["fastdiff bench", *options])


def save(args: argparse.Namespace, rows: Sequence[Row], data: dict[str, Any], device: torch.device) -> None:
    """Where the arguments say; a whole run also where this machine's results are kept."""
    whole = not (args.op or args.case or args.dtype or args.quick or math.isfinite(args.budget))
    folder = report.results_folder(device)
    stem = f"{device.type}-{args.threads}-threads" if device.type == "cpu" else device.type
    stem += f"-{args.isa}" if args.isa else ""
    json_path = args.json or (folder / f"{stem}.json" if whole else None)
    plot_path = args.plot or (folder / f"{stem}.png" if whole else None)
    if json_path:
        report.save(json_path, data)
        print(f"\nsaved {json_path}")
    if plot_path:
        report.plot(plot_path, rows, report.header(data["environment"]))
        print(f"saved {plot_path}")
