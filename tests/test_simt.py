# SPDX-License-Identifier: Apache-2.0
"""The SIMT emulator catches the mistakes it is for, passes correct kernels, and computes what a GPU does."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kit.simt import build
from tests.kit.simt.build import Checks
from tests.kit.simt.worker import SimtCrashError, SimtWorker

SEEDS = (1, 2)
MANY_SEEDS = range(1, 21)
RIGHT, WRONG, REFUSED = 0, 1, 2  # exit statuses of broken/main.cu
SANITIZER = 99


@dataclass(frozen=True)
class Binaries:
    """What these tests run."""

    mistakes: dict[Checks, Path]
    values: Path
    worker: Path


@pytest.fixture(scope="module")
def binaries() -> Binaries:
    main, values = build.KIT / "broken" / "main.cu", build.KIT / "values"
    worker = [values / "for_worker.cu", values / "for_worker_py.cpp"]
    with ThreadPoolExecutor(build.JOBS) as pool:
        for_worker = pool.submit(build.build_extension, worker, "for_worker")
        memory = pool.submit(build.build_program, main, "broken", "memory")
        races = pool.submit(build.build_program, main, "broken", "races")
        library = pool.submit(build.build_library, [values / "values.cu"], "values")
    return Binaries(
        {"memory": memory.result(), "races": races.result()}, library.result(), for_worker.result()
    )


# ---- mistakes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mistake:
    """A case of broken/, and how each build catches it: by status, and by what stands on stderr."""

    name: str
    memory: tuple[int, str]
    races: tuple[int, str]


def refused(message: str) -> dict[str, tuple[int, str]]:
    """Caught by the emulator itself, so by every build."""
    return {"memory": (REFUSED, message), "races": (REFUSED, message)}


UNWRITTEN = (REFUSED, "simt: shared memory is read that this block has not written")
RACE_OR_UNWRITTEN = (REFUSED, "simt: (race on shared memory|shared memory is read)")  # whoever comes first
IN_FLIGHT = (REFUSED, "simt: shared memory is read before somebody has waited for the copy to it")
NOT_LOOKED_FOR = (-1, "")
MISTAKES = [
    # Which of the two a race is reported as depends on who comes first.
    Mistake(
        "missing_syncthreads", memory=(WRONG, ""), races=(REFUSED, "simt: (race on|shared memory is read)")
    ),
    Mistake("missing_second_barrier", memory=(WRONG, ""), races=(REFUSED, "simt: race on")),
    Mistake("missing_syncwarp", memory=(WRONG, ""), races=(REFUSED, "simt: (race on|shared memory is read)")),
    Mistake("tail_read", memory=(SANITIZER, "heap-buffer-overflow.*READ of size 4"), races=NOT_LOOKED_FOR),
    Mistake("tail_write", memory=(SANITIZER, "heap-buffer-overflow.*WRITE of size 4"), races=NOT_LOOKED_FOR),
    Mistake("static_shared_bounds", memory=(SANITIZER, "global-buffer-overflow.*WRITE"), races=UNWRITTEN),
    Mistake("dynamic_shared_bounds", memory=(SANITIZER, "use-after-poison.*WRITE"), races=UNWRITTEN),
    Mistake(
        "shuffle_half", **refused("__shfl_xor_sync.* (for lane .*, which exits|lanes .*, which have exited)")
    ),
    Mistake("shuffle_other_mask", **refused("which the mask does not name|does not name the calling lane")),
    Mistake("shuffle_lane_outside", **refused(r"__shfl_sync\(0x0000ffff\): reads lane 20, which the mask")),
    Mistake(
        "mixed_collectives", **refused(r"lane \d+ waits in __(ballot|any)_sync\(0xffffffff\), at .*\.cu:")
    ),
    Mistake("barrier_early_exit", **refused("divergent barrier: .*(exits while|have exited)")),
    Mistake(
        "barrier_per_branch", **refused("divergent barrier: thread .* waits at another __syncthreads, at")
    ),
    Mistake("barrier_against_shuffle", **refused("which has reached __syncthreads|wait at __syncthreads")),
    Mistake("async_copy_no_wait", memory=(WRONG, ""), races=IN_FLIGHT),
    Mistake("async_copy_wait_too_late", memory=(WRONG, ""), races=IN_FLIGHT),
    Mistake("uninitialised_count", memory=(WRONG, ""), races=UNWRITTEN),
    Mistake("uninitialised_block", memory=(WRONG, ""), races=UNWRITTEN),
    Mistake("bulk_copy_no_wait", memory=(WRONG, ""), races=IN_FLIGHT),
    Mistake("wgmma_no_wait", **refused("this thread exits before wgmma_wait has waited for its products")),
    Mistake("wgmma_rows_overwritten", memory=(WRONG, ""), races=(WRONG, "")),
    Mistake("wgmma_no_fence", **refused("wgmma_fence has not given it its registers")),
    Mistake("wgmma_strayed_lanes", **refused("have not come together since mbarrier_wait")),
    Mistake("bulk_copy_unseen_barrier", **refused("mbarrier_init_done has not followed mbarrier_init")),
]


@pytest.fixture(scope="module")
def programs(binaries: Binaries) -> dict[Checks, Path]:
    return binaries.mistakes


def run_case(program: Path, name: str, variant: str, *seeds: int) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, ASAN_OPTIONS=f"detect_leaks=0:exitcode={SANITIZER}")
    command = [str(program), name, variant, *map(str, seeds)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("checks", ["memory", "races"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_mistake_is_caught(programs: dict[Checks, Path], mistake: Mistake, checks: Checks) -> None:
    status, message = getattr(mistake, checks)
    if (status, message) == NOT_LOOKED_FOR:
        pytest.skip("the bounds of global memory are the business of the other build")
    for seed in SEEDS:
        done = run_case(programs[checks], mistake.name, "broken", seed)
        assert done.returncode == status, f"seed {seed}: {done.stderr}"
        said = done.stderr.replace("\n", " ")
        assert re.search(message, said), f"seed {seed}: {done.stderr}"
        if status == REFUSED:
            assert f"FASTDIFF_SIMT_SEED={seed}" in said
            assert re.search(
                r"kernel .*, grid \(\d,1,1\) block \(\d+,1,1\), block .*, thread \(\d+,0,0\)", said
            )
        if status == SANITIZER:
            assert "simt: the process ends in kernel" in said


@pytest.mark.parametrize("checks", ["memory", "races"])
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.name)
def test_correct_twin_passes(programs: dict[Checks, Path], mistake: Mistake, checks: Checks) -> None:
    done = run_case(programs[checks], mistake.name, "correct", *MANY_SEEDS)
    assert done.returncode == RIGHT, done.stderr


def test_race_names_both_places(programs: dict[Checks, Path]) -> None:
    said = run_case(programs["races"], "missing_second_barrier", "broken", 1).stderr
    place = r"at \S*missing_syncthreads\.cu:(\d+)"
    found = re.search(rf"race.*by thread \(\d+,0,0\) {place} with no barrier between them\n  {place}\n", said)
    assert found, said
    source = (build.KIT / "broken" / "missing_syncthreads.cu").read_text().split("\n")
    lines = {source[int(number) - 1].strip() for number in found.groups()}
    assert lines == {
        "tile[threadIdx.x] = x[step * kThreads + threadIdx.x];",
        "y[step * kThreads + threadIdx.x] = tile[kThreads - 1 - threadIdx.x];",
    }


# ---- values ------------------------------------------------------------------------------------------------


class Library:
    """C functions that take pointers to arrays, and numbers, and give an error message or null."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def __call__(self, function: str, *args: Any, seed: int = 1) -> None:
        self._library.fastdiff_simt_set_seed(ctypes.c_ulonglong(seed))
        pointers = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in args]
        call = getattr(self._library, function)
        call.restype = ctypes.c_char_p
        if (message := call(*pointers)) is not None:
            raise RuntimeError(message.decode())


@pytest.fixture(scope="module")
def values(binaries: Binaries) -> Library:
    return Library(binaries.values)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def bfloat_bits(x: np.ndarray) -> np.ndarray:
    """fp32 -> the bits of bf16, for values that bf16 can hold."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_mma_16bit(values: Library, rng: np.random.Generator, dtype: str, seed: int) -> None:
    # Multiples of 1/8 below 16 have few bits in either type, so that the result is exact.
    a, b = (rng.integers(-127, 128, shape).astype(np.float32) / 8 for shape in ((16, 16), (16, 8)))
    d = rng.integers(-99, 99, (16, 8)).astype(np.float32)
    expected = d + a @ b
    encode = bfloat_bits if dtype == "bf16" else lambda x: x.astype(np.float16).view(np.uint16)
    values(f"run_mma_{dtype}", encode(a), encode(b), d, seed=seed)
    np.testing.assert_array_equal(d, expected)


def test_mma_f16_takes_every_value(values: Library, rng: np.random.Generator) -> None:
    """Subnormals, the largest, infinities and NaN, one at a time against ones."""
    special = np.array([6e-8, 6.1e-5, 65504, np.inf, -np.inf, np.nan, -0.0, 1 / 3], dtype=np.float16)
    b = np.zeros((16, 8), dtype=np.float16)
    b[3] = 1
    a = np.zeros((16, 16), dtype=np.float16)
    a[:8, 3] = special
    d = np.zeros((16, 8), dtype=np.float32)
    values("run_mma_f16", a.view(np.uint16), b.view(np.uint16), d)
    np.testing.assert_array_equal(d[:8, 0], special.astype(np.float32))
    assert np.all(d[8:] == 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_mma_8bit(values: Library, rng: np.random.Generator, seed: int) -> None:
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((16, 32), (32, 8)))
    d = rng.integers(-(2**30), 2**30, (16, 8), dtype=np.int32)
    expected = d + a.astype(np.int32) @ b.astype(np.int32)
    values("run_mma_s8", a, b, d, seed=seed)
    np.testing.assert_array_equal(d, expected)


def swizzled(b: np.ndarray) -> np.ndarray:
    """Rows of 64 bytes in the order in which wgmma reads them: chunk c of 16 bytes of row r at c ^ (r / 2 % 4)."""
    rows = np.arange(len(b))[:, None]
    return b.reshape(len(b), 4, 16)[rows, np.arange(4) ^ rows // 2 % 4].reshape(b.shape).copy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("add", [0, 1])
def test_wgmma_int8(values: Library, rng: np.random.Generator, add: int, seed: int) -> None:
    a, b = (rng.integers(-128, 128, (n, 64), dtype=np.int8) for n in (64, 128))
    d = rng.integers(-(2**29), 2**29, (64, 128), dtype=np.int32)
    expected = add * d + a.astype(np.int32) @ b.astype(np.int32).T
    values("run_wgmma_s8", a, swizzled(b), d, add, seed=seed)
    np.testing.assert_array_equal(d, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_wgmma_e4m3(values: Library, rng: np.random.Generator, seed: int) -> None:
    a, b = (torch.from_numpy(rng.integers(-16, 17, (n, 64)) / 8.0).to(torch.float8_e4m3fn) for n in (64, 128))
    d = rng.integers(-99, 99, (64, 128)).astype(np.float32)
    expected = d + (a.double() @ b.double().T).numpy()
    a, b = (x.view(torch.uint8).numpy() for x in (a, b))
    values("run_wgmma_e4m3", a, swizzled(b), d, 1, seed=seed)
    np.testing.assert_array_equal(d, expected)


def test_wgmma_takes_every_e4m3(values: Library) -> None:
    a, b = np.zeros((4, 64, 64), dtype=np.uint8), np.zeros((128, 64), dtype=np.uint8)
    a[:, :, 5] = np.arange(256).reshape(4, 64)
    b[:, 5] = 0x38  # 1
    for quarter in a:
        d = np.full((64, 128), 7, dtype=np.float32)
        values("run_wgmma_e4m3", quarter, swizzled(b), d, 0)
        expected = torch.from_numpy(quarter[:, 5].copy()).view(torch.float8_e4m3fn).float().numpy()
        np.testing.assert_array_equal(d, np.repeat(expected[:, None], 128, axis=1))


def test_bytes_that_never_come(values: Library) -> None:
    with pytest.raises(
        RuntimeError, match=r"deadlock\n  thread \(0,0,0\) waits in mbarrier_wait, at .*values\.cu"
    ):
        values("run_too_few_bytes", np.zeros(32, dtype=np.uint8))


def test_ldmatrix(values: Library) -> None:
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    out = np.zeros((2, 4, 32), dtype=np.uint32)
    values("run_load_matrices", matrices, out)
    # Two elements side by side in a register are one 32-bit element of a little-endian array.
    np.testing.assert_array_equal(out[0], matrices.reshape(4, 64).view(np.uint32))
    transposed = np.ascontiguousarray(matrices.transpose(0, 2, 1))
    np.testing.assert_array_equal(out[1], transposed.reshape(4, 64).view(np.uint32))


def test_pairs_and_powers(values: Library) -> None:
    x = np.array(
        [0.0, -1.0, 1 / 3, -2.5, 65504, -3e38, np.inf, -np.inf, np.nan, -126, -127], dtype=np.float32
    )
    out = np.zeros((3, len(x)), dtype=np.uint32)
    values("run_pairs_and_powers", x, out, len(x))
    with np.errstate(over="ignore"):
        halves = np.stack([x.astype(np.float16), np.ones(len(x), np.float16)], 1)
    np.testing.assert_array_equal(out[0].view(np.float16).reshape(-1, 2), halves)
    assert np.all(out[1] & 0xFFFF == 0x3F80)
    np.testing.assert_allclose((out[1] & 0xFFFF0000).view(np.float32)[:5], x[:5], rtol=2**-8)
    with np.errstate(over="ignore"):
        powers = np.where(x < -126, np.float32(0), np.exp2(x))
    np.testing.assert_allclose(out[2].view(np.float32), powers, rtol=2**-22)


@pytest.mark.parametrize("seed", SEEDS)
def test_block_sum(values: Library, seed: int) -> None:
    x = np.arange(1000, dtype=np.float32)
    y = np.zeros(4, dtype=np.float32)
    values("run_block_sum", x, y, 1000, seed=seed)
    np.testing.assert_array_equal(y, [x[i : i + 256].sum() for i in range(0, 1000, 256)])


def test_warp_collectives(values: Library, rng: np.random.Generator) -> None:
    x = rng.integers(-9, 10, 32).astype(np.int32)
    lanes = np.arange(32)
    out = np.zeros((9, 32), dtype=np.int32)
    values("run_collectives", x, out)
    np.testing.assert_array_equal(out[0], np.cumsum(x))
    np.testing.assert_array_equal(out[1], x[lanes // 16 * 16 + (lanes + 3) % 16])
    np.testing.assert_array_equal(out[2], x[np.where(lanes % 8 < 6, lanes + 2, lanes)])
    ballot = sum(1 << lane for lane in range(32) if x[lane] > 0)
    np.testing.assert_array_equal(out[3].view(np.uint32), np.full(32, ballot, dtype=np.uint32))
    np.testing.assert_array_equal(out[4], np.full(32, x.max()))
    np.testing.assert_array_equal(out[5], x[lanes ^ 5])
    remainder = np.fmod(x, 3)
    matches = [sum(1 << j for j in range(32) if remainder[j] == remainder[i]) for i in range(32)]
    np.testing.assert_array_equal(out[6].view(np.uint32), np.array(matches, dtype=np.uint32))
    np.testing.assert_array_equal(out[7], np.full(32, (x > 0).sum()))
    np.testing.assert_array_equal(out[8], np.full(32, int((x > 8).any()) + 2))


@pytest.mark.parametrize("seed", SEEDS)
def test_histogram_in_dynamic_shared_memory(values: Library, rng: np.random.Generator, seed: int) -> None:
    x = rng.integers(0, 37, 1500).astype(np.uint32)
    counts = np.zeros(37, dtype=np.uint32)
    values("run_histogram", x, counts, 1500, 37, seed=seed)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=37))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(16, 16, 16), (33, 20, 50), (1, 1, 1)], ids=str)
def test_matmul_double_buffered(
    values: Library, rng: np.random.Generator, shape: tuple[int, int, int], seed: int
) -> None:
    m, n, k = shape
    a, b = (rng.integers(-8, 9, size).astype(np.float32) for size in ((m, k), (k, n)))
    c = np.full((m, n), np.nan, dtype=np.float32)
    values("run_matmul", a, b, c, m, n, k, seed=seed)
    np.testing.assert_array_equal(c, a @ b)


def test_seed_fixes_the_order_of_threads(values: Library) -> None:
    def order(seed: int) -> list[int]:
        out = np.zeros(64, dtype=np.int32)
        values("run_arrival", out, 64, seed=seed)
        return [int(i) for i in out]

    assert sorted(order(1)) == list(range(64))
    assert order(1) == order(1)
    assert order(1) != order(2) != list(range(64))


def test_deadlock_names_who_waits_where(values: Library) -> None:
    with pytest.raises(RuntimeError, match="simt: deadlock") as caught:
        values("run_ring")
    for lane, mask in enumerate(("0x00000003", "0x00000006", "0x00000005")):
        assert re.search(
            rf"thread \({lane},0,0\) waits in __syncwarp\({mask}\), at .*values\.cu:", str(caught.value)
        )


def test_next_launch_after_an_error_is_clean(values: Library) -> None:
    """Threads of a failed launch are left in the middle of it; no later launch, of any size, may meet them."""
    out = np.zeros(128, dtype=np.int32)
    for threads in (96, 128):
        with pytest.raises(RuntimeError, match=r"kernel .*leave_early.*, grid"):
            values("run_leave_early", threads)
        for size in (3, 32, 128):
            values("run_arrival", out, size)
            assert sorted(out[:size]) == list(range(size))


@pytest.mark.parametrize(
    ("grid", "threads", "smem", "message"),
    [
        ((0, 1), 32, 0, r"grid must be within 1 and \(2147483647, 65535, 65535\), got \(0, 1, 1\)"),
        ((2**31, 1), 32, 0, r"got \(2147483648, 1, 1\)"),
        ((1, 65536), 32, 0, r"got \(1, 65536, 1\)"),
        ((1, 1), 1025, 0, r"block must have 1 to 1024 threads, got \(1025, 1, 1\)"),
        ((1, 1), 32, 228 * 1024, r"launch: dynamic shared memory: cudaErrorInvalidValue"),
    ],
)
def test_launch_refuses(
    values: Library, grid: tuple[int, int], threads: int, smem: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"fastdiff::.*{message}"):
        values("run_shape", *map(ctypes.c_uint, (*grid, threads)), smem)


def test_blocks_for_refuses_what_would_be_truncated(values: Library) -> None:
    values("run_blocks_for", ctypes.c_int64(2**31 - 1))
    for work in (-1, 2**31, 2**32 + 1):
        with pytest.raises(RuntimeError, match="need more blocks than a grid can have"):
            values("run_blocks_for", ctypes.c_int64(work))


def test_speed(values: Library) -> None:
    """200 blocks of 256 threads with shuffles take at most a second."""
    x, y = np.ones(200 * 256, dtype=np.float32), np.zeros(200, dtype=np.float32)
    begin = time.process_time()
    values("run_block_sum", x, y, x.size)
    assert time.process_time() - begin < 1.0
    assert np.all(y == 256)


@pytest.mark.skipif(build.toolkit_include() is None, reason="needs the headers of a CUDA toolkit")
def test_toolkit_headers_round_as_we_do(rng: np.random.Generator) -> None:
    library = Library(build.build_library([build.KIT / "values" / "toolkit.cu"], "toolkit"))
    bits = rng.integers(0, 2**32, 20000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = np.where(np.isnan(x), np.float32(1), x)  # which NaN comes out is not the same
    toolkit, ours = np.zeros((2, x.size, 2), dtype=np.uint16)
    library("run_round_all", x, toolkit, ours, x.size)
    np.testing.assert_array_equal(ours, toolkit)


# ---- the worker --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worker(binaries: Binaries) -> Iterator[SimtWorker]:
    with SimtWorker(module=binaries.worker, timeout=20) as worker:
        yield worker


def test_worker_writes_outputs_in_place(worker: SimtWorker) -> None:
    x, out = torch.arange(40.0), torch.full((50,), -1.0)
    assert worker.call("twice", x, out=out[5:45], first=0, n=40) is None
    assert torch.equal(out[5:45], 2 * x)
    assert (out[:5] == -1).all()
    assert (out[45:] == -1).all()


def test_worker_output_may_be_input(worker: SimtWorker) -> None:
    x = torch.arange(12.0)
    worker.call("twice", x[2:], out=x[2:], first=0, n=10)
    assert x.tolist() == [0, 1, *(2.0 * i for i in range(2, 12))]


@pytest.mark.parametrize("offset", range(5))
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.complex64]
)
def test_worker_keeps_layout(worker: SimtWorker, dtype: torch.dtype, offset: int) -> None:
    base = torch.zeros(100, dtype=dtype)
    x = base[offset : offset + 24].view(2, 3, 4).transpose(0, 2)[:, 1:]
    misalignment, sizes, strides, name = worker.call("describe", x)
    assert misalignment == x.data_ptr() % 16
    assert (tuple(sizes), tuple(strides)) == (x.shape, x.stride())
    assert f"torch.{name}" == str(dtype)


@pytest.mark.parametrize("value", [None, 3, [1.5, (2, None)], {"a": "b"}], ids=str)
def test_worker_passes_values_through(worker: SimtWorker, value: Any) -> None:
    assert worker.call("echo", value) == value


@pytest.mark.parametrize("first", [-1, 1])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_worker_catches_bounds(worker: SimtWorker, first: int, offset: int) -> None:
    """One element in front of a slice or behind it, where the storage goes on."""
    x, out = torch.ones(64)[offset : offset + 20], torch.zeros(64)[:20]
    with pytest.raises(SimtCrashError, match="AddressSanitizer") as caught:
        worker.call("twice", x, out=out, first=first, n=20)
    said = str(caught.value)
    assert re.search("(READ|WRITE) (of size 4|memory access)", said)
    assert "simt: the process ends in kernel" in said
    worker.call("twice", x, out=out, first=0, n=20)
    assert torch.equal(out, 2 * x)


def test_worker_catches_write_to_input(worker: SimtWorker) -> None:
    with pytest.raises(SimtCrashError, match=r"(?s)SEGV.*WRITE"):
        worker.call("write_to_input", torch.ones(4))


def test_worker_raises_what_the_function_raises(worker: SimtWorker) -> None:
    with pytest.raises(ValueError, match=r"^no$"):
        worker.call("raise_value_error", "no")
    with pytest.raises(TypeError):
        worker.call("raise_value_error", 3, 4)


def test_worker_that_hangs_is_ended(binaries: Binaries) -> None:
    with SimtWorker(module=binaries.worker, timeout=1) as impatient:
        with pytest.raises(SimtCrashError, match="no answer within 1 s"):
            impatient.call("hang")
        impatient.timeout = 60  # a busy machine takes longer than a second to start the next one
        assert impatient.call("echo", 1) == 1
