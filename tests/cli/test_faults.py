"""What users get wrong, and what they are told: one line on stderr, exit 1, nothing damaged."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cli.conftest import latents_of
from cli.runner import ENVIRONMENT, QUICK, Answer, run, start
from widefield.store import open_store


def content(folder) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Latents.


def bad_latents(kind: str, path, good) -> None:
    data = good.read_bytes()
    match kind:
        case "truncated":
            path.write_bytes(data[:-1000])
        case "garbage":
            path.write_bytes(os.urandom(len(data)))
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("latents\n")
        case "NaN":
            values = np.load(good)
            values[2, 17, 23] = np.nan
            np.save(path, values)
        case "channels":
            np.save(path, np.load(good)[:3])
        case "channels last":
            np.save(path, np.load(good).transpose(1, 2, 0))
        case "integers":
            np.save(path, np.zeros((4, 30, 40), np.int32))
        case "pickle":
            np.save(path, np.array([{"latents": 1}], object), allow_pickle=True)
        case "flat":
            np.save(path, np.load(good).ravel())


SAID = {
    "truncated": "is truncated", "garbage": "is no .npy file", "empty": "is no .npy file", "text": "is no .npy file",
    "NaN": r"has nan at channel 2, row 17, column 23",
    "channels": "wanted 4 channels", "channels last": "wanted 4 channels",
    "integers": "holds int32", "pickle": "is no .npy file", "flat": r"wanted \(channels, height, width\)",
}  # fmt: skip


@pytest.mark.parametrize("kind", SAID)
def test_bad_latents(kind, bundle, latents, tmp_path, capsys):
    path, out = tmp_path / "bad.npy", tmp_path / "out.tif"
    bad_latents(kind, path, latents)
    line = run(capsys, "decode", bundle, path, "-o", out, *QUICK).fault()
    assert re.search(SAID[kind], line) and str(path) in line
    shutil.copy(latents, path)  # mended, the same command works, whatever was begun
    assert (
        run(capsys, "decode", bundle, path, "-o", out, *QUICK, *(["--overwrite"] if kind == "NaN" else [])).status == 0
    )


def test_a_nan_far_away_is_found_where_it_is(bundle, tmp_path, capsys):
    """Outside the sample that is measured: the tile that meets it says so, and what was made before stays."""
    values = latents_of(200, 64)
    values[1, 190, 60] = np.inf
    np.save(tmp_path / "bad.npy", values)
    line = run(capsys, "decode", bundle, tmp_path / "bad.npy", "-o", tmp_path / "o.tif", *QUICK, "--seed", "3").fault()
    assert "has inf at channel 1, row 190, column 60" in line
    with open_store(tmp_path / "o.tif") as store:
        assert not store.complete()


# Paths.


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("decode", "{bundle}", "nowhere.npy", "-o", "out.tif"), "nowhere.npy does not exist"),
        (("decode", "nowhere.wf", "{latents}", "-o", "out.tif"), "nowhere.wf is no bundle: no such folder"),
        (("decode", "{latents}", "{bundle}", "-o", "out.tif"), "is no bundle"),
        (("decode", "{bundle}", "{latents}", "-o", "no/such/out.tif"), "no/such is not a folder"),
        (("decode", "{bundle}", "{latents}", "-o", "out.gif"), r"no form is called '\.gif'"),
        (("decode", "{bundle}", "{latents}", "-o", "out"), "no form is called"),
        (("decode", "{bundle}", "{latents}.pt", "-o", "out.tif"), "does not exist"),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--engine", "magic"), "no engine 'magic'"),
        (
            ("decode", "{bundle}", "{latents}", "-o", "out.tif", "--engine", "ort", "--precision", "bf16"),
            "float32 only",
        ),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--memory", "lots"), "'lots' is no amount of memory"),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--tile", "0"), "'0' is no tile"),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--codec", "magic"), "codec 'magic' found"),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--summary", "magic"), "magic is no file"),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--summary", "{latents}"), "is no summary"),
        (("decode", "{bundle}", "{latents}", "-o", "out.tif", "--scratch", "nowhere"), "'nowhere' is no folder"),
        (("encode", "{bundle}", "nowhere.png", "-o", "out.npy"), "nowhere.png does not exist"),
        (("encode", "{bundle}", "{latents}", "-o", "out.npy"), "wanted uint8 or uint16"),
        (("encode", "{bundle}", "{bundle}/manifest.json", "-o", "out.npy"), r"is a \.json file"),
        (("encode", "{bundle}", "{picture}", "-o", "out.pt"), r"no latents are called '\.pt'"),
        (("encode", "{bundle}", "{picture}", "-o", "no/out.npy"), "no is not a folder"),
        (("plan", "{bundle}", "--size", "10y20"), "'10y20' is no size"),
        (("plan", "{bundle}", "--size", "0x20"), "'0x20' is no size"),
        (("plan", "nowhere.wf", "--size", "10x20"), "nowhere.wf is no bundle"),
        (("plan", "{bundle}", "--size", "10x20", "--engine", "magic"), "no engine 'magic'"),
        (("inspect", "nowhere"), "nowhere does not exist"),
        (("inspect", "{picture}"), "was not written by widefield"),
        (("inspect", "{latents}"), "is no bundle"),
        (("export", "nowhere", "-o", "out.wf"), "nowhere"),
        (("export", "{bundle}", "-o", "{bundle}"), "exists"),
    ],
)
def test_wrong_paths_and_values(args, said, bundle, latents, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = run(capsys, *(a.format(bundle=bundle, latents=latents, picture=picture) for a in args)).fault()
    assert re.search(said, line), line
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A .png of somebody else's."""
    import imagecodecs

    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    path.write_bytes(imagecodecs.png_encode(np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)))
    return path


# Outputs.


@pytest.mark.parametrize("form", [".tif", ".zarr", ".dzi", ".png"])
def test_an_output_with_another_fingerprint_is_left_byte_for_byte(form, bundle, latents, tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / f"picture{form}"
    assert run(capsys, "decode", bundle, latents, "-o", out, *QUICK).status == 0
    before = content(folder)
    for change in (("--seed", 5), ("--tile", 13), ("--summary", "exact")):
        line = run(capsys, "decode", bundle, latents, "-o", out, *QUICK, *change).fault()
        assert "holds another picture" in line and "overwrite" in line
        assert content(folder) == before
    assert run(capsys, "decode", bundle, latents, "-o", out, *QUICK, "--seed", 5, "--overwrite").status == 0


@pytest.mark.parametrize("form", [".tif", ".zarr", ".dzi", ".png"])
def test_somebody_elses_file_is_never_touched(form, bundle, latents, tmp_path, capsys):
    out = tmp_path / f"mine{form}"
    out.write_bytes(b"precious")
    for extra in ((), ("--overwrite",)):
        assert (
            "was not written by widefield" in run(capsys, "decode", bundle, latents, "-o", out, *QUICK, *extra).fault()
        )
    assert out.read_bytes() == b"precious" and [p.name for p in tmp_path.iterdir()] == [out.name]


def without_root(*args: object) -> Answer:
    """As a user whose permissions count, also where the tests are run by root."""
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("permissions do not bind root, and there is no setpriv to become somebody else")
    command = [*drop, sys.executable, "-m", "widefield.cli", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    return Answer(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "args",
    [
        ("decode", "{bundle}", "{latents}", "-o", "{folder}/o.tif"),
        ("decode", "{bundle}", "{latents}", "-o", "{folder}/o.zarr"),
        ("encode", "{bundle}", "{picture}", "-o", "{folder}/o.npy"),
    ],
)
def test_a_folder_that_cannot_be_written(args, bundle, latents, picture, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    args = (a.format(bundle=bundle, latents=latents, picture=picture, folder=folder) for a in args)
    assert "permission denied" in without_root(*args).fault()
    assert not list(folder.iterdir())


def test_files_that_cannot_be_read(copied, latents, tmp_path):
    secret = tmp_path / "secret.npy"
    shutil.copy(latents, secret)
    secret.chmod(0)
    assert "ermission denied" in without_root("decode", copied, secret, "-o", tmp_path / "o.tif").fault()
    (copied / "manifest.json").chmod(0)
    assert "ermission denied" in without_root("decode", copied, latents, "-o", tmp_path / "o.tif").fault()
    assert not (tmp_path / "o.tif").exists()


# Budgets.


@pytest.mark.parametrize("command", ["plan", "decode", "encode"])
def test_a_budget_too_small_says_the_smallest_that_works(command, bundle, latents, picture, tmp_path, capsys):
    args = {
        "plan": ("plan", bundle, "--size", "8192x8192"),
        "decode": ("decode", bundle, latents, "-o", tmp_path / "o.tif", "--summary", "sampled"),
        "encode": ("encode", bundle, picture, "-o", tmp_path / "o.npy"),
    }[command]
    line = run(capsys, *args, "--engine", "ort", "--memory", "3MiB").fault()
    assert not list(tmp_path.iterdir())
    smallest = re.search(r"raise --memory to (\d+)MiB", line)
    assert smallest is not None, line
    assert run(capsys, *args, "--engine", "ort", "--memory", f"{int(smallest[1]) - 1}MiB").status == 1
    assert run(capsys, *args, "--engine", "ort", "--memory", f"{smallest[1]}MiB").status == 0


def test_a_scratch_folder_that_is_full_is_said(bundle, larger, tmp_path, children):
    """The values between two stages do not fit in memory, and nowhere else either."""
    args = ("decode", bundle, larger, "-o", tmp_path / "o.tif", *QUICK[:4], "--cells", 1000, "--tile", 16)
    smallest = re.search(r"raise --memory to (\d+)MiB", children.run(*args, "--memory", "1MiB").fault())
    line = children.run(*args, "--memory", f"{smallest[1]}MiB", limit=100_000).fault()
    assert "a scratch file in" in line and "--scratch" in line


# Processes of their own: nothing of pytest's helps them.


def test_faults_of_a_process_of_its_own(bundle, tmp_path):
    assert "nowhere.npy does not exist" in start("decode", bundle, "nowhere.npy", "-o", tmp_path / "o.tif").fault()
    assert start("decode", bundle, "nowhere.npy", "-o", tmp_path / "o.tif", "--json").fault()


@pytest.mark.parametrize(
    "args",
    [
        ("decode",),
        ("decode", "a", "b", "c", "-o", "o.tif"),
        ("decode", "--magic"),
        ("decode", "a", "-o", "o.tif", "--batch", "x"),
        ("plan", "a", "--bundle", "b", "--size", "8x8"),
        ("plan", "a"),
        ("magic",),
    ],
)
def test_misuse_exits_2(args, capsys):
    answer = run(capsys, *args)
    assert answer.status == 2 and answer.out == "" and "Usage: widefield" in answer.err
