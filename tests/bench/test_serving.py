"""The bench of serving, small: it measures both kinds of picture, and has no number where something is wrong."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from house.places import python
from widefield_bench import serving
from widefield_bench.serving import CASES, KINDS, MIB, Seen, bench_serving, check, kind, look
from widefield_bench.viewers import Load

SMALL = replace(CASES["stored"], size=(2600, 2600), viewers=3, steps=4)
DRAWN = replace(CASES["drawn"], size=(4096, 4096), viewers=4, steps=1, queue=1, memory="480MiB", engine="ort")
TWO = {(9, 0, 0), (9, 1, 0)}  # (depth, column, row)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What three viewers found of a stored picture whose tiles at the edge are cut."""
    return look(SMALL, tmp_path_factory.mktemp("stored"))


def test_a_small_run_writes_what_it_prints(tmp_path, capsys):
    asked = ["--what", "stored", "--side", "2600", "--viewers", "3", "--steps", "4", "-o", str(tmp_path)]
    assert serving.main(asked) == 0
    printed, made = capsys.readouterr(), json.loads((tmp_path / "serving.json").read_text())
    (row,) = made["rows"]
    assert json.loads(printed.out)["results"] == [row]
    assert "requests_per_s" in printed.err and "2600 x 2600" in printed.err
    assert {"machine", "versions", "commit", "command"} <= made["about"].keys()
    assert row["statuses"] == {"200": row["requests"]} and 0 < row["tiles"] <= row["requests"] <= 3 * 4 * 4
    assert 0 < row["p50_ms"] <= row["p99_ms"] and row["requests_per_s"] > 0
    assert row["grown_mib"] < row["budget_mib"] == 192


def test_a_drawn_picture_is_measured_under_overload(drawing_bundle, tmp_path):
    row = bench_serving(replace(DRAWN, bundle=str(drawing_bundle)), tmp_path)
    assert set(row["statuses"]) == {"200", "503"} and row["engine"] == "ort"
    assert 0 < row["tiles"] <= row["statuses"]["200"] < row["requests"] == sum(row["statuses"].values())
    assert row["grown_mib"] < row["budget_mib"] == 480


def test_neighbours_are_unlike():
    here = kind(3, 4, 5)
    assert 0 <= here < KINDS
    assert here not in {kind(3, 5, 5), kind(3, 4, 6), kind(3, 5, 6), kind(4, 4, 5)}


def test_what_is_right_passes(seen):
    check(SMALL, seen)
    assert seen.load.tiles == set(seen.load.digests) == seen.again.tiles


def answered(load, status):
    """The same and one more answer."""
    return replace(load, statuses=load.statuses + Counter({status: 1}))


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda s: {"load": answered(s.load, 500)}, "wanted 200 alone"),
        (lambda s: {"load": answered(s.load, 503)}, "wanted 200 alone"),
        (lambda s: {"load": replace(s.load, untold=1)}, "1 without Retry-After"),
        (lambda s: {"load": Load()}, "some tiles"),
        (lambda s: {"again": replace(s.again, tiles=set(list(s.again.tiles)[1:]))}, "asked for again"),
        (lambda s: {"again": answered(s.again, 503)}, "asked for again"),
        (lambda s: {"again": replace(s.again, differing=1)}, "1 answers differ"),
        (lambda s: {"load": replace(s.load, differing=2)}, "2 answers differ"),
        (lambda s: {"counted": s.counted + 1}, "the server counted"),
        (lambda s: {"stored": s.stored[1:] + s.stored[:1]}, "not what was stored"),
        (lambda s: {"grown_nbytes": 192 * MIB}, "memory grew by 192 MiB"),
    ],
)
def test_what_is_wrong_has_no_number(wrong, said, seen):
    with pytest.raises(ValueError, match=said):
        check(SMALL, replace(seen, **wrong(seen)))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"counted": 3}, "3 tiles were made for 2"),
        ({"counted": 1}, "1 tiles were made for 2"),
        (
            {"load": Load(Counter({200: 2, 404: 1}), tiles={(9, 0, 0), (9, 1, 0)})},
            "wanted 200, or 503 with Retry-After",
        ),
        ({"load": Load(Counter({200: 2, 503: 4}), tiles={(9, 0, 0), (9, 1, 0)}, untold=1)}, "1 without Retry-After"),
        ({"load": Load(Counter({503: 4}))}, "some tiles"),
        ({"grown_nbytes": 480 * MIB}, "memory grew by 480 MiB; wanted less than the planned 480"),
    ],
)
def test_of_a_drawn_picture_too(wrong, said):
    load, again = (Load(Counter(statuses), tiles=TWO) for statuses in ({200: 3, 503: 4}, {200: 2}))
    seen = Seen(load, again, 2, 300 * MIB, 480 * MIB)
    check(DRAWN, seen)
    with pytest.raises(ValueError, match=said):
        check(DRAWN, replace(seen, **wrong))


def test_a_server_that_cannot_be_had_is_one_line(tmp_path, capsys):
    assert serving.main(["--what", "drawn", "--memory", "100MiB", "-o", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "raise --memory to" in printed.err and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args, said",
    [
        (["--size", "9"], "write WIDTHxHEIGHT"),
        (["--side", "1000"], "too few"),
        (["--what", "drawn", "--memory", "x"], "x"),
    ],
)
def test_what_is_no_picture_is_one_line(args, said, capsys):
    assert serving.main(args) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and said in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize("package", serving.NEEDED)
def test_without_its_libraries_it_names_the_extra(package, tmp_path):
    done = python("from widefield_bench.serving import main\nsys.exit(main([]))", blocked=(package,), cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert f"needs {package}" in done.stderr and "pip install 'widefield[bench]'" in done.stderr


@pytest.mark.parametrize("args", [["--viewers", "201"], ["--side", "0"], ["--steps", "0"]])
def test_misuse_is_2(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        serving.main(args)
    assert "error: argument" in capsys.readouterr().err
