# SPDX-License-Identifier: Apache-2.0
"""Runs kernels of the emulated module from an ordinary Python process.

ASan must be the first library of a process, so the module lives in a process of its own, which takes calls
over a pipe. It keeps running from call to call; if a call kills it, that call raises SimtCrashError with what
the sanitizer said, and the next one starts a new worker.
"""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from .build import MODULE, Checks, build_module, preload_environment

ALIGNMENT = 16
"""The widest access of one CUDA thread, in bytes; the copy of a tensor is as misaligned as the tensor."""

WRITTEN = ("out", "scratch")
"""The arguments whose tensors a call may write."""

_STDERR_TAIL = 6000
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


class SimtCrashError(RuntimeError):
    """The worker process ended or hung during a call; the message ends with its stderr."""


class SimtWorker:
    """A process with the emulated kernels.

    checks: which build of the module, see build.Checks. seed: of the order in which threads run.
    timeout: seconds after which a call counts as hung. Change both freely between calls. module: another extension than
    fastdiff's own.
    """

    def __init__(
        self, checks: Checks = "memory", *, seed: int = 1, timeout: float = 120.0, module: Path | None = None
    ) -> None:
        self.seed = seed
        self._checks = checks
        self.timeout = timeout
        self._module = module
        self._process: _Process | None = None

    def call(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of the module and return what it returns.

        Arguments may be or contain CPU tensors; the function gets DLPack arrays with the same shapes, strides
        misalignment and overlaps, each between pages that may not be touched. Those in `out` and `scratch`
        are written back; memory that none of them covers is read-only. Raises what the function raises (as RuntimeError
        if that is no built-in exception), and SimtCrashError.
        """
        request = _Request(function, args, kwargs, self.seed)
        process = self._started()
        try:
            reply = process.exchange(request.message(), self.timeout)
        except SimtCrashError:
            self.close()
            raise
        request.write_back(reply["written"])
        if error := reply.get("error"):
            raise _exception(*error)
        return reply["value"]

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _started(self) -> _Process:
        if self._process is None:
            module = self._module or build_module(self._checks)
            self._process = _Process(module, self._checks)
        return self._process

    def __enter__(self) -> SimtWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exception(kind: str, message: str) -> Exception:
    known = getattr(builtins, kind, None)
    if isinstance(known, type) and issubclass(known, Exception):
        return known(message)
    return RuntimeError(message)


class _Process:
    """The worker process and its pipes."""

    def __init__(self, module: Path, checks: Checks) -> None:
        child_reads, self._write_fd = os.pipe()
        self._read_fd, child_writes = os.pipe()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        name = module.name.split(".")[0] if module.name else MODULE
        script = str(Path(__file__).with_name("worker_main.py"))
        self._child = subprocess.Popen(
            [sys.executable, script, name, str(module), str(child_reads), str(child_writes)],
            env=preload_environment(checks),
            pass_fds=(child_reads, child_writes),
            stderr=self._stderr,
        )
        os.close(child_reads)
        os.close(child_writes)
        self._reader = open(self._read_fd, "rb")  # noqa: SIM115
        self._writer = open(self._write_fd, "wb")  # noqa: SIM115

    def exchange(self, message: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            pickle.dump(message, self._writer)
            self._writer.flush()
            if not select.select([self._reader], [], [], timeout)[0]:
                raise SimtCrashError(f"simt: no answer within {timeout:g} s\n{self._ended(timeout=0)}")
            reply: dict[str, Any] = pickle.load(self._reader)
            return reply
        except (EOFError, BrokenPipeError) as error:
            raise SimtCrashError(f"simt: the worker process has ended\n{self._ended()}") from error

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for file in (self._reader, self._writer, self._stderr):
            with contextlib.suppress(BrokenPipeError):
                file.close()

    def _ended(self, timeout: float = 5.0) -> str:
        """Status and the end of stderr. The process has ended or is about to; if not, it is made to."""
        try:
            self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(size - _STDERR_TAIL, 0))
        return f"exit status {self._child.returncode}\n{self._stderr.read().decode(errors='replace')}"


class _Extent:
    """A run of bytes of a torch storage that tensors of one call occupy."""

    def __init__(self, storage: torch.UntypedStorage, begin: int, end: int) -> None:
        self.storage, self.begin, self.end = storage, begin, end

    def bytes_view(self) -> torch.Tensor:
        whole = torch.empty(0, dtype=torch.uint8).set_(self.storage)
        return whole[self.begin : self.end]


class _Request:
    """One call: its arguments pickled, with numbers in place of tensors, and the memory of the tensors.

    Tensors that overlap share a buffer, as they share memory. Others do not, even if they are parts of one
    tensor: a kernel that leaves the part it was given is caught.
    """

    def __init__(self, function: str, args: tuple[Any, ...], kwargs: dict[str, Any], seed: int) -> None:
        self._function, self._seed = function, seed
        self._tensors: list[torch.Tensor] = []
        self._payload = _Pickler(self._tensors).dumps((args, kwargs))
        written: list[torch.Tensor] = []
        _Pickler(written).dumps([kwargs.get(name) for name in WRITTEN])
        self._extents = list(_merged([_extent(t) for t in self._tensors]))
        outputs = {self._extent_of(t) for t in written}
        self._writable = [i in outputs for i in range(len(self._extents))]

    def message(self) -> dict[str, Any]:
        buffers = []
        for extent in self._extents:
            misalignment = (extent.storage.data_ptr() + extent.begin) % ALIGNMENT
            buffers.append((extent.bytes_view().numpy().tobytes(), ALIGNMENT, misalignment))
        return {
            "function": self._function,
            "seed": self._seed,
            "payload": self._payload,
            "buffers": buffers,
            "writable": self._writable,
            "tensors": [self._header(t) for t in self._tensors],
        }

    def write_back(self, contents: list[bytes | None]) -> None:
        for extent, content in zip(self._extents, contents, strict=True):
            if content:
                extent.bytes_view().copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def _header(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        index = self._extent_of(tensor)
        offset = tensor.storage_offset() * tensor.element_size() - self._extents[index].begin
        dtype = (_type_code(tensor), 8 * tensor.element_size())
        return index, offset, *dtype, tuple(tensor.shape), tensor.stride()

    def _extent_of(self, tensor: torch.Tensor) -> int:
        wanted = _extent(tensor)
        for index, extent in enumerate(self._extents):
            same = extent.storage.data_ptr() == wanted.storage.data_ptr()
            if same and extent.begin <= wanted.begin and wanted.end <= extent.end:
                return index
        raise AssertionError("every tensor lies in an extent")


class _Pickler(pickle.Pickler):
    """Pickles anything, with a number for each tensor, which goes to `tensors`."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._bytes = io.BytesIO()
        self._tensors = tensors
        super().__init__(self._bytes)

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, torch.Tensor):
            return None
        if obj.device.type != "cpu":
            raise ValueError(f"simt: tensors must be on the CPU, got {obj.device}")
        self._tensors.append(obj.detach())
        return len(self._tensors) - 1

    def dumps(self, value: Any) -> bytes:
        self.dump(value)
        return self._bytes.getvalue()


def _type_code(tensor: torch.Tensor) -> int:
    """DLPack's."""
    if tensor.dtype == torch.bfloat16:
        return 4
    if tensor.dtype == torch.bool:
        return 6
    if tensor.dtype in _UNSIGNED:
        return 1
    return 2 if tensor.is_floating_point() else 5 if tensor.is_complex() else 0


def _extent(tensor: torch.Tensor) -> _Extent:
    begin = int(tensor.storage_offset())
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = begin + (span if tensor.numel() else 0)
    return _Extent(tensor.untyped_storage(), begin * tensor.element_size(), end * tensor.element_size())


def _merged(extents: list[_Extent]) -> Iterator[_Extent]:
    """Overlapping extents as one; an empty one that another touches goes with it."""
    pending: _Extent | None = None
    for extent in sorted(extents, key=lambda e: (e.storage.data_ptr(), e.begin, e.end)):
        if pending is not None and _belong_together(pending, extent):
            pending.end = max(pending.end, extent.end)
            continue
        if pending is not None:
            yield pending
        pending = extent
    if pending is not None:
        yield pending


def _belong_together(first: _Extent, second: _Extent) -> bool:
    """For a first that begins where the second does, or before."""
    same = first.storage.data_ptr() == second.storage.data_ptr()
    empty = second.begin == second.end or first.begin == first.end
    return same and (second.begin < first.end or (empty and second.begin == first.end))
