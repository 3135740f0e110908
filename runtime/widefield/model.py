"""The library's front: open a bundle, get a picture that is an array, save it in a budget.

For example:

    model = widefield.open("vae.wf")
    picture = model.decode("latents.npy")          # nothing computed yet
    picture[2000:2512, 4000:4512]                  # rows, columns: (512, 512, 3) uint8, computed now
    picture.save("harbour.tif", memory="2GiB")     # all of it, resumable
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widefield import __version__
from widefield.bundle import Bundle, open_bundle
from widefield.certificate import NOTHING, Certificate
from widefield.coder import TileCoder
from widefield.encode import Encoding
from widefield.errors import BadRequest, StoreError
from widefield.geometry import Region
from widefield.images import open_image
from widefield.options import RunOptions, parse_nbytes
from widefield.plan import STORE_TILE_PX, Plan, PlanRequest, key_count, make_plan
from widefield.render import Grid, Progress, decode_region, stream
from widefield.sources import LatentSource, check_finite, open_latents
from widefield.store import PyramidWriter, StoreSpec, create_or_resume, default_codec, open_store
from widefield.summary import Summary, load_summary
from widefield.sweep import SweepOptions, measure

EMBEDDED = Path(__file__).parent / "embedded"
Talk = Callable[[str, int, int], None]


def open(bundle: Path | str | None = None) -> Model:  # noqa: A001 -- widefield.open is the front door
    """The model in a bundle's folder; None opens the embedded checkpoint. Raises BadBundle."""
    return Model(open_bundle(EMBEDDED if bundle is None else bundle))


class Model:
    """An opened bundle. Holds no engine and no memory; every picture has its own."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def __repr__(self) -> str:
        return f"Model({self.bundle.name!r}, {self.bundle.family}, {self.bundle.scale} px a latent)"

    def decode(self, latents: Path | str | NDArray[Any], **options: Any) -> Picture:
        """A lazy picture of latents (C, H, W), as `output_type="latent"` returns them: .npy, .zarr or an array.

        `options` are RunOptions' fields, or memory="8GiB". Raises BadLatents for the wrong shape or type.
        """
        where = Path(latents) if isinstance(latents, str) else latents
        source = open_latents(where, channels=self.bundle.latent_channels)
        return Picture(self.bundle, source, run_options(options))

    def encode(self, image: Path | str | NDArray[Any], **options: Any) -> Encoding:
        """The latents of a picture, made when they are saved or asked for as an array: a file or uint8 (H, W, 3).

        `options` are as in `decode`. Raises BadLatents for what is no grey or RGB picture.
        """
        where = Path(image) if isinstance(image, str) else image
        return Encoding(self.bundle, open_image(where), run_options(options))


def run_options(options: Mapping[str, Any]) -> RunOptions:
    """RunOptions from keywords; `memory` may be text. Raises BadRequest for an unknown one."""
    given = dict(options)
    if "memory" in given:
        memory = given.pop("memory")
        given["memory_nbytes"] = parse_nbytes(memory) if isinstance(memory, str) else int(memory)
    try:
        return RunOptions(**given)
    except TypeError as cause:
        raise BadRequest(f"{cause}; options are {', '.join(RunOptions.__dataclass_fields__)} and memory") from None


class CheckedLatents:
    """Latents whose every read is looked at for NaN and infinity."""

    def __init__(self, source: LatentSource) -> None:
        self.source = source
        self.channels, self.height, self.width = source.channels, source.height, source.width

    def read(self, region: Region) -> NDArray[np.float32]:
        values = self.source.read(region)
        check_finite(values, region, self.source.name)
        return values


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save did. `engine_share` is the part of the workers' time that engines ran."""

    path: Path
    plan: Plan
    tiles_made: int
    tiles_found: int
    seconds: float
    measure_seconds: float
    engine_share: float
    bytes_written: int
    certificate: Certificate
    summary: Path | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "size_px": self.plan.as_dict()["size_px"],
            "tile_cells": list(self.plan.tile),
            "store_tiles_made": self.tiles_made,
            "store_tiles_found": self.tiles_found,
            "seconds": round(self.seconds, 3),
            "measure_seconds": round(self.measure_seconds, 3),
            "engine_share": round(self.engine_share, 4),
            "bytes_written": self.bytes_written,
            "summary": None if self.summary is None else str(self.summary),
            "certificate": {
                "tiles": self.certificate.tiles,
                "mean": self.certificate.mean,
                "deviation": self.certificate.deviation,
                "share": self.certificate.share,
                "error": self.certificate.error,
                "site": self.certificate.site,
            },
        }


class Picture:
    """(height, width, 3) uint8, computed where it is read. Reads are safe from several threads.

    The summary is measured at the first read or save, once.
    """

    def __init__(self, bundle: Bundle, source: LatentSource, options: RunOptions) -> None:
        self.bundle, self.source, self.options = bundle, source, options
        self.component = bundle.decoder
        self._summary: Summary | None = None
        self._coder: TileCoder | None = None
        self._lock = threading.Lock()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) in pixels."""
        scale = self.component.output_scale
        return self.source.height * scale, self.source.width * scale, self.component.output_channels

    @property
    def dtype(self) -> np.dtype[np.uint8]:
        return np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        return 3

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    def plan(self, options: RunOptions | None = None) -> Plan:
        """How it would be made; raises OverBudget. Computes nothing."""
        options = options or self.options
        summary = options.summary if options.summary in ("auto", "exact", "sampled") else "sampled"
        request = PlanRequest(
            options.memory_nbytes, options.tile, options.batch, options.workers, options.cores,
            cast(Any, summary), options.cells, options.engine_options().backend,
        )  # fmt: skip
        return make_plan(self.bundle, self.component, self.source.height, self.source.width, request)

    def summary(self, talk: Talk | None = None) -> Summary:
        """The frozen sites: measured now, or read from the file that `summary` names."""
        with self._lock:
            if self._summary is None:
                self._summary = self._measure(self.options, self.plan(), talk)
            return self._summary

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """picture[rows, columns, channels] with slices and integers, as numpy reads them."""
        key = key if isinstance(key, tuple) else (key,)
        if Ellipsis in key:
            at = key.index(Ellipsis)
            key = (*key[:at], *[slice(None)] * (4 - len(key)), *key[at + 1 :])
        key = (*key, *[slice(None)] * (3 - len(key)))
        spans = [_span(k, n) for k, n in zip(key[:2], self.shape[:2], strict=True)]
        region = Region(spans[0][0], spans[1][0], spans[0][1], spans[1][1])
        pixels = self.read(region) if region else np.empty((region.height, region.width, self.shape[2]), np.uint8)
        return cast(NDArray[np.uint8], pixels[spans[0][2], spans[1][2], key[2]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        height, width, _ = self.shape
        pixels = self.read(Region(0, 0, height, width))
        return pixels if dtype is None else pixels.astype(dtype)

    def read(self, region: Region) -> NDArray[np.uint8]:
        """A region of pixels, (height, width, 3) uint8; raises IndexError outside the picture."""
        height, width, _ = self.shape
        if not region.within(Region(0, 0, height, width)):
            raise IndexError(f"{region} leaves the picture of {height} rows and {width} columns")
        summary, plan = self.summary(), self.plan()
        with self._lock:
            if self._coder is None:
                engine = self.options.engine_options(1, self.options.cores)
                self._coder = self._open_coder(summary, plan, engine)
        return decode_region(self._coder, _grid(plan), region)

    def _open_coder(self, summary: Summary, plan: Plan, engine: Any) -> TileCoder:
        source = CheckedLatents(self.source)
        return TileCoder(self.bundle, self.component, source, summary, plan.tile, plan.batch, engine)

    def close(self) -> None:
        """Give the engines back; reading again opens them anew."""
        with self._lock:
            if self._coder is not None:
                self._coder.close()
                self._coder = None

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(
        self,
        path: Path | str,
        *,
        progress: Callable[[Progress], None] | None = None,
        talk: Talk | None = None,
        **options: Any,
    ) -> Saved:
        """Write all of it: .tif, .zarr, .dzi or .png by the suffix. Goes on where an earlier, equal save stopped.

        `progress` is called after every store tile, `talk(what, done, total)` while the summary is measured, both from
        working threads. Raises StoreError, OverBudget, BadLatents; what was written stays and is resumed.
        """
        path = Path(path)
        merged = replace(self.options, **_changed(options))
        started = time.perf_counter()
        merged = _as_before(path, merged)
        plan = self.plan(merged)
        spec = self._store_spec(path, plan, merged)
        store = create_or_resume(path, spec, overwrite=merged.overwrite)
        writer: PyramidWriter | None = None
        coder: TileCoder | None = None
        try:
            writer = PyramidWriter(store, threads=1)
            missing = np.zeros((store.levels[0].rows, store.levels[0].columns), np.bool_)
            for index in writer.missing():
                missing[index] = True
            made, beside = int(missing.sum()), _beside(path)
            measured = time.perf_counter()
            if made:
                summary = self._kept_summary(beside, merged, plan, talk)
                coder = self._open_coder(summary, plan, merged.engine_options(plan.workers, plan.threads))
                streaming = time.perf_counter()
                stream(coder, _grid(plan), missing, writer.put, workers=plan.workers, progress=progress)
                share = coder.engine_seconds / max(1e-9, plan.workers * (time.perf_counter() - streaming))
            else:
                summary, streaming, share = Summary({}, {}), measured, 1.0
            writer.close()
            store.close()
        except BaseException:
            if writer is not None:
                writer.abort()
            with contextlib.suppress(StoreError):
                store.close()  # so that this process, too, may go on with it
            raise
        finally:
            if coder is not None:
                coder.close()
        return Saved(
            path, plan, made, missing.size - made, time.perf_counter() - started, streaming - measured, share,
            writer.bytes_written, coder.certifier.certificate() if coder else NOTHING,
            beside if beside.is_file() else None,
        )  # fmt: skip

    def _store_spec(self, path: Path, plan: Plan, options: RunOptions) -> StoreSpec:
        height, width, _ = self.shape
        codec = options.codec
        if codec in ("auto", "lossless"):
            codec = default_codec(path, lossless=codec == "lossless")
        determinants = {
            **self._summary_request(options, plan),
            "tile": f"{plan.tile[0]}x{plan.tile[1]}",
            "engine": options.engine_options().backend,
            "precision": options.precision,
        }
        about = {"software": f"widefield {__version__}", "bundle_name": self.bundle.name, **determinants}
        text = json.dumps(determinants, sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        return StoreSpec(width, height, fingerprint, codec, options.quality, STORE_TILE_PX, about)

    def _summary_request(self, options: RunOptions, plan: Plan) -> dict[str, str]:
        """Everything that determines the summary, without measuring it."""
        about = {"bundle": self.bundle.digest, "latents": self.source.digest()}
        if options.summary not in ("auto", "exact", "sampled"):
            given = load_summary(Path(options.summary), self.component, self.bundle.digest)
            return {**about, "method": "given", "summary": given.digest}
        about["method"] = plan.method
        if plan.method == "sampled":
            keys = options.keys or key_count(self.component, plan.method, plan.height, plan.width)
            about |= {"cells": str(plan.cells), "seed": str(options.seed), "keys": str(keys)}
        return about

    def _kept_summary(self, beside: Path, options: RunOptions, plan: Plan, talk: Talk | None) -> Summary:
        """The one saved beside the picture, where it is of this request; else measured and saved there."""
        request = self._summary_request(options, plan)
        if request["method"] == "given":
            return load_summary(Path(options.summary), self.component, self.bundle.digest)
        if beside.is_file():
            try:
                kept = load_summary(beside, self.component, self.bundle.digest)
            except BadRequest:
                kept = None
            if kept is not None and kept.about.get("request") == json.dumps(request, sort_keys=True):
                return kept
        summary = self._measure(options, plan, talk)
        summary = replace(summary, about={**summary.about, "request": json.dumps(request, sort_keys=True)})
        if self.component.sites:
            summary.save(beside)
        self._summary = summary
        return summary

    def _measure(self, options: RunOptions, plan: Plan, talk: Talk | None) -> Summary:
        if options.summary not in ("auto", "exact", "sampled"):
            return load_summary(Path(options.summary), self.component, self.bundle.digest)
        engine = replace(options, precision="f32").engine_options(plan.workers, plan.threads)
        folder = options.scratch or Path(tempfile.gettempdir())
        return measure(
            self.bundle, self.component, CheckedLatents(self.source), plan.method,
            SweepOptions(plan.sweep_batch, plan.held_nbytes, folder, engine),
            cells=plan.cells, seed=options.seed, keys=options.keys,
            progress=None if talk is None else lambda done, total: talk("measuring", done, total),
        )  # fmt: skip


def _grid(plan: Plan) -> Grid:
    return Grid(plan.height, plan.width, plan.scale, plan.tile, STORE_TILE_PX)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.summary.safetensors")


def _changed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was given, checked as RunOptions would."""
    full = run_options(options)
    names = {("memory_nbytes" if name == "memory" else name) for name in options}
    return {name: getattr(full, name) for name in names}


def _as_before(path: Path, options: RunOptions) -> RunOptions:
    """A resumed run keeps the tile grid and the engine that the store was begun with, unless told otherwise."""
    if options.overwrite or not path.exists():
        return options
    try:
        with open_store(path) as store:
            before = store.spec.metadata
    except StoreError:
        return options  # create_or_resume says what is wrong with it
    if options.tile is None and "tile" in before:
        options = replace(options, tile=cast(Any, tuple(int(n) for n in before["tile"].split("x"))))
    if options.engine == "auto" and "engine" in before:
        options = replace(options, engine=before["engine"])
    return options


def _span(key: Any, length: int) -> tuple[int, int, Any]:
    """(start, stop, what remains to be indexed) of one axis."""
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        if step < 0:
            picked = range(start, stop, step)
            return (picked[-1], picked[0] + 1, slice(None, None, step)) if picked else (0, 0, slice(None))
        return start, max(start, stop), slice(None, None, step)
    index = int(key)
    if not -length <= index < length:
        raise IndexError(f"index {index} is out of bounds for {length}")
    index %= length
    return index, index + 1, 0
