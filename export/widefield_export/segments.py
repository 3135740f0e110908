"""Cut a program where it must look at the whole picture, and count what each piece costs.

A stage is what can run once the sites before it are frozen. For a sweep every site is a barrier; for streaming only
softmax attentions are, because they run between two fused graphs. What one stage makes and a later one uses is held
by the runtime in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from widefield_export.program import Layout, Margin, Op, Program, Site, channels_of, scale_of


@dataclass(frozen=True, slots=True)
class Segment:
    """The ops of one stage, with the values that come from earlier stages and those that later ones use."""

    ops: tuple[Op, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Quadratic:
    """a * rows * columns + b * (rows + columns) + c, for a tile of rows x columns cells and a batch of one."""

    a: int = 0
    b: int = 0
    c: int = 0

    def __add__(self, other: Quadratic) -> Quadratic:
        return Quadratic(self.a + other.a, self.b + other.b, self.c + other.c)

    def times(self, factor: int) -> Quadratic:
        return Quadratic(self.a * factor, self.b * factor, self.c * factor)

    def at(self, rows: int, columns: int) -> int:
        return self.a * rows * columns + self.b * (rows + columns) + self.c


def positions(layout: Layout, margin: Margin) -> Quadratic:
    """How many positions a value has: (scale rows + margins)(scale columns + margins)."""
    scale = scale_of(layout)
    if scale is None:
        return Quadratic(c=1)
    extra = sum(margin)
    return Quadratic(scale * scale, scale * extra, extra * extra)


def elements(layout: Layout, margin: Margin) -> Quadratic:
    """How many numbers a value holds, for a batch of one."""
    return positions(layout, margin).times(channels_of(layout))


def cut(program: Program, barriers: Iterable[Site]) -> list[Segment]:
    """Stage by stage, each op as early as its arguments allow. An attention runs outside the graphs, between two."""
    opens = {site.op: index for index, site in enumerate(barriers)}
    stage: dict[str, int] = {program.input: 0}
    used: dict[str, set[int]] = {program.input: set()}
    queries: set[str] = set()
    for op in program.ops:
        index = max([stage[arg] for arg in op.args], default=0)
        stage[op.out] = max(index, opens[op.out] + 1) if op.out in opens else index
        used[op.out] = set()
        measured = measured_values(op) if op.out in opens else ()
        for arg in op.args:
            if op.kind not in ("cell_sum", "attention"):
                used[arg].add(stage[op.out])
            if arg in measured:
                used[arg].add(opens[op.out])
        if op.kind == "attention":
            queries.add(op.args[0])
    frozen = {op.out for op in program.ops if op.kind == "cell_sum"}
    outside = frozen | {op.out for op in program.ops if op.kind == "attention"}
    segments = []
    for index in range(len(opens) + 1):
        ops = tuple(op for op in program.ops if stage[op.out] == index and op.out not in outside)
        made = {op.out for op in ops}
        inputs = tuple(v for v in used if index in used[v] and v not in made and v not in frozen)
        leaving = queries | {program.output}
        outputs = tuple(v for v in used if v in made and (v in leaving or max(used[v], default=0) > index))
        segments.append(Segment(ops, inputs, outputs))
    return segments


def own_margins(program: Program, segment: Segment, measured: Iterable[Site] = ()) -> dict[str, Margin]:
    """The margins of a stage's values where its results and what is measured need none.

    So it is where a sweep visits every tile: what lies around a tile was made with its neighbours, and is read there.
    """
    need: dict[str, Margin] = dict.fromkeys(segment.outputs, (0, 0))
    for site in measured:
        need.update(dict.fromkeys(measured_values(program.op(site.op)), (0, 0)))
    for op in reversed(segment.ops):
        for arg, (low, high) in zip(op.args, op.demand(need.setdefault(op.out, (0, 0))), strict=True):
            before, after = need.get(arg, (0, 0))
            need[arg] = max(before, low), max(after, high)
    if program.input in need:
        need[program.input] = program.whole_cells(need[program.input])
    return need


def cells_around(program: Program, margins: dict[str, Margin]) -> int:
    """Cells around a tile that hold every value with its margin: what a mask has to cover."""
    layouts = program.layouts()
    return max((-(-max(margin) // (scale_of(layouts[v]) or 1)) for v, margin in margins.items()), default=0)


def measured_values(op: Op) -> tuple[str, ...]:
    """What a site's statistics are taken from."""
    match op.kind:
        case "norm":
            return op.args[:1]
        case "attention":
            return op.args[1:2]
        case "cell_sum":
            return op.args
        case _:
            return ()


def flops(program: Program, ops: Iterable[Op], margins: dict[str, Margin]) -> Quadratic:
    """Two for each multiply-add of convolutions, linear maps and matrix products; the rest is not counted."""
    total = Quadratic()
    for op in ops:
        where = positions(op.layout, margins[op.out])
        match op.kind:
            case "conv" | "linear":
                weight = program.weights[op.attrs["weight"]]
                total += where.times(2 * weight.size)
            case "upsample_conv":  # on the low-resolution grid: one position for four results
                low, high = (m - 1 for m in op.demand(margins[op.out])[0])
                layout = program.layout(op.args[0])
                total += positions(layout, (low + 1, high)).times(2 * program.weights[op.attrs["weight"]].size)
            case "apply" | "cell_sum":
                value = op.args[1] if op.kind == "apply" else op.args[0]
                rows = op.layout[-2].size
                spatial = positions(program.layout(value), margins[value])
                depth = channels_of(program.layout(value))
                total += (
                    spatial.times(2 * depth * rows)
                    if op.kind == "apply"
                    else spatial.times(2 * depth * op.layout[-1].size)
                )
    return total


def live_elements(
    program: Program, segment: Segment, margins: dict[str, Margin], size: Callable[[str], Quadratic] | None = None
) -> list[Quadratic]:
    """The activations alive at each op, arguments and result together; dominated entries are dropped.

    The peak for a tile is the largest of these at its rows and columns.
    """
    layouts = program.layouts()
    size = size or (lambda name: elements(layouts[name], margins[name]))
    last_use = {arg: index for index, op in enumerate(segment.ops) for arg in op.args}
    for name in segment.outputs:
        last_use[name] = len(segment.ops)
    alive = {name for name in segment.inputs if name in last_use}
    found: set[Quadratic] = set()
    for index, op in enumerate(segment.ops):
        alive.add(op.out)
        total = Quadratic()
        for name in alive:
            total += size(name)
        found.add(total)
        alive = {name for name in alive if last_use.get(name, -1) > index}
    return undominated(found)


def undominated(found: Iterable[Quadratic]) -> list[Quadratic]:
    """Those that no other is at least as large as in every coefficient, largest first."""
    ordered = sorted(set(found), key=lambda q: (q.a, q.b, q.c), reverse=True)
    kept: list[Quadratic] = []
    for q in ordered:
        if not any(k.a >= q.a and k.b >= q.b and k.c >= q.c for k in kept):
            kept.append(q)
    return kept
