"""What a user may ask of a run. Defaults live here alone; the command line and the library read them from here."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from widefield.errors import BadRequest

if TYPE_CHECKING:
    from widefield.engine import EngineOptions

UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
         "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}  # fmt: skip
DEFAULT_MEMORY_NBYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class RunOptions:
    """`memory_nbytes` is what the run may take above the idle process. `tile` is in cells; None lets the plan choose.

    `device` is "cpu" or "cuda:N"; `device_memory_nbytes` is what the run may take
    of it (None: most of what is free); `ort_library` a plugin of ONNX Runtime with its CUDA execution provider.
    `summary` is "auto", "exact", "sampled" or the path of a saved one; `cells`, `keys` and `seed` are of a sampled one.
    `codec` "auto" is the store's own choice (JPEG where it can hold it); "lossless" its lossless one. `shard_px` is the
    largest side of a .zarr's shards. `source_type` and all after it say what a picture tells of itself, and who signs
    it: they change no pixel.
    """

    memory_nbytes: int = DEFAULT_MEMORY_NBYTES
    tile: tuple[int, int] | None = None
    batch: int = 1
    workers: int | None = None
    engine: str = "auto"
    precision: Literal["f32", "bf16", "f16"] = "f32"
    device: str = "cpu"
    device_memory_nbytes: int | None = None
    ort_library: Path | None = None
    summary: str = "auto"
    cells: int | None = None
    keys: int | None = None
    seed: int = 0
    codec: str = "auto"
    quality: int = 90
    overwrite: bool = False
    scratch: Path | None = None
    shard_px: int | None = None
    source_type: str | None = None
    record_prompt: bool = False
    sign_cert: Path | None = None
    sign_key: Path | None = None

    def engine_options(self, workers: int = 1, threads: int = 1, *, keeps: bool = False) -> EngineOptions:
        """What an engine needs to know of these, with "auto" decided; raises BadRequest for an unknown engine."""
        from widefield.engine import EngineOptions  # numpy loads here, and not for --help

        asked = EngineOptions(self.engine, self.precision, threads, workers, keeps, self.device, self.ort_library)
        return asked.resolved()

    @property
    def gpu_nbytes(self) -> int | None:
        """What the run may take of its GPU; None on a CPU. Asks the GPU where it was not said."""
        if self.device == "cpu" or self.device_memory_nbytes is not None:
            return None if self.device == "cpu" else self.device_memory_nbytes
        from widefield.device.budget import free_nbytes

        return free_nbytes(self.engine_options().gpu)

    @property
    def cores(self) -> int:
        return len(os.sched_getaffinity(0))

    @property
    def side_by_side(self) -> int:
        """Windows and tiles that are drawn at once: `workers`, or one a core."""
        return self.workers or self.cores


def parse_nbytes(text: str) -> int:
    """Bytes from "8GiB", "512 MiB", "2e9"; raises BadRequest for anything else, or less than one byte."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise BadRequest(f"{text!r} is no amount of memory; write 512MiB or 8GiB")
    try:
        nbytes = int(float(match[1]) * UNITS[match[2].upper()])
    except ValueError:
        nbytes = 0
    if nbytes < 1:
        raise BadRequest(f"{text!r} is no amount of memory; write 512MiB or 8GiB")
    return nbytes


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from "WxH"; raises BadRequest unless both are positive whole numbers."""
    match = re.fullmatch(r"\s*([0-9]+)\s*[xX×]\s*([0-9]+)\s*", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise BadRequest(f"{text!r} is no size; write WIDTHxHEIGHT, as 8192x4096")
    return int(match[1]), int(match[2])


def parse_tile(text: str) -> tuple[int, int]:
    """(rows, columns) in cells from "64" or "20x31" (rows x columns); raises BadRequest otherwise."""
    match = re.fullmatch(r"\s*([0-9]+)\s*(?:[xX]\s*([0-9]+))?\s*", text)
    rows, columns = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (rows and columns):
        raise BadRequest(f"{text!r} is no tile; write its side in latent cells, as 64, or ROWSxCOLUMNS")
    return rows, columns


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


def changed_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Only what was given, by RunOptions' names and checked as it would: for dataclasses.replace."""
    full = run_options(options)
    names = {("memory_nbytes" if name == "memory" else name) for name in options}
    return {name: getattr(full, name) for name in names}
