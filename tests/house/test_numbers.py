"""What documents say was measured is what the committed results say."""

import json
import re

import pytest

from house.places import ROOT
from widefield_bench.numbers import BLOCKS, DOCUMENTS, filled, number, rows_of
from widefield_bench.results import FOLDER, read


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_shows_the_committed_numbers(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- numbers: " in text
    assert filled(text) == text, f"{name} and bench/results disagree; run python -m widefield_bench.numbers"


def test_a_number_that_was_changed_by_hand_is_found():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start = text.index("<!-- numbers: codecs -->")
    cell = re.search(r"\d\.\d", text[start:])
    changed = text[: start + cell.start()] + "9.9" + text[start + cell.end() :]
    assert filled(changed) == text != changed


def test_every_block_is_shown_somewhere():
    shown = {name for document in DOCUMENTS for name in re.findall(r"numbers: ([\w-]+)", (ROOT / document).read_text())}
    assert shown == set(BLOCKS)


def test_pictures_that_are_shown_are_there():
    text = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    for picture in re.findall(r"\]\((benchmarks/[\w.]+)\)", text):
        assert (ROOT / "docs" / picture).read_text().startswith("<svg"), picture


def test_every_row_says_what_it_is_about():
    for path in sorted(FOLDER.glob("*.json")):
        for row in read(path):
            assert {"machine", "versions", "commit", "command"} <= row["about"].keys(), path.name
            assert row["about"]["commit"] != "unknown", path.name
        json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN and no Infinity


def test_numbers_have_three_digits():
    assert [number(v) for v in (0.1948, 1.0078, 16.68, 881.2, 2126.7, None)] == [
        "0.195",
        "1.01",
        "16.7",
        "881",
        "2,127",
        "",
    ]
    assert rows_of(["", "a"], [["b", "1"]]) == "|  | a |\n|---|--:|\n| b | 1 |"
