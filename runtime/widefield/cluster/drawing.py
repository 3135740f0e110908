"""Stages of a drawn picture before it is decoded: its levels, each from the one below, and the summaries between.

    decoder's summary of the level below -> encoder's of this one -> this level's shards, by all workers -> ...

A level's shard reads the level below around it, and the summaries read all of theirs, so a level is a barrier: a small
one, as each level is four or sixteen times the one before, and only the last few have many shards. Summaries are
measured on levels of at most 64 x 64 latents, by one worker each; who is first decides, and all read what it wrote,
for another machine might round them otherwise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from widefield.cluster.board import Board, publish
from widefield.cluster.work import Stage, Task
from widefield.drawing import Drawing
from widefield.geometry import Region
from widefield.level_store import SHARD, LevelStore
from widefield.levels import Level
from widefield.sinks import explained
from widefield.tiles import Source

Run = Callable[[str], None]
PARTS = ("encoder", "decoder")


class Levels:
    """The stages. `stages` is walked one by one: each looks at what those before it left on disk."""

    def __init__(self, drawing: Drawing, board: Board) -> None:
        self.drawing, self.board = drawing, board
        self._stores: dict[int, LevelStore] = {}

    def stages(self) -> Iterator[Stage]:
        """Of all levels, and at the end the summary that the picture's decoder inherits."""
        with explained(self.drawing.folder):
            self.drawing.folder.mkdir(exist_ok=True)
            self.drawing.summaries.mkdir(exist_ok=True)
        with closing(self.drawing):
            yield from self._stages()

    def _stages(self) -> Iterator[Stage]:
        generation = self.drawing.generation
        last = len(generation.levels) - 1
        for level in generation.levels:
            if level.index:
                yield from self._summary("decoder", level.index - 1)
                yield from self._summary("encoder", level.index)
            if level.index or generation.ground is None:
                yield self._level(level, last)
        yield from self._summary("decoder", last)

    def stored(self) -> dict[int, Source]:
        """Latents of the levels whose stages are over."""
        return {index: store.source() for index, store in self._stores.items()}

    # A level.

    def _level(self, level: Level, last: int) -> Stage:
        below = self.stored()
        store = self._stores[level.index] = self.drawing.store(level)
        shards = {f"level-{level.index}-{_number(shard)}": shard for shard in store.shards()}
        tasks = [Task(name, partial(store.has, shard)) for name, shard in shards.items()]

        @contextmanager
        def opened() -> Iterator[Run]:
            with self.drawing.making(level, store, below) as make:
                yield lambda name: make(shards[name])

        return Stage(
            f"level {level.index} of {last}", tasks, opened,
            lambda _: self._known(level.index - 1), lambda name: (store.file(shards[name]),),
        )  # fmt: skip

    def _known(self, *levels: int) -> Iterable[Path]:
        """The files of levels whose stages are over, and of all summaries."""
        for index in levels:
            if index in self._stores:
                store = self._stores[index]
                yield from map(store.file, store.shards())
        yield from summary_files(self.drawing)

    # A summary.

    def _summary(self, component: str, level: int) -> Iterator[Stage]:
        generation = self.drawing.generation
        index = min(level, generation.measured_levels - 1)
        if level == 0 and component == "decoder" and generation.ground is not None:
            return  # the picture that was given is not decoded
        if not generation.bundle.component(component).sites:
            return
        name = f"level-{index}.{component}.safetensors"
        file = self.drawing.summaries / name

        @contextmanager
        def opened() -> Iterator[Run]:
            yield lambda _: self._measure(component, index)

        yield Stage(
            f"summary of level {index}'s {component}", [Task(name, file.is_file)], opened,
            lambda _: self._known(*range(index + 1)), lambda _: (file,), decides=True,
        )  # fmt: skip

    def _measure(self, component: str, index: int) -> None:
        """Away from the others' eyes, beside what is known already; then it gets its name, if nobody was first."""
        with self.board.room() as room:
            for known in self.drawing.summaries.glob("*.safetensors"):
                shutil.copyfile(known, room / known.name)
            with closing(self.drawing.cascade(self.stored(), room)) as cascade:
                cascade.summary(component, index)
            name = f"level-{index}.{component}.safetensors"
            publish(room / name, self.drawing.summaries / name)


def summary_files(drawing: Drawing) -> list[Path]:
    """Of all summaries that are measured on the way."""
    names = [
        f"level-{index}.{each}.safetensors" for index in range(drawing.generation.measured_levels) for each in PARTS
    ]
    return [drawing.summaries / name for name in names]


def _number(shard: Region) -> str:
    return f"{shard.y0 // SHARD}-{shard.x0 // SHARD}"
