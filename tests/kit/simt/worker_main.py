# SPDX-License-Identifier: Apache-2.0
"""The worker process: imports the sanitized extension and runs what worker.py sends. Knows nothing of torch.

usage: worker_main.py MODULE_NAME MODULE_PATH READ_FD WRITE_FD
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import io
import mmap
import os
import pickle
import sys
from dataclasses import dataclass
from typing import Any, BinaryIO

_PAGE = mmap.PAGESIZE
_PROT_NONE, _PROT_READ, _PROT_WRITE = 0, 1, 2
_MAP_PRIVATE_ANONYMOUS = 0x22
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def _checked(status: int) -> None:
    if status != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _asan(function: str, address: int, size: int) -> None:
    """Call __asan_<function>_memory_region, if ASan is there."""
    if call := getattr(_libc, f"__asan_{function}_memory_region", None):
        call(ctypes.c_void_p(address), ctypes.c_size_t(size))


class Buffer:
    """A copy of `data` that ends at a page that may not be touched, and follows another one.

    The copy's address is `misalignment` above a multiple of `alignment`. The up to `alignment` - 1 bytes that
    this leaves before the page, and those in front of the copy, are NaN, and poisoned if ASan is there. (ASan's
    grain is 8 bytes: of the grain in which a misaligned copy begins, it knows only that it is not all free.)
    """

    def __init__(self, data: bytes, alignment: int, misalignment: int, writable: bool) -> None:
        self.size = len(data)
        slack = (-len(data) - misalignment) % alignment
        self._inner = max(-(-(len(data) + slack) // _PAGE), 1) * _PAGE
        mapped = _libc.mmap(None, self._inner + 2 * _PAGE, _PROT_NONE, _MAP_PRIVATE_ANONYMOUS, -1, 0)
        if mapped in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"cannot map {self._inner} bytes")
        self._mapped: int = mapped
        self._begin = mapped + _PAGE
        _checked(_libc.mprotect(self._begin, self._inner, _PROT_READ | _PROT_WRITE))
        self.address = self._begin + self._inner - slack - self.size
        ctypes.memset(self._begin, 0xFF, self._inner)
        ctypes.memmove(self.address, data, self.size)
        _asan("poison", self._begin, self.address - self._begin)
        _asan("poison", self.address + self.size, slack)
        if not writable:
            _checked(_libc.mprotect(self._begin, self._inner, _PROT_READ))

    def read(self) -> bytes:
        return ctypes.string_at(self.address, self.size)

    def free(self) -> None:
        _asan("unpoison", self._begin, self._inner)
        _checked(_libc.munmap(self._mapped, self._inner + 2 * _PAGE))


@dataclass
class TensorHeader:
    """Where a tensor lies in a buffer."""

    buffer: int
    byte_offset: int
    code: int  # DLPack's type code
    bits: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLManagedTensor(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_READ_ONLY = 1
_CPU = 1


class Array:
    """A tensor in a Buffer, for any consumer of DLPack 1. The worker keeps it alive while the call runs."""

    def __init__(self, buffer: Buffer, header: TensorHeader, writable: bool) -> None:
        rank = len(header.sizes)
        self._sizes = (ctypes.c_int64 * rank)(*header.sizes)
        self._strides = (ctypes.c_int64 * rank)(*header.strides)
        data = buffer.address + header.byte_offset
        tensor = _DLTensor(data, _CPU, 0, rank, header.code, header.bits, 1, self._sizes, self._strides, 0)
        self._managed = _DLManagedTensor(1, 0, None, None, 0 if writable else _READ_ONLY, tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU, 0

    def __dlpack__(self, *, max_version: tuple[int, int], **_: Any) -> Any:
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self._managed), b"dltensor_versioned", None)


class _Unpickler(pickle.Unpickler):
    """Puts the arrays where worker.py put their numbers."""

    def __init__(self, payload: bytes, arrays: list[Array]) -> None:
        super().__init__(io.BytesIO(payload))
        self._arrays = arrays

    def persistent_load(self, pid: int) -> Array:
        return self._arrays[pid]


def _import(name: str, path: str) -> Any:
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _run(module: Any, path: str, request: dict[str, Any]) -> dict[str, Any]:
    """One call. Returns its value or its exception, and what the writable buffers hold afterwards."""
    ctypes.CDLL(path).fastdiff_simt_set_seed(ctypes.c_ulonglong(request["seed"]))
    writable: list[bool] = request["writable"]
    contents: list[tuple[bytes, int, int]] = request["buffers"]
    buffers = [Buffer(*content, w) for content, w in zip(contents, writable, strict=True)]
    headers = [TensorHeader(*fields) for fields in request["tensors"]]
    arrays = [Array(buffers[h.buffer], h, writable[h.buffer]) for h in headers]
    try:
        args, kwargs = _Unpickler(request["payload"], arrays).load()
        reply: dict[str, Any] = {"value": getattr(module, request["function"])(*args, **kwargs)}
    except Exception as error:
        reply = {"error": (type(error).__name__, str(error))}
    reply["written"] = [b.read() if w else None for b, w in zip(buffers, writable, strict=True)]
    for buffer in buffers:
        buffer.free()
    return reply


def main() -> None:
    name, path, read_fd, write_fd = sys.argv[1:]
    requests: BinaryIO = open(int(read_fd), "rb")  # noqa: SIM115
    replies: BinaryIO = open(int(write_fd), "wb")  # noqa: SIM115
    module = _import(name, path)
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(_run(module, path, request), replies)
        replies.flush()


if __name__ == "__main__":
    main()
