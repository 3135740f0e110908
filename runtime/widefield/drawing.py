"""Draw a picture level by level, each from the one below, which lies on disk by then. Resumable by shards.

FOLDER/level-00.zarr ... level-KK.zarr     latents, a LevelStore each
FOLDER/DIGEST/level-K.decoder.safetensors  summaries that were measured on the way, of the picture with that digest
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from widefield.cascade import Cascade, CascadeOptions
from widefield.denoise import Denoiser
from widefield.device import limit_pool
from widefield.draw_plan import DrawPlan
from widefield.engine import EngineOptions
from widefield.engine.heap import trim_heap
from widefield.errors import WidefieldError
from widefield.generation import Generation
from widefield.geometry import Region
from widefield.level_store import DIGEST, SHARD, LevelStore
from widefield.levels import Level
from widefield.memo import Memo
from widefield.reading import Watch, watched
from widefield.sinks import create_latents, explained
from widefield.summary import Summary
from widefield.tiles import Source

Talk = Callable[[str, int, int], None]


class Drawing:
    """The levels of a picture on disk, in `folder`. Without a plan, nothing is kept of a level while it is made."""

    def __init__(
        self, generation: Generation, folder: Path, engine: EngineOptions, plan: DrawPlan | None = None
    ) -> None:
        self.generation, self.folder, self.engine = generation, folder, engine
        self.plan = plan or DrawPlan((), 0, 0, CascadeOptions().encoder_tile, 0)
        self._denoiser: Denoiser | None = None
        self._opening = threading.Lock()

    def store(self, level: Level, *, overwrite: bool = False) -> LevelStore:
        """A level's latents, made or found."""
        channels = self.generation.bundle.decoder.input_channels
        digest = self.generation.digest(level.index, self.engine)
        path = self.folder / f"level-{level.index:02}.zarr"
        return LevelStore(path, (channels, level.height, level.width), digest, overwrite=overwrite)

    def draw(self, talk: Talk | None = None, *, overwrite: bool = False) -> dict[int, Source]:
        """Make what is missing of every level; gives the latents of all that were drawn.

        StoreError where another picture's levels are there, unless `overwrite`.
        """
        with explained(self.folder):
            self.folder.mkdir(exist_ok=True)
        stored: dict[int, Source] = {}
        with closing(self):
            self._draw(stored, talk, overwrite=overwrite)
        return stored

    def _draw(self, stored: dict[int, Source], talk: Talk | None, *, overwrite: bool) -> None:
        for level in self.generation.levels:
            if level.index == 0 and self.generation.ground is not None:
                continue
            store = self.store(level, overwrite=overwrite)
            missing = store.missing()
            if missing:
                self._make(level, store, missing, stored, talk)
            stored[level.index] = store.source()

    def _make(
        self,
        level: Level,
        store: LevelStore,
        missing: Sequence[Region],
        stored: Mapping[int, Source],
        talk: Talk | None,
    ) -> None:
        what = f"level {level.index} of {len(self.generation.levels) - 1}"
        total = sum(1 for _ in store.shards())
        with self.making(level, store, stored) as make:
            for done, shard in enumerate(missing, total - len(missing)):
                if talk is not None:
                    talk(what, done, total)
                make(shard)

    @contextmanager
    def making(
        self, level: Level, store: LevelStore, stored: Mapping[int, Source]
    ) -> Iterator[Callable[[Region], None]]:
        """What makes and commits a shard of a level, on top of those that are stored; inside, engines stay open."""
        with closing(self.cascade(stored)) as cascade:
            latents = cascade.latents[level.index]
            assert latents is not None

            def make(shard: Region) -> None:
                with watched(Watch()):
                    cascade.prepare(level.index, shard)
                    values = latents.read(shard)
                if not np.isfinite(values).all():
                    raise WidefieldError(
                        f"the denoiser gave values that are not numbers at level {level.index}, {shard}; wanted finite "
                        "ones; try --precision f32"
                    )
                store.write(shard, values)

            yield make

    @property
    def summaries(self) -> Path:
        """Where what is measured on the way is kept."""
        return self.folder / self.generation.digest(-1, self.engine)[:16]

    def cascade(self, stored: Mapping[int, Source], summaries: Path | None = None) -> Cascade:
        """The fields of every level, on top of those that are stored; the caller closes them. `summaries`: where they
        are kept instead."""
        summaries = self.summaries if summaries is None else summaries
        with explained(self.folder):
            summaries.mkdir(exist_ok=True)
        plan = self.plan
        limit_pool(self.engine, plan.pool_nbytes)
        options = self.generation.cascade_options(
            self.engine, summaries=summaries, held_nbytes=plan.held_nbytes, encoder_tile=plan.encoder_tile
        )
        return self.generation.cascade(Memo(plan.memo_nbytes), options, stored, self.denoiser)

    def denoiser(self) -> Denoiser:
        """The one of all levels."""
        with self._opening:
            if self._denoiser is None:
                self._denoiser = self.generation.denoiser(self.engine)
            return self._denoiser

    def close(self) -> None:
        """Give the denoiser back; drawing more opens it again."""
        if self._denoiser is not None:
            self._denoiser.close()
            self._denoiser = None
            trim_heap()

    def inherited_summary(self, stored: Mapping[int, Source]) -> Summary:
        """What the last level's decoder goes by."""
        with closing(self.cascade(stored)) as cascade:
            return cascade.summary("decoder", len(self.generation.levels) - 1)

    def keep(self, path: Path, *, overwrite: bool) -> None:
        """Copy the last level's latents to a .npy file or a .zarr array."""
        store = self.store(self.generation.levels[-1])
        source = store.source()
        about = {"bundle": self.generation.bundle.digest, DIGEST: self.generation.digest(-1, self.engine)}
        with create_latents(path, store.shape, (SHARD, SHARD), about, overwrite=overwrite) as sink:
            for shard in store.shards():
                sink.write(shard, source.read(shard))

    def remove(self) -> None:
        """Give the disk back, once the picture is there."""
        shutil.rmtree(self.folder, ignore_errors=True)
