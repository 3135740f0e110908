"""Rows to claims, pictures and a page: what is said of numbers that are known."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from bench.rows import ABOUT, decodes, everything
from widefield_bench import results
from widefield_bench.claims import claims
from widefield_bench.watch import time_split


@pytest.fixture(scope="module")
def figures():
    plots = pytest.importorskip("widefield_bench.plots")
    return plots.figures(everything())


def test_claims_are_held_to_the_rows():
    found = {(claim.who.partition(", ")[2], claim.wanted): claim for claim in claims(everything())}
    tiled = "3 times diffusers, enable_tiling, 2048 px"
    fast, slow = found["OpenVINO, float32", tiled], found["ONNX Runtime, float32", tiled]
    assert fast.holds and fast.found == "3.13 times" and not fast.why
    assert not slow.holds and slow.found == "1.87 times"
    assert slow.why.startswith("the summary is 0.5 of 7.8 s, without it 2.00 times") and "86 GFLOP/s" in slow.why
    assert not any("1/8" in claim.wanted for claim in claims(everything())), "untiled failed: nothing to compare with"
    assert found["OpenVINO, float32", "4096 px, not fitted, predicted within 15 %"].found.endswith("-1.6%")


def test_memory_is_claimed_where_untiled_could():
    whole = {
        "section": "decode",
        "who": "untiled",
        "size_px": 4096,
        "peak_mib": 8000.0,
        "seconds": 90.0,
        "others_share": 0.4,
        "about": ABOUT,
    }
    rows = results.merged([row for row in decodes() if "failed" not in row], [whole])
    found = [claim for claim in claims(rows) if "memory" in claim.wanted]
    assert [claim.holds for claim in found] == [True, True] and found[0].found == "1/13.3: 600 of 8,000 MiB"


def test_there_is_a_picture_of_everything(figures):
    assert list(figures) == ["throughput", "memory", "quality", "split", "roofline", "scaling"]
    for svg in figures.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_a_picture_is_the_same_again(figures):
    from widefield_bench.plots import figures as draw

    assert draw(everything()) == figures


def test_nothing_is_drawn_of_nothing():
    plots = pytest.importorskip("widefield_bench.plots")
    assert plots.figures([]) == {}
    assert list(plots.figures(decodes())) == ["throughput", "memory"]


def test_a_split_is_in_shares():
    assert time_split({"split": results.section(everything(), "split")[0]["split"]}) == {
        "measuring the summary": 0.125, "engine": 0.75, "encode": 0.125,
    }  # fmt: skip


def test_the_page_needs_nothing_else(tmp_path):
    report = pytest.importorskip("widefield_bench.report")
    report.write_report(everything(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6 and "<script" not in page
    assert "src=" not in page and 'rel="stylesheet"' not in page
    assert "MemoryError: &lt;no room&gt;" in page, "a failure is shown, and is no markup"
    assert "a CPU, 2 cores" in page and "commit 0123456789ab" in page


def test_newer_rows_replace_older_ones(tmp_path):
    path = tmp_path / "bench.json"
    results.write(path, decodes())
    again = {**decodes()[0], "seconds": 9.0, "cpu_seconds": 17.5}
    rows = results.merged(results.read(path), [again])
    assert len(rows) == len(decodes()) and rows[0]["seconds"] == 9.0
    assert results.one(rows, who="untiled", size_px=4096) is None
    with pytest.raises(ValueError, match="lacks commit"):
        results.write(path, [{"section": "decode", "about": {k: v for k, v in ABOUT.items() if k != "commit"}}])


def test_a_disturbed_run_replaces_no_quiet_one_and_its_time_is_not_told():
    fast = results.one(decodes(), who="openvino f32", size_px=2048)
    disturbed = {**fast, "others_share": 0.3, "seconds": 99.0}
    assert results.merged([fast], [disturbed]) == [fast]
    assert results.merged([disturbed], [fast]) == [fast] == results.merged([fast], [{**fast, "failed": "why"}])
    assert not results.quiet({**fast, "cpu_seconds": fast["seconds"]}), "where nothing was noted, the worst is taken"
    rows = [disturbed if row == fast else row for row in decodes()]
    assert not any("OpenVINO" in c.who and "2048" in c.wanted for c in claims(rows))
