"""What a summary's sweep takes: the moments of its stages, what they work with and hold, and how much it computes.

Values are held and released in the sweep's own order (sweep.py), by its own rules of what goes into a file
(scratch.py), so a plan is the largest of its moments and not the sum of all that is ever held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from widefield.attend import block_nbytes
from widefield.buffers import CERTIFIED_ACTIVATIONS, MIB, Buffer, Setting, blocked
from widefield.bundle import Component, GraphSpec, evaluate
from widefield.sampling import CELL, SWEEP_TILE, stages
from widefield.scratch import Rooms
from widefield.tiles import input_shapes

SQUARES_A_CALL = 4
BETWEEN = "values between stages"


@dataclass(frozen=True, slots=True)
class Moment:
    """Of a sweep: what one of its steps works with, and the values that are held meanwhile."""

    name: str
    work_nbytes: int
    held_nbytes: int = 0
    in_files_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Measuring:
    """`batch` squares a call; `held_nbytes` may be held in memory; the buffers of the moment that takes most."""

    batch: int
    held_nbytes: int
    buffers: tuple[Buffer, ...]


def measure_buffers(setting: Setting, stream: list[Buffer]) -> Measuring:
    """Of the sweep. What there is beside its steps' work may all be held values."""
    if not setting.component.sites:
        return Measuring(1, 0, ())
    work = max(moment.work_nbytes for moment in _moments(setting, 0)[0])
    others = sum(b.nbytes for b in stream if b.place == "host" and b.during == "both")
    moments, held = _moments(setting, setting.request.memory_nbytes - others - work - 8 * MIB)
    worst = max(moments, key=lambda moment: moment.work_nbytes + moment.held_nbytes)
    buffers = (
        Buffer(worst.name, "host", "measure", worst.work_nbytes),
        Buffer(BETWEEN, "host", "measure", worst.held_nbytes),
        Buffer(BETWEEN, "scratch", "measure", max(moment.in_files_nbytes for moment in moments)),
    )
    return Measuring(SQUARES_A_CALL, held, buffers)


def sweep_nbytes(setting: Setting, held_nbytes: int) -> int:
    """What a sweep takes that may hold so much in memory."""
    if not setting.component.sites:
        return 0
    return max(moment.work_nbytes + moment.held_nbytes for moment in _moments(setting, held_nbytes)[0])


@dataclass(frozen=True, slots=True)
class Pass:
    """The stages of a sweep that run over one set of `count` tiles of `side` cells, `batch` a call."""

    graphs: tuple[GraphSpec, ...]
    first: int
    side: tuple[int, int]
    count: int
    batch: int
    margins: bool

    @property
    def flops(self) -> int:
        return self.count * sum(evaluate(graph.flops, *self.side) for graph in self.graphs)

    def nbytes(self, component: Component, name: str) -> int:
        """Of a value of all tiles."""
        value = component.values[name]
        value = value if self.margins else replace(value, margin=(0, 0))
        return value.nbytes(self.count, *self.side)


def _passes(setting: Setting) -> list[Pass]:
    component, height, width = setting.component, setting.height, setting.width
    split, count, _ = stages(component, height, width, setting.method, setting.cells)
    side = min(SWEEP_TILE, height), min(SWEEP_TILE, width)
    tiles = -(-height // side[0]) * -(-width // side[1])
    found = [
        Pass(component.planes[:split], 0, side, tiles, 1, margins=False),
        Pass(component.squares[split:], split, (CELL, CELL), count, SQUARES_A_CALL, margins=True),
    ]
    return [tiles for tiles in found if tiles.graphs]


def measure_flops(setting: Setting) -> int:
    """Multiplications and additions of the sweep, attention left out."""
    return sum(tiles.flops for tiles in _passes(setting))


def _stage_nbytes(component: Component, graph: GraphSpec, tiles: Pass) -> int:
    """One call of a sweep's graph: activations, and what goes in and out, which may come from a file in two steps."""
    live = graph.peak_nbytes(tiles.batch, *tiles.side) * CERTIFIED_ACTIVATIONS["ort"] * blocked(component)
    shapes = input_shapes(component, graph, tiles.batch, *tiles.side)
    ends = 2 * sum(4 * math.prod(shape) for name, shape in shapes.items() if name in component.values)
    ends += sum(tiles.nbytes(component, n) for n in graph.outputs if n in component.values) * tiles.batch // tiles.count
    tokens = [component.sites[int(n.split(".")[1])] for n in graph.outputs if n.endswith(".tokens")]
    ends += sum(4 * tiles.batch * math.prod(tiles.side) * s.scale**2 * s.width for s in tokens)
    return int(live) + ends


@dataclass(frozen=True, slots=True)
class _Place:
    """Of a held value in memory."""

    nbytes: int


def _moments(setting: Setting, limit_nbytes: int) -> tuple[list[Moment], int]:
    """(every step of a sweep that may hold so much in memory, the most that it does hold).

    Values are held and released in the sweep's order, so one that may hold no more than that most puts the same there.
    """
    component, workers, passes = setting.component, setting.workers, _passes(setting)
    order = [(tiles, graph) for tiles in passes for graph in tiles.graphs]
    rooms: Rooms[_Place] = Rooms(limit_nbytes, _Place)
    alive: dict[str, tuple[int, _Place | None]] = {}
    found: list[Moment] = []

    def hold(name: str, nbytes: int) -> None:
        alive[name] = nbytes, rooms.take(nbytes)

    def note(name: str, work_nbytes: int) -> None:
        in_files = sum(nbytes for nbytes, place in alive.values() if place is None)
        found.append(Moment(name, work_nbytes, rooms.used_nbytes, in_files))

    for site, (tiles, graph) in zip(component.sites, order, strict=True):
        for name in graph.outputs:
            if name in component.values:
                hold(name, tiles.nbytes(component, name))
        note("sweep activations", _stage_nbytes(component, graph, tiles) * workers)
        if site.kind == "attention":
            hold(site.result, tiles.nbytes(component, site.query))
            queries = tiles.batch * component.values[site.query].shape(1, *tiles.side)[1]
            note("sweep attention blocks", block_nbytes(queries, setting.keys) * workers)
        wanted = {n for _, later in order[site.index + 1 :] for n in later.inputs}
        wanted |= {s.query for s in component.sites[site.index + 1 :] if s.kind == "attention"}
        for name in [name for name in alive if name not in wanted]:
            _, place = alive.pop(name)
            if place is not None:
                rooms.release(place)
    keys = sum(4 * setting.keys * site.width for site in component.attentions)
    return [*found, Moment("keys while they are saved", keys)], rooms.peak_nbytes
