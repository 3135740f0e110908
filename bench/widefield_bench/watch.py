"""What a decode's threads are at: seconds and calls by kind of work, each moment counted once, for the innermost.

    with watching() as watch:
        picture.save("picture.tif")
    watch.seconds["stream", "engine"]          # of all threads together

Kinds    engine      the decoder's fused graphs in ONNX Runtime or OpenVINO
         attention   between two of them, to the summary's keys
         opening     graphs being read and compiled
         latents     read from their file
         tiles       gathering margins, making masks, Python
         to pixels   values to uint8 and their halves
         pyramid     quarters of parents put together
         encode      tiles to bytes
         write       bytes to the disk
Phases   measure, until the summary is there; then stream.
How      the functions below are replaced by watched ones while the context is open, in this process alone. Of the
         stores, .tif is watched.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

KINDS = ("engine", "attention", "opening", "latents", "tiles", "to pixels", "pyramid", "encode", "write")

MEASURING = "measuring the summary"


def time_split(row: Mapping[str, Any]) -> dict[str, float]:
    """Shares of a split row by kind; everything before the summary is there is one kind."""
    found: dict[str, float] = {}
    for part in row["split"]:
        kind = MEASURING if part["phase"] == "measure" else part["kind"]
        found[kind] = found.get(kind, 0.0) + part["seconds"]
    total = sum(found.values())
    return {kind: seconds / total for kind, seconds in found.items()}


class Watch:
    """`seconds` and `calls` by (phase, kind), over all threads."""

    def __init__(self) -> None:
        self.seconds: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.phase = "stream"
        self._lock = threading.Lock()
        self._here = threading.local()

    def rows(self) -> list[dict[str, Any]]:
        """{phase, kind, seconds, calls} of everything that was met."""
        return [
            {"phase": phase, "kind": kind, "seconds": round(self.seconds[phase, kind], 4), "calls": calls}
            for (phase, kind), calls in sorted(self.calls.items())
        ]

    def watched(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """The same function, counted. What `attention` calls is attention's."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            frames: list[list[Any]] = self._here.__dict__.setdefault("frames", [])
            if frames and frames[-1][0] == "attention":
                return function(*arguments, **named)
            frames.append([kind, 0.0])
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - started
                _, inner = frames.pop()
                if frames:
                    frames[-1][1] += took
                with self._lock:
                    self.seconds[self.phase, kind] += took - inner
                    self.calls[self.phase, kind] += 1

        return run

    def measuring(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, in which the phase is `measure`."""

        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            self.phase = "measure"
            try:
                return function(*arguments, **named)
            finally:
                self.phase = "stream"

        return run


def _places() -> Iterator[tuple[Any, str, str]]:
    """(owner, attribute, kind) of every function that is watched."""
    import importlib.util

    import widefield.render
    from widefield.attend import Attention
    from widefield.coder import TileCoder
    from widefield.engine.ort import OrtEngine
    from widefield.job import CheckedLatents
    from widefield.store.canvases import Canvases
    from widefield.store.pyramid import PyramidWriter
    from widefield.store.tiff import TiffStore

    engines: list[Any] = [OrtEngine]
    if importlib.util.find_spec("openvino") is not None:
        from widefield.engine.openvino_engine import OpenVinoEngine

        engines.append(OpenVinoEngine)
    for engine in engines:
        yield engine, "run", "engine"
        yield engine, "__init__", "opening"
    yield Attention, "__call__", "attention"
    yield CheckedLatents, "read", "latents"
    yield TileCoder, "__call__", "tiles"
    yield widefield.render, "to_levels_reference", "to pixels"
    yield widefield.render, "to_pixels_reference", "to pixels"
    yield PyramidWriter, "_hand_up", "pyramid"
    yield Canvases, "take", "pyramid"
    yield TiffStore, "encode", "encode"
    yield TiffStore, "commit", "write"


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    """Count until the context closes."""
    from widefield.job import DecodeJob

    watch = Watch()
    with contextlib.ExitStack() as stack:
        for owner, attribute, kind in _places():
            stack.enter_context(patch.object(owner, attribute, watch.watched(getattr(owner, attribute), kind)))
        stack.enter_context(patch.object(DecodeJob, "measured", watch.measuring(DecodeJob.measured)))
        yield watch
