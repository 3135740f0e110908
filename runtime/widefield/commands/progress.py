"""How far a run is, on stderr: a bar where somebody looks at it, else a line every ten seconds, or nothing.

Callbacks come from working threads, one at a time.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from widefield.commands.output import show_seconds, show_speed

if TYPE_CHECKING:
    from widefield.render import Progress

EVERY_SECONDS = 10.0


def described(progress: Progress) -> str:
    """ "3.41 Mpx/s, 2 min 5 s left"."""
    left = progress.seconds / max(1, progress.done) * (progress.total - progress.done)
    return f"{show_speed(progress.px_done, progress.seconds)}, {show_seconds(left)} left"


class Reporter:
    """Says nothing; keeps how many pixels were made. `talk` and `progress` are what Picture.save calls."""

    def __init__(self) -> None:
        self.px_done = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The run is over, well or not."""

    def talk(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of a pass that makes no pixels."""

    def progress(self, progress: Progress) -> None:
        """A tile is done."""
        self.px_done = progress.px_done


class Lines(Reporter):
    """A line every ten seconds, for logs."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb = verb
        self._last = time.monotonic()

    def talk(self, what: str, done: int, total: int) -> None:
        self._say(f"{what}: {done} of {total}")

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self._say(f"{self.verb}: {progress.done} of {progress.total} tiles, {described(progress)}")

    def _say(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= EVERY_SECONDS:
            self._last = now
            print(line, file=sys.stderr, flush=True)


class Bar(Reporter):
    """One line that is drawn again; gone when the run is over, since the last lines say it all."""

    def __init__(self, verb: str, console: Any) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().__init__()
        self.verb = verb
        self._rich = RichProgress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rest]}"), console=console, refresh_per_second=4, transient=True,
        )  # fmt: skip
        self._shown = ""  # a new kind of work is drawn at once, however short it is
        self._task = self._rich.add_task(verb, total=None, visible=False, rest="")

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rich.stop()

    def talk(self, what: str, done: int, total: int) -> None:
        self._draw(what, done, total, "")

    def progress(self, progress: Progress) -> None:
        super().progress(progress)
        self._draw(self.verb, progress.done, progress.total, f"tiles, {described(progress)}")

    def _draw(self, what: str, done: int, total: int, rest: str) -> None:
        new = what != self._shown
        self._shown = what
        self._rich.update(self._task, description=what, completed=done, total=total, rest=rest, visible=True)
        if new:
            self._rich.refresh()


def reporter(verb: str, *, quiet: bool) -> Reporter:
    """The one that suits where stderr goes."""
    if quiet:
        return Reporter()
    if not sys.stderr.isatty():
        return Lines(verb)
    from rich.console import Console

    console = Console(stderr=True)
    return Bar(verb, console) if console.is_terminal and not console.is_dumb_terminal else Lines(verb)
