"""The cone of a cold read: what is counted is what is computed."""

from __future__ import annotations

from collections import Counter

import pytest

from runtime.test_cascade import WINDOW, cascade, generation, small  # noqa: F401 -- a fixture
from widefield.cone import cone
from widefield.engine import EngineOptions
from widefield.geometry import Region
from widefield.memo import Memo


@pytest.mark.parametrize("growth", [2, 4])
@pytest.mark.parametrize("region", [(500, 800, 600, 901), (1049, 1200, 1101, 1401)])
def test_what_is_counted_is_what_is_computed(small, growth, region):  # noqa: F811
    _, bundle = small
    made = cascade(bundle, (1101, 1401), memo=Memo(1 << 30), growth=growth, phases=(1, 2))
    counted = cone(made, Region(*region))
    made.pixels[-1].read(Region(*region))
    kept = Counter(key[0][:2] for key in made.memo)
    for level in counted.levels:
        found = tuple(kept[what, level.index] for what in ("window", "pixels", "encoded"))
        wanted = level.windows, level.decodes, level.encodes
        if level.index <= made.measured_level:  # of which a sample may be enough
            assert all(f <= w for f, w in zip(found, wanted, strict=True))
        else:
            assert found == wanted
    made.close()


def test_a_part_of_the_largest_picture_needs_few_windows(small):  # noqa: F811
    """524,288 x 524,288 px: the viewport's own windows at every level, three times at most."""
    _, bundle = small
    largest = generation(bundle, (524_288, 524_288), growth=4, steps=(8, 3), phases=1)
    fields = largest.cascade(Memo(0), largest.cascade_options(EngineOptions("ort")))
    middle = Region(262_144, 262_144, 263_168, 263_168)
    counted = cone(fields, middle)
    assert 8 <= len(counted.levels) <= 9
    assert counted.window_steps <= 3 * counted.least
    assert sum(level.units for level in counted.levels) == counted.units
    inner = cone(fields, Region(262_144, 262_144, 262_145, 262_145))
    assert inner.window_steps < counted.window_steps
