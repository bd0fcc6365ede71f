# SPDX-License-Identifier: Apache-2.0
"""What a diffusers scheduler was configured with, read option by option, so that none is silently ignored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastdiff.planners import Plan
from fastdiff.schedules import Steps

# Entries of a scheduler's config that say where it came from, not what it does.
_PROVENANCE = ("_class_name", "_diffusers_version", "_name_or_path", "_use_default_values")
_ABSENT = object()


class Options:
    """The config of one scheduler and the keywords of one `plan_from`, with a record of what has been read.

    A mapping function reads what it needs: `o["solver_order"]`. An option that it cannot honour is refused by
    name: `o.require("use_lu_lambdas", False)`. What is left over at the end and differs from the default of
    the scheduler's class is refused too, so that an option of a later diffusers cannot be overlooked.
    """

    def __init__(self, scheduler: Any, steps: int | None, keywords: Mapping[str, Any]) -> None:
        self.scheduler = scheduler
        self.name = type(scheduler).__name__
        self._steps = steps
        self._keywords = dict(keywords)
        self._config = {key: value for key, value in scheduler.config.items() if key not in _PROVENANCE}
        self._defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(type(scheduler).__init__).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
        self._unread = set(self._config)
        self._uncalled = set(self._keywords)

    # ---- reading -------------------------------------------------------------------------------------------

    def __getitem__(self, option: str) -> Any:
        """The value of a config option.

        Raises:
            ValueError: the scheduler has none of that name.
        """
        self._unread.discard(option)
        if option not in self._config:
            raise ValueError(
                f"{self._where}: it has no option {option}; is this the diffusers that it expects?"
            )
        return self._config[option]

    def __contains__(self, option: str) -> bool:
        return option in self._config

    def get(self, option: str, default: Any) -> Any:
        """The value of an option that not all the classes of one mapping have."""
        return default if option not in self._config else self[option]

    def call(self, keyword: str, default: Any = None) -> Any:
        """The value of a keyword of `plan_from`: one of the scheduler's `set_timesteps` or `step`."""
        self._uncalled.discard(keyword)
        value = self._keywords.get(keyword, default)
        return default if value is None else value

    @property
    def num_inference_steps(self) -> int | None:
        """The number of steps, if it was given."""
        return self._steps

    @property
    def steps(self) -> Steps:
        """The number of steps, or the explicit timesteps.

        Raises:
            ValueError: both or neither were given.
        """
        timesteps = self.call("timesteps")
        if (timesteps is None) == (self._steps is None):
            raise ValueError(f"{self._where}: pass either num_inference_steps or timesteps")
        return self._steps if timesteps is None else [float(t) for t in timesteps]  # type: ignore[return-value]

    # ---- refusing ------------------------------------------------------------------------------------------

    def require(self, option: str, *values: Any) -> Any:
        """The value of an option, which must be one of these; an option that the class lacks is the first."""
        value = self.get(option, values[0])
        if value not in values:
            raise ValueError(
                f"{self._where}: cannot reproduce {option}={value!r} (expected {' or '.join(map(repr, values))})"
            )
        return value

    def refuse(self, option: str, reason: str) -> None:
        """Say that the value of this option, or of this keyword, cannot be reproduced, and why.

        Raises:
            ValueError: always.
        """
        value = self._keywords.get(option, self._config.get(option))
        raise ValueError(f"{self._where}: cannot reproduce {option}={value!r}: {reason}")

    def unaffecting(self, *options: str) -> None:
        """These options do not change what the scheduler computes here."""
        self._unread.difference_update(options)

    def check_all_read(self) -> None:
        """Refuse what nobody has read.

        Raises:
            ValueError: a keyword that has no effect with this config, or a non-default option that no planner has.
        """
        if self._uncalled:
            ignored = ", ".join(sorted(self._uncalled))
            raise ValueError(f"{self._where}: {ignored} would have no effect with this configuration")
        for option in sorted(self._unread):
            default = self._defaults.get(option, _ABSENT)
            if default is _ABSENT or not _equal(self._config[option], default):
                self.refuse(option, "no planner has this option")

    @property
    def _where(self) -> str:
        return f"plan_from: {self.name}"


def _equal(value: Any, default: Any) -> bool:
    return bool(value == default) or (isinstance(value, list) and value == list(default or ()))


Mapper = Callable[[Options], Plan]


@dataclass(frozen=True)
class Entry:
    """How one class is reproduced."""

    mapper: Mapper
    keywords: tuple[str, ...]


MAPPERS: dict[str, Entry] = {}


def reproduces(*classes: str, keywords: tuple[str, ...] = ()) -> Callable[[Mapper], Mapper]:
    """Register the function that makes the plan of these scheduler classes.

    Args:
        classes: names in `diffusers`.
        keywords: what `plan_from` may be given besides the number of steps; `Options.call` reads them.
    """

    def register(mapper: Mapper) -> Mapper:
        for name in classes:
            MAPPERS[name] = Entry(mapper, keywords)
        return mapper

    return register
