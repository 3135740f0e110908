"""One picture to decode: a bundle and its latents, planned, measured and opened for decoding. Holds nothing itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from widefield.buffers import STORE_TILE_PX, PlanRequest, key_count
from widefield.bundle import Bundle, Component
from widefield.coder import TileCoder
from widefield.device import gpu_coder, takes_tiles
from widefield.engine import EngineOptions
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.options import RunOptions
from widefield.plan import Plan, make_plan
from widefield.provenance.origin import kind_of_latents
from widefield.render import Grid
from widefield.sources import LatentSource, check_finite
from widefield.store.provenance import SOURCE_TYPE
from widefield.summary import Summary, load_summary
from widefield.sweep import SweepOptions, measure

METHODS = ("auto", "exact", "sampled")
Talk = Callable[[str, int, int], None]


class CheckedLatents:
    """Latents whose every read is looked at for NaN and infinity."""

    def __init__(self, source: LatentSource) -> None:
        self.source = source
        self.channels, self.height, self.width = source.channels, source.height, source.width

    def read(self, region: Region) -> NDArray[np.float32]:
        values = self.source.read(region)
        check_finite(values, region, self.source.name)
        return values


@dataclass(frozen=True)
class DecodeJob:
    """What is decoded; how is in RunOptions, which every method takes."""

    bundle: Bundle
    source: LatentSource

    @property
    def component(self) -> Component:
        return self.bundle.decoder

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) in pixels."""
        scale = self.component.output_scale
        return self.source.height * scale, self.source.width * scale, self.component.output_channels

    def origin(self, options: RunOptions) -> dict[str, str]:
        """What the picture's metadata tells of where it came from; changes no pixel."""
        return {SOURCE_TYPE: options.source_type or kind_of_latents(self.source.name)}

    def plan(self, options: RunOptions) -> Plan:
        """How it would be made; raises OverBudget. Computes nothing."""
        summary = options.summary if options.summary in METHODS else "sampled"
        request = PlanRequest(
            options.memory_nbytes, options.tile, options.batch, options.workers, options.cores,
            cast(Any, summary), options.cells, options.engine_options().backend, options.precision,
            device_nbytes=options.gpu_nbytes,
        )  # fmt: skip
        return make_plan(self.bundle, self.component, self.source.height, self.source.width, request)

    def grid(self, plan: Plan) -> Grid:
        """How the plan's tiles lie in the picture."""
        return Grid(plan.height, plan.width, plan.scale, plan.tile, STORE_TILE_PX, self.shape[:2])

    def coder(self, summary: Summary, plan: Plan, engine: EngineOptions) -> TileCoder:
        """What makes the plan's tiles; the caller closes it."""
        source = CheckedLatents(self.source)
        if takes_tiles(engine):
            return gpu_coder(self.bundle, self.component, source, summary, plan, engine)
        return TileCoder(self.bundle, self.component, source, summary, plan.tile, plan.batch, engine)

    def given_summary(self, options: RunOptions) -> Summary | None:
        """The one in the file that `summary` names, if it names one; raises BadRequest for another bundle's."""
        if options.summary in METHODS:
            return None
        return load_summary(Path(options.summary), self.component, self.bundle.digest)

    def summary_request(self, options: RunOptions, plan: Plan) -> dict[str, str]:
        """Everything that determines the summary, without measuring it."""
        about = {"bundle": self.bundle.digest, "latents": self.source.digest()}
        given = self.given_summary(options)
        if given is not None:
            return {**about, "method": "given", "summary": given.digest}
        about["method"] = plan.method
        if plan.method == "sampled":
            keys = options.keys or key_count(self.component, plan.method, plan.height, plan.width)
            about |= {"cells": str(plan.cells), "seed": str(options.seed), "keys": str(keys)}
        return about

    def measured(self, options: RunOptions, plan: Plan, talk: Talk | None = None) -> Summary:
        """Given or measured now, in float32 whatever decodes."""
        given = self.given_summary(options)
        if given is not None:
            return given
        engine = replace(options, precision="f32").engine_options(plan.workers, plan.threads)
        folder = options.scratch or Path(tempfile.gettempdir())
        return measure(
            self.bundle, self.component, CheckedLatents(self.source), plan.method,
            SweepOptions(plan.sweep_batch, plan.held_nbytes, folder, engine),
            cells=plan.cells, seed=options.seed, keys=options.keys,
            progress=None if talk is None else lambda done, total: talk("measuring sites", done, total),
        )  # fmt: skip

    def kept_summary(self, beside: Path, options: RunOptions, plan: Plan, talk: Talk | None) -> Summary:
        """The one saved in the file `beside` the picture, where it is of this request; else measured and saved there.

        So a resumed run decodes with the statistics that it began with.
        """
        request = json.dumps(self.summary_request(options, plan), sort_keys=True)
        if beside.is_file() and options.summary in METHODS:
            try:
                kept = load_summary(beside, self.component, self.bundle.digest)
            except BadRequest:
                kept = None
            if kept is not None and kept.about.get("request") == request:
                return kept
        summary = self.measured(options, plan, talk)
        summary = replace(summary, about={**summary.about, "request": request})
        if self.component.sites and options.summary in METHODS:
            summary.save(beside)
        return summary
