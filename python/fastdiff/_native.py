# SPDX-License-Identifier: Apache-2.0
"""The only place that talks to torch.library and to the native library.

Schemas, shape functions and tags are Python; the native library only implements them, so that a second
copy of it in the same process warns instead of killing the process, and so that schemas and fakes work
where the library is absent.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

NAMESPACE: Final = "fastdiff"
LIBRARY_PATH: Final = Path(__file__).with_name("libfastdiff.so")
ISA_VARIABLE: Final = "FASTDIFF_CPU_ISA"
INSTRUCTION_SETS: Final = ("baseline", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx")

_definitions = torch.library.Library(NAMESPACE, "DEF")  # noqa: TOR901  (lives as long as the module)


def define(schema: str, fake: Callable[..., Any], *, tags: tuple[torch.Tag, ...] = ()) -> None:
    """Register the schema and the shape function of one operator overload.

    Args:
        schema: as in ``torch.library.define``, without the namespace: ``"op.out(Tensor x) -> ()"``.
        fake: the shape function, called with fake tensors under tracing; it must not touch data.
        tags: besides ``pt2_compliant_tag``, which every operator here earns by passing opcheck.
    """
    _definitions.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    name = schema.split("(", 1)[0]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_definitions)


def load() -> None:
    """Load the kernels, once. Raises ImportError naming the missing file and the way to build it."""
    if not LIBRARY_PATH.exists():
        raise ImportError(
            f"fastdiff: {LIBRARY_PATH.name} is not beside {__file__}; build it with `pip install .`"
        )
    torch.ops.load_library(str(LIBRARY_PATH))
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted:
        use_isa(wanted)


def mark_written(tensors: Sequence[torch.Tensor]) -> None:
    """Tell autograd that an operator has written these tensors, so that it refuses to use what it saved of them.

    Operators of the stable ABI do not do this themselves. A compiled graph does it for the whole graph.
    """
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version([t for t in tensors if not t.is_inference()])


def isa() -> str:
    """The instruction set that the CPU kernels use: one of :data:`INSTRUCTION_SETS`."""
    library = ctypes.CDLL(str(LIBRARY_PATH))
    library.fastdiff_isa_used.restype = ctypes.c_char_p
    name: bytes = library.fastdiff_isa_used()
    return name.decode()


def use_isa(name: str) -> None:
    """Force the CPU kernels of this process to one instruction set of :data:`INSTRUCTION_SETS`.

    Raises:
        ValueError: the name is unknown, the ISA was not built, or this CPU lacks it.
    """
    from fastdiff import _C  # it has the same kernels, and its own choice among them

    answer = ctypes.CDLL(str(LIBRARY_PATH)).fastdiff_isa_request(name.encode())
    reasons = {
        1: f"is not one of {', '.join(INSTRUCTION_SETS)}",
        2: "was not built into this library",
        3: "is not supported by this CPU",
    }
    if answer:
        raise ValueError(f"fastdiff: instruction set {name!r} ({ISA_VARIABLE}) {reasons[answer]}")
    _C.use_isa(name)
