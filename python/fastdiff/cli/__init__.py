# SPDX-License-Identifier: Apache-2.0
"""The command ``fastdiff``: a subcommand is a module with ``add_arguments(parser)`` and ``run(args)``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fastdiff._version import __version__


class Command(NamedTuple):
    module: str
    summary: str


#: Imported only when asked for: ``fastdiff info`` must work where the others' optional packages are missing.
COMMANDS = {
    "info": Command("fastdiff.cli.info", "versions, instruction sets, devices, and why one is unavailable"),
    "bench": Command("fastdiff.bench.main", "times against eager PyTorch and torch.compile, results checked"),
    "demo": Command("fastdiff.cli.demo", "handwritten digits, sampled by diffusers and by fastdiff"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    parser = argparse.ArgumentParser(prog="fastdiff", description="Kernels for diffusion models in PyTorch.")
    parser.add_argument("--version", action="version", version=f"fastdiff {__version__}")
    subparsers = parser.add_subparsers(metavar="command", required=True)
    for name, command in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.summary, description=command.summary)
        if name != chosen:
            continue
        try:
            module = importlib.import_module(command.module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("fastdiff"):
                raise
            hint = f"pip install 'torch-fastdiff[{name}]'"
            print(f"fastdiff {name} needs {error.name}: {hint}", file=sys.stderr)
            return 1
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    return int(args.run(args))
