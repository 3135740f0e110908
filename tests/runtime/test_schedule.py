"""The rule of a step, the rows that a strength leaves, and what a table may not be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from widefield.errors import BadBundle, BadRequest
from widefield.schedule import COLUMNS, Step, guided, parse_schedule, update


def schedule(*counts):
    rng = np.random.default_rng(0)
    tables = {str(n): rng.standard_normal((n, len(COLUMNS))) for n in counts}
    return parse_schedule("euler", tables | {"initial": np.arange(len(counts)) + 2.0})


def test_the_rule_word_for_word():
    step = Step(999.0, 0.5, 2.0, -3.0, 0.5, 0.25, 4.0, 1.0, 0.0)
    x, m, n, h = np.random.default_rng(1).standard_normal((4, 2, 3, 5)).astype(np.float32)
    following, kept = update(step, x, m, n, h)
    assert following.dtype == kept.dtype == np.float32
    np.testing.assert_allclose(following, 2 * x - 3 * m + n / 2 + h, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(kept, x / 4 + 4 * m, rtol=1e-6, atol=1e-6)


def test_noise_that_is_wanted_and_missing_is_a_bug_that_shows():
    with pytest.raises(ValueError, match="adds noise"):
        update(Step(1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.0), np.zeros(3), np.zeros(3))


@given(st.integers(1, 9), st.floats(0, 1))
def test_a_strength_leaves_the_last_steps(count, strength):
    found = schedule(*range(1, 10))
    run = found.run(count, strength)
    assert len(run.steps) == int(count * strength) and run.initial == count + 1
    rows = found.tables[count][count - len(run.steps) :]
    for i, (step, row) in enumerate(zip(run.steps, rows, strict=True)):
        by_name = dict(zip(COLUMNS, row, strict=True))
        first = "first_" if i == 0 else ""
        assert (step.a, step.b, step.c) == (by_name[first + "a"], by_name[first + "b"], by_name["c"])
        kept = (0.0, 0.0) if i == len(rows) - 1 else (by_name["history_x"], by_name["history_m"])
        assert (step.history_x, step.history_m) == kept
        assert (step.timestep, step.keep, step.noise) == (by_name["timestep"], by_name["keep"], by_name["noise"])


@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_strength_outside_0_to_1(strength):
    with pytest.raises(BadRequest, match="outside 0 to 1"):
        schedule(3).run(3, strength)


def test_steps_without_a_table_are_told_which_there_are():
    with pytest.raises(BadRequest, match="11 steps are not in the tables of euler, which has 1 to 4, 7, 9 to 10;"):
        schedule(1, 2, 3, 4, 7, 9, 10).run(11)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"initial": np.zeros(1)},
        {"2": np.zeros((2, len(COLUMNS)))},
        {"2": np.zeros((3, len(COLUMNS))), "initial": np.ones(1)},
        {"2": np.full((2, len(COLUMNS)), np.nan), "initial": np.ones(1)},
    ],
)
def test_damaged_tables(arrays):
    with pytest.raises(BadBundle, match="export again"):
        parse_schedule("euler", arrays)


def test_guidance_goes_beyond_the_prompt():
    positive, negative = np.float32([3.0, 1.0]), np.float32([1.0, 2.0])
    assert guided(positive, negative, 2.0).tolist() == [5.0, 0.0] and guided(positive, negative, 1.0).tolist() == [3, 1]
