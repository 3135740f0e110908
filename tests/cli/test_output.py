"""What commands print: JSON for programs, lines for logs, a bar for people."""

import json
import os
import pty
import re
import subprocess
import sys
import time

import numpy as np
import pytest

import widefield
from cli.runner import ENVIRONMENT, run
from widefield.commands import progress as progress_module
from widefield.commands.output import show_nbytes, show_seconds
from widefield.commands.progress import Lines
from widefield.render import Progress
from widefield.store import open_store

QUICK = ("--engine", "ort", "--summary", "sampled", "--cells", "16")


def test_decode_says_what_it_did(bundle, latents, tmp_path, capsys):
    out = tmp_path / "o.tif"
    first = run(capsys, "decode", bundle, latents, "-o", out, *QUICK)
    assert first.status == 0
    said = first.out.splitlines()
    assert said[0].startswith(f"{out}: 320 x 240 px, ")
    assert re.fullmatch(r"1 tile made, in .* s, .* Mpx/s", said[1])
    assert ("statistics" in said[2] or "no tile was certified" in said[2]) and len(said) == 3
    assert run(capsys, "decode", bundle, latents, "-o", out, *QUICK, "--quiet").out == ""
    again = run(capsys, "decode", bundle, latents, "-o", out, *QUICK, "--json")
    assert again.err == ""
    assert again.json()["store_tiles_found"] == 1 and again.json()["size_px"] == [320, 240]


def test_both_ways_to_name_the_bundle_are_the_same(bundle, latents, tmp_path, capsys):
    out = tmp_path / "o.tif"
    assert run(capsys, "decode", bundle, latents, "-o", out, *QUICK).status == 0
    again = run(capsys, "decode", latents, "--bundle", bundle, "-o", out, *QUICK, "--json").json()
    assert again["store_tiles_found"] == 1


def test_the_command_line_makes_the_librarys_picture(bundle, latents, tmp_path, capsys):
    out = tmp_path / "o.zarr"
    assert run(capsys, "decode", bundle, latents, "-o", out, *QUICK, "--tile", "16x24", "--seed", 9).status == 0
    options = {"engine": "ort", "summary": "sampled", "cells": 16, "tile": (16, 24), "seed": 9}
    with open_store(out) as store, widefield.open(bundle).decode(latents, **options) as picture:
        np.testing.assert_array_equal(store.read(0, 0, 0), np.asarray(picture))


def test_encode_then_decode(bundle, latents, tmp_path, capsys):
    picture, again = tmp_path / "o.zarr", tmp_path / "again.npy"
    assert run(capsys, "decode", bundle, latents, "-o", picture, *QUICK).status == 0
    answer = run(capsys, "encode", bundle, picture, "-o", again, *QUICK, "--tile", 16, "--json").json()
    assert answer["latents_shape"] == [4, 30, 40] and answer["tiles"] == 6
    assert np.load(again).shape == (4, 30, 40)
    said = run(capsys, "encode", bundle, picture, "-o", again, *QUICK, "--overwrite").out
    assert said.startswith(f"{again}: latents 4x30x40 of 320 x 240 px")


def test_plan_answers_for_524288_in_a_second_and_adds_up(bundle, capsys):
    started = time.process_time()
    answer = run(capsys, "plan", bundle, "--size", "524288x524288", "--json").json()
    assert time.process_time() - started < 1
    assert answer["size_px"] == [524288, 524288] and answer["latents_nbytes"] == 4 * 4 * 65536**2
    for phase in ("measure", "stream"):
        during = [b["nbytes"] for b in answer["buffers"] if b["place"] == "host" and b["during"] in (phase, "both")]
        assert sum(during) <= answer["peak_host_nbytes"] <= answer["memory_nbytes"]
    people = run(capsys, "plan", bundle, "--size", "524288x524288").out
    assert "65536 x 65536 latents" in people and "of 2 GiB" in people and "activations" in people


def test_plan_rounds_up_and_says_so(bundle, capsys):
    answer = run(capsys, "plan", bundle, "--size", "1001x333", "--json").json()
    assert answer["size_px"] == [1008, 336] and answer["asked_px"] == [1001, 333]
    assert "1001 x 333 rounded up" in run(capsys, "plan", bundle, "--size", "1001x333").out


def test_inspect_a_bundle(bundle, capsys):
    about = run(capsys, "inspect", bundle, "--verify", "--json").json()
    assert (about["kind"], about["family"], about["scale"], about["latent_channels"]) == (
        "bundle",
        "AutoencoderKL",
        8,
        4,
    )
    assert about["components"]["decoder"]["sites"]["attention"] == 1 and about["verified"]
    people = run(capsys, "inspect", bundle).out
    assert "AutoencoderKL" in people and re.search(
        r"^decoder +4 to 3 channels, margin \d+ latents", people, re.MULTILINE
    )


def test_inspect_a_picture(bundle, latents, tmp_path, capsys):
    for form in (".tif", ".zarr", ".dzi"):
        out = tmp_path / f"o{form}"
        assert run(capsys, "decode", bundle, latents, "-o", out, *QUICK).status == 0
        about = run(capsys, "inspect", out, "--json").json()
        assert (about["kind"], about["size_px"], about["complete"]) == ("picture", [320, 240], True)
        assert about["tiles_done"] == about["tiles"] and about["metadata"]["bundle_name"] == "tiny"
        assert "complete" in run(capsys, "inspect", out).out


def test_lines_come_now_and_then(monkeypatch, capsys):
    """On a terminal or not, what is said is the same: how much, how quick, how long still."""
    moment = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: moment[0])
    lines = Lines("decoding")
    for second in range(25):
        moment[0] = 100.0 + second
        lines.progress(Progress(second + 1, 50, (second + 1) * 10**6, 50 * 10**6, second + 1.0))
    said = capsys.readouterr().err.splitlines()
    assert said == ["decoding: 11 of 50 tiles, 1 Mpx/s, 39 s left", "decoding: 21 of 50 tiles, 1 Mpx/s, 29 s left"]


def on_a_terminal(args: list[str], **environment: str) -> tuple[int, str, str]:
    """(status, stdout, what a terminal got on stderr)."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "widefield.cli", *args]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, env={**ENVIRONMENT, "TERM": "xterm", **environment}
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        seen += piece
    out, _ = process.communicate()
    os.close(ours)
    return process.returncode, out, seen.decode()


@pytest.mark.parametrize("colour", [True, False])
def test_a_bar_on_a_terminal_and_no_colour_where_none_is_wanted(colour, bundle, latents, tmp_path):
    args = ["decode", str(bundle), str(latents), "-o", str(tmp_path / "o.tif"), *QUICK, "--json"]
    environment = {} if colour else {"NO_COLOR": "1"}
    status, out, seen = on_a_terminal(args, **environment)
    assert status == 0 and json.loads(out)["store_tiles_made"] == 1
    assert "measuring" in seen and "sites" in seen
    assert bool(re.search(r"\x1b\[[0-9;]*[39][0-9]m", seen)) == colour
    assert on_a_terminal([*args, "--quiet"])[2] == ""


def test_a_reader_that_goes_away_is_no_bug(bundle):
    command = f"{sys.executable} -m widefield.cli inspect {bundle} --json | head -c 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("{", "")


def test_numbers_for_people():
    assert [show_nbytes(n) for n in (0, 999, 1024, 1536, 3 << 30, 700 << 40)] == [
        "0 B", "999 B", "1 KiB", "1.5 KiB", "3 GiB", "700 TiB",
    ]  # fmt: skip
    assert [show_seconds(s) for s in (0.04, 9.96, 59.4, 60, 125, 3600, 12_000, 180_000)] == [
        "0.0 s", "10.0 s", "59 s", "1 min", "2 min 5 s", "1 h", "3 h 20 min", "2 d 2 h",
    ]  # fmt: skip
