"""The same in a bucket of a server that speaks S3, on loopback: every object is the file that one process writes."""

import hashlib
import json
import logging
import random
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest

from cli.runner import ENVIRONMENT, run
from cluster.conftest import Crew
from cluster.test_many import CLAIMS, DECODED, DRAWN
from store.pictures import digests
from widefield.cluster.objects import PIECE, Objects
from widefield.store import open_store
from widefield.store.hashes import provenance_path
from widefield_bench.memory import MemoryCase, measure_memory
from widefield_bench.servers import started

moto = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
obstore = pytest.importorskip("obstore")
BUCKET = "pictures"


@pytest.fixture(scope="module")
def s3():
    """A server; its bucket, as obstore sees it. This process and those of the crew are told of it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
            patch.setitem(ENVIRONMENT, name, value)
        import boto3

        boto3.client("s3", endpoint_url=told["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
        from obstore.store import S3Store

        yield S3Store.from_url(f"s3://{BUCKET}")
    server.stop()


@pytest.fixture(scope="module")
def workers(s3):
    """A crew that knows of the server."""
    crew = Crew()
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def decoded(drawing_bundle, latents, workers, tmp_path_factory):
    """(the command less its output, what one process made of it on a disk)."""
    command = ("decode", drawing_bundle, latents, *DECODED)
    return command, alone(command, workers, tmp_path_factory)


@pytest.fixture(scope="module")
def drawn(drawing_bundle, workers, tmp_path_factory):
    command = ("generate", *DRAWN, "--bundle", drawing_bundle)
    return command, alone(command, workers, tmp_path_factory)


def alone(command, workers, tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "sea.zarr"
    assert workers.run(*command, "-o", path, workers=1).statuses == [0]
    return path


def objects(s3, folder: str) -> dict[str, str]:
    """The SHA-256 of every object in a folder of the bucket."""
    keys = [each["path"] for page in obstore.list(s3, folder + "/") for each in page]
    return {key.removeprefix(folder + "/"): hashlib.sha256(obstore.get(s3, key).bytes()).hexdigest() for key in keys}


def assert_as_alone(s3, folder: str, path) -> None:
    """Picture, hashes, manifest and summary, and nothing else."""
    assert objects(s3, folder) == digests(path.parent)


def place(folder: str) -> str:
    return f"s3://{BUCKET}/{folder}/sea.zarr"


def scratch(tmp_path):
    (tmp_path / "scratch").mkdir(exist_ok=True)
    return ("--scratch", tmp_path / "scratch")


def test_three_workers_make_what_one_makes(s3, decoded, workers, tmp_path):
    command, path = decoded
    told = workers.run(*command, "-o", place("three"), *CLAIMS, *scratch(tmp_path), workers=3)
    assert told.err == "" and told.statuses == [0, 0, 0]
    assert_as_alone(s3, "three", path)
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(("what", "kills"), [("decoded", 3), pytest.param("drawn", 3, marks=pytest.mark.slow)])
def test_workers_that_are_killed_lose_nothing(s3, workers, tmp_path, request, what, kills):
    command, path = request.getfixturevalue(what)
    dice, killed, pictures = random.Random(kills), 0, 0
    while killed < kills:
        folder, order = f"{what}-{pictures}", {"longest": dice.uniform(0.5, 3), "seed": dice.randrange(1 << 30)}
        told = workers.run(*command, "-o", place(folder), *CLAIMS, *scratch(tmp_path), workers=2, kills=kills, **order)
        assert set(told.statuses) <= {0} and told.err == "" and not told.left, told
        assert_as_alone(s3, folder, path)
        killed, pictures = killed + told.killed, pictures + 1


def test_who_comes_when_all_is_done_and_who_wants_another_picture(s3, decoded, workers, capsys):
    command, path = decoded
    assert workers.run(*command, "-o", place("done"), *CLAIMS, workers=1).statuses == [0]
    about = run(capsys, *command, "-o", place("done"), *CLAIMS, "--json").json()
    assert about["tasks_made"] == 0 and about["path"] == place("done")
    fault = run(capsys, *command, "-o", place("done"), *CLAIMS, "--seed", 9).fault()
    assert "holds another picture" in fault
    assert_as_alone(s3, "done", path)


def test_finalize_makes_the_same_tif(s3, decoded, workers, tmp_path, capsys):
    command, path = decoded
    assert workers.run(*command, "-o", place("final"), *CLAIMS, workers=1).statuses == [0]
    for source, name in ((place("final"), "far.tif"), (path, "near.tif")):
        about = run(capsys, "finalize", source, "-o", tmp_path / name, "--workers", 1, "--json").json()
        assert about["checked"]
    assert digests(tmp_path / "far.tif") == digests(tmp_path / "near.tif")
    fault = run(capsys, "finalize", place("nowhere"), "-o", tmp_path / "no.tif").fault()
    assert "s3://pictures/nowhere/sea.zarr does not exist" in fault and not (tmp_path / "no.tif").exists()


@pytest.fixture
def there(s3, decoded, tmp_path):
    """(where a copy of the finished picture is in the bucket, its key, what one process made on a disk)."""
    path = decoded[1]
    for file in (p for p in path.parent.rglob("*") if p.is_file()):
        obstore.put(s3, f"{tmp_path.name}/{file.relative_to(path.parent).as_posix()}", file.read_bytes())
    return place(tmp_path.name), f"{tmp_path.name}/sea.zarr", path


def test_inspect_says_of_it_what_it_says_of_one_on_a_disk(s3, there, capsys):
    url, key, path = there
    far, near = (run(capsys, "inspect", each, "--json").json() for each in (url, path))
    assert far == {**near, "path": url} and far["complete"]
    obstore.delete(s3, f"{key}/0/c/0/1/2")
    about = run(capsys, "inspect", url, "--json").json()
    assert not about["complete"] and about["tiles_done"] == near["tiles_done"] - 1
    obstore.delete(s3, f"{key}/1/zarr.json")
    assert "lacks level 1" in run(capsys, "inspect", url).fault()


def test_verify_reads_it_where_it_is_and_names_a_changed_tile(s3, there, capsys):
    url, key, path = there
    far, near = (run(capsys, "verify", each, "--json").json() for each in (url, path))
    assert far == {**near, "path": url} and far["good"] and far["tiles"] == 12 + 4 + 1
    shard = bytearray(obstore.get(s3, f"{key}/0/c/0/1/2").bytes())
    shard[100] ^= 1
    obstore.put(s3, f"{key}/0/c/0/1/2", bytes(shard))
    found = json.loads(run(capsys, "verify", url, "--json").out)
    assert found["changed"] == [{"level": 0, "row": 1, "column": 2}] and found["tiles_changed"] == 1
    assert run(capsys, "verify", url, "--region", "0:512,0:512", "--json").json()["good"]
    shard[-5] ^= 1  # and now its index
    obstore.put(s3, f"{key}/0/c/0/1/2", bytes(shard))
    assert json.loads(run(capsys, "verify", url, "--json").out)["changed"] == found["changed"]
    obstore.delete(s3, f"{key}.provenance/manifest.json")
    assert f"{url} is no finished picture" in run(capsys, "verify", url).fault()


def test_what_is_read_there_is_parts_of_shards(there, tmp_path, monkeypatch, capsys):
    fetched, parts, fetch, part = [], [], Objects.fetch, Objects.part
    monkeypatch.setattr(Objects, "fetch", lambda s, key, file: fetched.append(key) or fetch(s, key, file))
    monkeypatch.setattr(Objects, "part", lambda s, key, *at: parts.append((key, *at)) or part(s, key, *at))
    about = run(capsys, "finalize", there[0], "-o", tmp_path / "sea.tif", "--workers", 2, "--json").json()
    assert about["checked"] and len(parts) == len(set(parts)) == about["tiles_made"] == 17
    assert fetched and not [key for key in fetched if "/c/" in key]


def test_serve_shows_it_as_one_on_a_disk(s3, there, tmp_path):
    url, key, path = there
    obstore.delete(s3, f"{key}/0/c/0/0/0")
    with started(url, cache=tmp_path / "a") as far, started(path, cache=tmp_path / "b") as near:
        assert far.picture == near.picture
        for depth, tile, status in ((11, "2_1", 200), (11, "0_0", 404), (10, "1_0", 200), (7, "0_0", 200)):
            names = [f"{each.url}/dzi/{each.picture}_files/{depth}/{tile}.png" for each in (far, near)]
            answers = [httpx.get(name) for name in names]
            assert [answer.status_code for answer in answers] == [status, 200]
            assert status == 404 or answers[0].content == answers[1].content


@pytest.mark.parametrize("command", ["inspect", "verify", "serve", "finalize"])
def test_what_is_not_there_is_one_line(s3, tmp_path, command, capsys):
    more = ("-o", tmp_path / "no.tif") if command == "finalize" else ()
    gone = "does not exist"
    for name, said in (("pictures/no/sea.zarr", gone), ("nobodys/sea.zarr", gone), ("no/sea.tif", "is no .zarr")):
        assert f"s3://{name} {said}" in run(capsys, command, f"s3://{name}", *more).fault()
    assert not list(tmp_path.iterdir())


def test_a_worker_stays_within_its_plan(s3, tiny, tmp_path, capsys):
    """Its shard, of noise, is sent in several pieces. In a folder the same worker sends nothing."""
    latents = tmp_path / "noise.npy"
    np.save(latents, 3 * np.random.default_rng(0).normal(size=(4, 320, 256)).astype(np.float32))
    case = MemoryCase(str(tiny[0]), str(latents), "512MiB", workers=1, summary="sampled", cells=64, tile=64)
    found = {
        name: measure_memory(replace(case, claims=where))
        for name, where in (("folder", str(tmp_path / "sea.zarr")), ("bucket", place("memory")))
    }
    nbytes = obstore.head(s3, "memory/sea.zarr/0/c/0/0/0")["size"]
    with capsys.disabled():
        for name, row in found.items():
            said = {key: row[key] for key in ("baseline_mib", "actual_mib", "planned_mib", "budget_mib")}
            print(f"\na worker in a {name}, a shard of {nbytes / 2**20:.0f} MiB: {said}")
    assert nbytes > 1.2 * PIECE
    for row in found.values():
        assert row["tiles_made"] == 1 and row["within"], row


def test_zarr_reads_it_where_it_is(s3, decoded, workers):
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    command, path = decoded
    assert workers.run(*command, "-o", place("read"), *CLAIMS, workers=1).statuses == [0]
    with open_store(path) as store:
        for level, tile in ((0, (1, 2)), (1, (0, 0))):
            far = zarr.open_array(ObjectStore(S3Store.from_url(place("read"))), path=str(level), mode="r")
            mine = store.read(level, *tile)
            y, x = (512 * n for n in tile)
            theirs = far[:, y : y + mine.shape[0], x : x + mine.shape[1]]
            np.testing.assert_array_equal(np.moveaxis(theirs, 0, -1), mine)


def test_what_a_bucket_cannot_do_is_said(s3, decoded, drawn, tmp_path, capsys):
    far = ("-o", place("no"))
    for command, more, said in (
        (decoded[0], (), "add --cluster claims"),
        (decoded[0], ("--cluster", "ray"), "with --cluster ray"),
        (drawn[0], (*CLAIMS, "--save-latents", tmp_path / "l.npy"), "--save-latents with s3://pictures/no/sea.zarr"),
    ):
        assert said in run(capsys, *command, *far, *more).fault()
    assert "cannot be written to" in run(capsys, *decoded[0], "-o", "ftp://there/sea.zarr", *CLAIMS).fault()
    assert not objects(s3, "no")


def test_a_bucket_that_is_not_there_is_one_line(s3, decoded, capsys):
    fault = run(capsys, *decoded[0], "-o", "s3://nobodys/sea.zarr", *CLAIMS).fault()
    assert "s3://nobodys: " in fault and "NoSuchBucket" in fault


def test_without_obstore_its_extra_is_named(decoded, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    fault = run(capsys, *decoded[0], "-o", place("none"), *CLAIMS).fault()
    assert "pip install 'widefield[s3]'" in fault


def test_hashes_and_manifest_verify_when_fetched(s3, decoded, workers, tmp_path):
    from widefield.provenance.verify import verify

    command, _ = decoded
    assert workers.run(*command, "-o", place("verified"), *CLAIMS, workers=1).statuses == [0]
    for key in [each["path"] for page in obstore.list(s3, "verified/") for each in page]:
        file = tmp_path / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(obstore.get(s3, key).bytes())
    picture = tmp_path / "verified" / "sea.zarr"
    assert verify(picture).good and provenance_path(picture).is_dir()
    shutil.rmtree(tmp_path / "verified")
