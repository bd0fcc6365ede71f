# SPDX-License-Identifier: Apache-2.0
"""How every op is measured: results first, then times, all contenders in turn on the same inputs.

A :class:`Case` is one piece of work, such as a solver step on one shape and dtype. Its contenders do the same work
in different ways; each has a check against a float64 reference, and one that fails is neither timed nor compared.
The others take turns, round after round, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

OURS = "fastdiff"
COPY = "copy_"
DTYPE_NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.complex64: "c64",
    torch.bool: "bool",
}


# ---- what is measured ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """Of one result: its relative error, and why it is wrong (None: it is right)."""

    error: float
    wrong: str | None = None


Call = Callable[[], Sequence[Tensor]]
Check = Callable[[Sequence[Tensor]], Verdict]


@dataclass(frozen=True)
class Contender:
    """One implementation of a case.

    Attributes:
        name: of its column in the table.
        call: does the work and returns its results.
        check: judges the results of one call.
        rival: which of our contenders this baseline is compared with; None: this is one of ours.
        steps: how many times one call does the case's work.
        reset: restores the state that a call uses up; runs before each call and is not timed.
    """

    name: str
    call: Call
    check: Check
    rival: str | None = OURS
    steps: int = 1
    reset: Callable[[], object] | None = None


@dataclass(frozen=True)
class Target:
    """``name`` takes at least ``factor`` times as long as its rival, or at most ``seconds`` itself."""

    name: str
    factor: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Case:
    """Work on one shape and dtype.

    Attributes:
        op, name: what is done; with shape and dtype they identify the case.
        title: the same for readers.
        tensors: how many tensors of this shape must be read or written at least, each once.
        moves: the same in bytes, where tensors of this shape are not what is moved.
        flops: multiplications and additions of its matrix products; 0: memory is what bounds it.
        build: allocates the inputs on a device and returns the contenders; called just before they run.
        targets: what the project promises for this case on a CPU.
        panel: title of the panel that it shares with other cases in the plot; default: one of its own per title.
    """

    op: str
    name: str
    title: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    tensors: int
    build: Callable[[torch.device], list[Contender]] = field(repr=False)
    targets: tuple[Target, ...] = ()
    panel: str = ""
    moves: int | None = None
    flops: float = 0.0

    @property
    def id(self) -> str:
        """As ``--case`` takes it: ``linear_step/cfg/1x4x64x64/fp32``."""
        return f"{self.op}/{self.name}/{'x'.join(map(str, self.shape))}/{DTYPE_NAMES[self.dtype]}"

    @property
    def bytes_moved(self) -> int:
        """Bytes that any implementation reads once and writes once."""
        return (
            self.tensors * math.prod(self.shape) * self.dtype.itemsize if self.moves is None else self.moves
        )


FAILURES = (
    AssertionError,
    AttributeError,
    ImportError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)  # what torch and peers refuse with


def failed(error: Exception) -> Verdict:
    return Verdict(math.inf, f"{type(error).__name__}: {error}".partition("\n")[0])


# ---- results first -------------------------------------------------------------------------------------------


def close_to(want: Sequence[Tensor], *, roundoffs: float) -> Check:
    """A check: max |got - want| / max |want| is at most so many unit roundoffs of the dtype of the result.

    Args:
        want: the float64 results.
        roundoffs: how many roundings, times the growth of their errors, the implementations may differ by.
    """

    def check(got: Sequence[Tensor]) -> Verdict:
        if [g.shape for g in got] != [w.shape for w in want]:
            return Verdict(
                math.inf, f"shapes {[list(g.shape) for g in got]}, expected {[list(w.shape) for w in want]}"
            )
        worst = Verdict(0.0)
        for n, (g, w) in enumerate(zip(got, want, strict=True)):
            error = float((g.double() - w).abs().max() / w.abs().max())
            limit = roundoffs * torch.finfo(g.dtype).eps / 2
            if not error <= limit:  # NaN is wrong too
                return Verdict(error, f"result {n}: relative error {error:.1e}, allowed {limit:.1e}")
            worst = max(worst, Verdict(error), key=lambda verdict: verdict.error)
        return worst

    return check


def normal_around(mean: Tensor, deviation: float, *, rounding: float = 0.01) -> Check:
    """A check for results with fresh noise: (got - mean)/deviation has the moments of a standard normal.

    The bounds are six standard errors of the sample mean and variance, and so much for rounding.
    """

    def check(got: Sequence[Tensor]) -> Verdict:
        z = (got[0].double() - mean) / deviation
        mean_error, variance_error = abs(float(z.mean())), abs(float(z.var()) - 1)
        standard = 1 / math.sqrt(z.numel())
        if not (
            mean_error <= 6 * standard + rounding and variance_error <= 6 * math.sqrt(2) * standard + rounding
        ):
            return Verdict(
                max(mean_error, variance_error),
                f"noise: mean {mean_error:.2g}, variance off by {variance_error:.2g}",
            )
        return Verdict(max(mean_error, variance_error))

    return check


# ---- then times ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """How long to measure. A block of calls lasts ``block`` seconds, so that reading the clock costs nothing.

    ``cold``, on a GPU: each call finds an L2 cache with none of its inputs, which takes a block for each call.
    """

    block: float = 2e-3
    seconds: float = 0.35  # per contender
    min_rounds: int = 7
    max_rounds: int = 201
    cold: bool = True


QUICK = Effort(block=2e-4, seconds=0.02, min_rounds=5, max_rounds=21)


@dataclass(frozen=True)
class Measurement:
    """One contender's result: seconds per step as median and quartiles, or why there are none.

    On a GPU ``cache`` says whether the L2 cache was "cold" or "warm", and ``warm`` is the median with a warm one.
    """

    name: str
    rival: str | None
    verdict: Verdict
    clock: str = ""
    rounds: int = 0
    repeats: int = 0
    median: float = math.nan
    quartiles: tuple[float, float] = (math.nan, math.nan)
    best: float = math.nan
    cache: str = ""
    warm: float = math.nan

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        return (self.quartiles[1] - self.quartiles[0]) / self.median

    @property
    def is_noisy(self) -> bool:
        """Most of its time was spent waiting for something else on the machine."""
        return self.median > 2 * self.best


@dataclass(frozen=True)
class Row:
    """A case and what was measured for it, or why nothing was."""

    case: Case
    measurements: dict[str, Measurement]
    unmeasured: str | None = None

    @property
    def wrong(self) -> list[Measurement]:
        return [m for m in self.measurements.values() if m.verdict.wrong is not None]

    def ratio(self, baseline: str) -> float | None:
        """How many times as long as its rival the baseline takes; None if either is missing or wrong."""
        pair = self._pair(baseline)
        return None if pair is None else pair[0].median / pair[1].median

    def sure_ratio(self, baseline: str) -> float | None:
        """The ratio of the medians or of the best times, whichever is less.

        On a quiet machine they agree. On a busy one a median can count stalls, which would flatter whoever has
        fewer threads to wait for; a target must not be met by them.
        """
        pair = self._pair(baseline)
        return None if pair is None else min(pair[0].median / pair[1].median, pair[0].best / pair[1].best)

    def _pair(self, baseline: str) -> tuple[Measurement, Measurement] | None:
        other = self.measurements.get(baseline)
        ours = self.measurements.get(other.rival) if other is not None and other.rival is not None else None
        if other is None or ours is None or other.verdict.wrong or ours.verdict.wrong:
            return None
        return other, ours

    @property
    def gigabytes_per_second(self) -> float | None:
        ours = self.measurements.get(OURS)
        return None if ours is None or ours.verdict.wrong else self.case.bytes_moved / ours.median / 1e9

    def met(self, target: Target) -> bool | None:
        """None: it was not measured, or is wrong."""
        if target.factor is not None:
            ratio = self.sure_ratio(target.name)
            return None if ratio is None else ratio >= target.factor
        m = self.measurements.get(target.name)
        return None if m is None or m.verdict.wrong or target.seconds is None else m.median <= target.seconds


@torch.no_grad()
def measure(case: Case, device: torch.device, effort: Effort) -> Row:
    """Check and time all contenders of a case, and `Tensor.copy_` of as many bytes beside them."""
    contenders = [*case.build(device), copy_contender(case, device)]
    verdicts = {c.name: verify(c) for c in contenders}
    right = [c for c in contenders if verdicts[c.name].wrong is None]
    timed = {m.name: m for m in race(right, verdicts, device, effort)}
    if (
        device.type == "cuda"
    ):  # what a small case costs when called in a loop; a large one costs the same as cold
        case = replace(case, targets=())  # they are the CPU's
        captured = [c for c in right if c.reset is None]
        for m in race(captured, verdicts, device, replace(QUICK, cold=False)):
            timed[m.name] = replace(timed[m.name], warm=m.median)
    return Row(
        case, {c.name: timed.get(c.name, Measurement(c.name, c.rival, verdicts[c.name])) for c in contenders}
    )


def verify(contender: Contender) -> Verdict:
    """Run it once, which also warms it up, and judge the result."""
    try:
        if contender.reset is not None:
            contender.reset()
        return contender.check(contender.call())
    except FAILURES as error:  # a peer that lacks this device or dtype must not end the run
        return failed(error)


def copy_contender(case: Case, device: torch.device) -> Contender:
    """What memory allows: half of the case's bytes read, half written."""
    elements = case.bytes_moved // case.dtype.itemsize
    source = torch.ones(elements // 2, dtype=case.dtype, device=device)
    target = torch.empty_like(source)

    def check(got: Sequence[Tensor]) -> Verdict:
        return Verdict(0.0, None if torch.equal(got[0], source) else "not a copy")

    return Contender(COPY, lambda: (target.copy_(source),), check)


def race(
    contenders: Sequence[Contender], verdicts: dict[str, Verdict], device: torch.device, effort: Effort
) -> Iterator[Measurement]:
    """Round robin: one block of each contender per round, and a different one first in each."""
    clocks = [make_clock(c, device, effort) for c in contenders]
    samples: list[list[float]] = [[] for _ in contenders]
    with _no_garbage_collection():
        begin = time.perf_counter()
        for done in range(effort.max_rounds):
            if done >= effort.min_rounds and time.perf_counter() - begin > effort.seconds * len(contenders):
                break
            for k in range(len(contenders)):
                n = (k + done) % len(contenders)
                samples[n].append(clocks[n].block() / (clocks[n].repeats * contenders[n].steps))
    for c, clock, taken in zip(contenders, clocks, samples, strict=True):
        low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
        yield Measurement(
            name=c.name,
            rival=c.rival,
            verdict=verdicts[c.name],
            clock=clock.name,
            rounds=len(taken),
            repeats=clock.repeats,
            median=median,
            quartiles=(low, high),
            best=min(taken),
            cache=clock.cache,
        )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# ---- clocks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clock:
    """``block()`` makes ``repeats`` calls and returns their seconds; ``cache`` as in :class:`Measurement`."""

    name: str
    cache: str
    repeats: int
    block: Callable[[], float]


def make_clock(contender: Contender, device: torch.device, effort: Effort) -> Clock:
    """How one contender's calls are timed."""
    call, reset, is_cuda = contender.call, contender.reset, device.type == "cuda"
    if reset is None:
        if is_cuda:
            return cuda_clock(call, device, effort)
        repeats = calibrate(call, wall_time, effort.block)
        return Clock("wall", "", repeats, functools.partial(wall_time, call, repeats))
    time_block = event_time if is_cuda else wall_time

    def block() -> float:
        reset()
        return time_block(call, 1)

    return Clock("CUDA events", "warm", 1, block) if is_cuda else Clock("wall", "", 1, block)


def calibrate(call: Call, time_block: Callable[[Call, int], float], block: float) -> int:
    """How many calls last at least ``block`` seconds; the best of three, so that a stall does not count as work."""
    repeats = 1
    while (elapsed := min(time_block(call, repeats) for _ in range(3))) < block:
        repeats *= 2 if elapsed > block / 4 else 4
    return repeats


def wall_time(call: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in itertools.repeat(None, repeats):
        call()
    return time.perf_counter() - begin


# NOTE: what follows has not run on hardware yet.


def cuda_clock(call: Call, device: torch.device, effort: Effort) -> Clock:
    """The device's time for calls in a CUDA graph, where the host is out of the way.

    Between the steps of a sampling loop a model of gigabytes runs, so calls find nothing of theirs in the L2 cache.
    That is made so by a sweep before each replay, outside of the events; inputs in turns, in one graph, would need
    every case to build as many sets of them as fill the cache.
    """
    repeats = 1 if effort.cold else calibrate(call, event_time, effort.block)
    try:
        graph = capture(call, repeats)
    except RuntimeError:  # some eager code waits for the device
        name, timed = "CUDA events", functools.partial(event_time, call, repeats)
    else:
        name, timed = "CUDA graph", functools.partial(event_time, graph.replay, 1)
    if not effort.cold:
        return Clock(name, "warm", repeats, timed)

    def block() -> float:
        sweep_cache(device)
        return timed()

    return Clock(name, "cold", repeats, block)


def sweep_cache(device: torch.device) -> None:
    """Leaves nothing of what ran before in the L2 cache, and the device busy while the host queues what is timed.

    It reads: what a write leaves in the cache would go to memory during the call that is timed.
    """
    _four_caches(device).sum()


@functools.cache
def _four_caches(device: torch.device) -> Tensor:
    return torch.ones(
        torch.cuda.get_device_properties(device).L2_cache_size, device=device
    )  # of 4 bytes each


def event_time(call: Callable[[], object], repeats: int) -> float:
    """Between two events on the current stream: the device's time, or the host's where it cannot keep up."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in itertools.repeat(None, repeats):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def capture(call: Callable[[], object], repeats: int) -> torch.cuda.CUDAGraph:
    """``repeats`` calls as one CUDA graph.

    A capture that fails leaves torch's allocator in it, for good, and its stream the current one. Nearly all would fail
    because a call waits for the device, so that is found out before.

    Raises:
        RuntimeError: a call waits for the device, or cannot be captured.
    """
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.cuda.stream(side), _waits_are_errors():
        call()
    stream.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                call()
    finally:
        torch.cuda.set_stream(stream)
    return graph


@contextmanager
def _waits_are_errors() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@torch.no_grad()
def ceilings(device: torch.device, *, elements: int = 1 << 28, side: int = 8192) -> dict[str, float]:
    """What the machine does at most, by the clock of the cases: copies, products, and calls of next to nothing."""
    source, one = torch.ones(elements, device=device), torch.ones(1, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, side, side, device=device).to(torch.bfloat16)  # zeros would be multiplied faster
    works: dict[str, Call] = {
        "copy": lambda: (target.copy_(source),),
        "product": lambda: (a @ b,),
        "nothing": lambda: (one.add_(1),),
    }
    right = Verdict(0.0)
    contenders = [Contender(name, call, lambda _: right) for name, call in works.items()]
    times = {m.name: m.median for m in race(contenders, dict.fromkeys(works, right), device, Effort())}
    return {
        "copy_gb_per_s": 2 * source.nbytes / times["copy"] / 1e9,
        "bf16_tflop_per_s": 2 * side**3 / times["product"] / 1e12,
        "call_s": times["nothing"],
    }


class Stopwatch:
    """Adds up the time spent inside ``with watch:``; for programs that show a time rather than measure one."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds = 0.0
        self._is_cuda = device is not None and device.type == "cuda"
        self._begin = 0.0

    def __enter__(self) -> Stopwatch:
        self._begin = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += self._now() - self._begin

    def _now(self) -> float:
        if self._is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
