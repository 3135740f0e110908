"""What is timed on its own, in this process: one file a noun, each checked before it is timed.

    python -m pytest tests/bench/timed --benchmark-enable --benchmark-json timed.json

Among the other tests everything here runs once, untimed and small. Every row of the JSON has percentiles, and carries
machine, versions, commit and command.
"""

import numpy as np
import pytest

import widefield
from widefield_bench.common import about
from widefield_bench.latents import mosaic


def pytest_benchmark_update_json(config, benchmarks, output_json):
    head = about()
    for made, row in zip(benchmarks, output_json["benchmarks"], strict=True):
        data = made.stats.sorted_data
        row["percentiles_ms"] = {str(p): round(1e3 * float(np.percentile(data, p)), 4) for p in (20, 50, 80, 95)}
        row["about"] = head


@pytest.fixture
def full(benchmark):
    """Whether times are taken, and sizes are to be worth it."""
    return not benchmark.disabled


@pytest.fixture
def timed(benchmark):
    """A function's result; it runs once as a test, else nine times after one that is not counted."""

    def run(function, *arguments):
        return benchmark.pedantic(function, arguments, rounds=9, warmup_rounds=0 if benchmark.disabled else 1)

    return run


@pytest.fixture(scope="session")
def model():
    """The embedded one."""
    return widefield.open()


@pytest.fixture
def photograph(full):
    """(rows, columns, 3) of photographs, rows and columns unlike."""
    return mosaic(1024)[:768] if full else mosaic(160)[:96]
