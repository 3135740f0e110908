"""Commands by the name of the object that they are, imported when asked for.

Packages other than the runtime name theirs as entry points of the group `widefield.commands`. A command whose package
is there and whose libraries are not is a fault that names the extra to install: widefield_export wants the extra
`export`, widefield_bench `bench`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import click

from widefield.errors import MissingBackend

GROUP = "widefield.commands"
BESIDE = {  # found without being installed, as in a source tree
    "export": "widefield_export.commands:export",
    "bench": "widefield_bench.commands:bench",
}


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command called `name`, at `target`: "module:object"."""

    name: str
    target: str

    @property
    def extra(self) -> str:
        """What to install for it."""
        return self.target.partition(".")[0].removeprefix("widefield_")

    def command(self) -> click.Command:
        """Import it. MissingBackend when it, or a library that it needs from the start, is not there."""
        module, _, attribute = self.target.partition(":")
        try:
            found: click.Command = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as cause:
            if module.startswith("widefield."):
                raise
            raise missing(self, cause) from cause
        return found if module.startswith("widefield.") else _guarded(self, found)

    def short_help(self) -> str:
        """One line for the list of commands; of a broken command, that it is."""
        try:
            return self.command().get_short_help_str(90)
        except Exception as cause:  # noqa: BLE001 -- somebody else's command must not take --help down
            return str(cause).splitlines()[0] if isinstance(cause, MissingBackend) else f"cannot be loaded: {cause!r}"


def missing(command: Lazy, cause: Exception) -> MissingBackend:
    """The fault of a command whose libraries are not there."""
    name = getattr(cause, "name", None)
    what = f"needs {name}, which is not installed" if isinstance(cause, ModuleNotFoundError) and name else str(cause)
    return MissingBackend(
        f"`widefield {command.name}` {what}; wanted the extra {command.extra!r}; "
        f"pip install 'widefield[{command.extra}]'"
    )


def _guarded(command: Lazy, found: click.Command) -> click.Command:
    """The same command, saying which extra to install when it meets a library that is not there."""
    run = found.callback
    if run is None or getattr(run, "guarded", False):
        return found

    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except ModuleNotFoundError as cause:
            if (cause.name or "widefield").startswith("widefield"):
                raise  # a bug of ours
            raise missing(command, cause) from cause

    guarded.guarded = True  # type: ignore[attr-defined]
    found.callback = guarded
    return found


@cache
def installed() -> dict[str, Lazy]:
    """Commands of other packages, by name. Imports none of them."""
    from importlib.metadata import entry_points

    found = {point.name: Lazy(point.name, point.value) for point in entry_points(group=GROUP)}
    for name, target in BESIDE.items():
        if name not in found and importlib.util.find_spec(target.partition(".")[0]) is not None:
            found[name] = Lazy(name, target)
    return found
