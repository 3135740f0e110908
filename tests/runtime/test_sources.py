"""Region reads against plain slicing of a padded array, equal digests in every container, and every bad file."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from widefield import npy_file, sources
from widefield.errors import BadLatents
from widefield.geometry import Region
from widefield.sources import check_finite, open_latents

DTYPES = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")


def latents(shape, dtype="<f4", seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def as_npy(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "z.npy", array)
    return folder / "z.npy"


def as_zarr(folder: Path, array: np.ndarray, **options) -> Path:
    path = folder / "z.zarr"
    made = zarr.create_array(path, shape=array.shape, dtype=array.dtype, overwrite=True, **options)
    made[...] = array
    return path


def sliced(array: np.ndarray, region: Region) -> np.ndarray:
    """What `read` should give, from one big zero-padded copy."""
    pad = 70
    wide = np.pad(array.astype(np.float32), ((0, 0), (pad, pad), (pad, pad)))
    return wide[:, region.y0 + pad : region.y1 + pad, region.x0 + pad : region.x1 + pad]


shapes = st.tuples(st.integers(1, 5), st.integers(1, 23), st.integers(1, 29))


@st.composite
def cases(draw):
    shape = draw(shapes)
    y0, x0 = draw(st.integers(-30, 30)), draw(st.integers(-30, 30))
    region = Region(y0, x0, y0 + draw(st.integers(0, 30)), x0 + draw(st.integers(0, 30)))
    return latents(shape, draw(st.sampled_from(DTYPES))), region, draw(st.booleans())


relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@relaxed
@given(case=cases(), gap=st.sampled_from([0, 20, 1 << 15]), chunk=st.sampled_from([1, 100, 1 << 20]))
def test_a_region_of_a_npy_file_is_the_slice(tmp_path, case, gap, chunk):
    array, region, batched = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npy_file, "_GAP_NBYTES", gap)
        patch.setattr(npy_file, "CHUNK_NBYTES", chunk)
        patch.setattr(sources, "CHUNK_NBYTES", chunk)
        source = open_latents(as_npy(tmp_path, array[None] if batched else array))
        got, digest = source.read(region), source.digest()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, sliced(array, region))
    assert digest == digest_by_hand(array)


@relaxed
@given(case=cases())
def test_a_region_of_an_array_is_the_slice(case):
    array, region, batched = case
    source = open_latents(array[None] if batched else array)
    np.testing.assert_array_equal(source.read(region), sliced(array, region))
    assert source.digest() == digest_by_hand(array)


@settings(relaxed, max_examples=15)
@given(case=cases(), chunks=shapes, v=st.sampled_from([2, 3]))
def test_a_region_of_a_zarr_array_is_the_slice(tmp_path, case, chunks, v):
    array, region, batched = case
    array = array.astype(array.dtype.newbyteorder("<"))
    chunks = tuple(min(c, n) for c, n in zip(chunks, array.shape, strict=True))
    whole, chunks = (array[None], (1, *chunks)) if batched else (array, chunks)
    source = open_latents(as_zarr(tmp_path, whole, chunks=chunks, zarr_format=v))
    np.testing.assert_array_equal(source.read(region), sliced(array, region))
    assert source.digest() == digest_by_hand(array)


def digest_by_hand(array: np.ndarray) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    total = hashlib.sha256(json.dumps(["latents", list(array.shape), little.dtype.name]).encode())
    for y in range(array.shape[1]):
        for channel in range(array.shape[0]):
            total.update(hashlib.sha256(little[channel, y].tobytes()).digest())
    return total.hexdigest()


def test_sharded_and_grouped_zarr(tmp_path):
    array = latents((3, 17, 31), "<f2")
    group = zarr.create_group(tmp_path / "g.zarr")
    made = group.create_array("latents", shape=array.shape, dtype=array.dtype, chunks=(3, 4, 8), shards=(3, 8, 16))
    made[...] = array
    source = open_latents(tmp_path / "g.zarr", channels=3)
    np.testing.assert_array_equal(source.read(Region(-2, 5, 13, 40)), sliced(array, Region(-2, 5, 13, 40)))
    assert source.digest() == open_latents(array).digest()


def test_digest_depends_on_shape_dtype_and_every_value():
    array = latents((2, 6, 5))
    changed = array.copy()
    changed[1, 5, 4] += 1
    others = [changed, array.astype("<f8"), array.reshape(2, 5, 6), array.reshape(6, 2, 5), -array]
    digests = [open_latents(a).digest() for a in (array, *others)]
    assert len(set(digests)) == len(digests)
    assert open_latents(array.astype(">f4")).digest() == digests[0]


def test_memory_stays_small(tmp_path):
    source = open_latents(as_npy(tmp_path, np.ones((4, 1500, 2000), np.float32)))  # 48 MB
    tracemalloc.start()
    try:
        source.digest()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.reset_peak()
        assert source.read(Region(100, 100, 164, 164)).all()
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_threads_may_share_a_source(tmp_path):
    array = latents((4, 61, 47))
    source = open_latents(as_npy(tmp_path, array))
    failures = []

    def reader(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            y, x = (int(v) for v in rng.integers(-5, 40, 2))
            region = Region(y, x, y + 19, x + 23)
            if not np.array_equal(source.read(region), sliced(array, region)):
                failures.append(region)

    threads = [threading.Thread(target=reader, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_source_lets_go_of_its_file(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    path = as_npy(tmp_path, latents((1, 2, 3)))
    for _ in range(5):
        open_latents(path).digest()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_check_finite_names_the_first_one():
    values = latents((3, 5, 7))
    check_finite(values, Region(0, 0, 5, 7))
    check_finite(values[:, :0], Region(0, 0, 0, 7))
    check_finite(np.full((1, 2, 2), 3e38, np.float32), Region(0, 0, 2, 2))
    for bad, text in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
        spoiled = values.copy()
        spoiled[2, 4, 6] = spoiled[1, 3, 2] = bad
        with pytest.raises(BadLatents, match=f"^a.npy has {text} at channel 1, row 103, column 52; wanted finite"):
            check_finite(spoiled, Region(100, 50, 105, 57), "a.npy")


def test_a_float64_past_float32_is_found_by_check_finite():
    values = open_latents(np.full((1, 2, 2), 1e300)).read(Region(0, 0, 2, 2))
    with pytest.raises(BadLatents, match="has inf at channel 0, row 0"):
        check_finite(values, Region(0, 0, 2, 2))


@pytest.mark.parametrize("shape", [(), (5,), (5, 7), (2, 3, 5, 7), (1, 1, 3, 5, 7), (0, 5, 7), (3, 0, 7), (1, 3, 5, 0)])
def test_a_wrong_shape_is_refused(tmp_path, shape):
    for given_as in (as_npy(tmp_path, np.zeros(shape, np.float32)), np.zeros(shape, np.float32)):
        with pytest.raises(BadLatents, match=r"has shape \(.*; wanted \(channels, height, width\), one picture; index"):
            open_latents(given_as)


@pytest.mark.parametrize("dtype", ["u1", "<i8", "<c8", "<u2", "V2", "?", "S3", np.longdouble])
def test_a_wrong_type_is_refused(tmp_path, dtype):
    array = np.zeros((3, 5, 7), dtype)
    for given_as in (as_npy(tmp_path, array), array):
        with pytest.raises(
            BadLatents, match=r"holds .*; wanted float16, float32 or float64; save them with numpy.save"
        ):
            open_latents(given_as)


def test_wrong_channels_are_refused(tmp_path):
    path = as_npy(tmp_path, latents((4, 5, 16)))
    assert open_latents(path, channels=4).channels == 4
    with pytest.raises(BadLatents, match=r"has shape \(4, 5, 16\); wanted 16 channels; move the channels to the front"):
        open_latents(path, channels=16)
    with pytest.raises(BadLatents, match=r"wanted 8 channels; use the bundle they were made for"):
        open_latents(path, channels=8)


@pytest.mark.parametrize("change", [-1, -200, 1])
def test_a_file_of_the_wrong_length_is_refused(tmp_path, change):
    path = as_npy(tmp_path, latents((3, 5, 7)))
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + b"x")
    with pytest.raises(BadLatents, match=r"is truncated: |is too long: "):
        open_latents(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"PK\x03\x04" + bytes(100),
        b"\x93NUMPY\x01\x00\x04\x00{[(\n",
        b"\x93NUMPY\x01\x00\x76\x00{'descr'",
        b"\x93NUMPY\x09\x00",
    ],
)
def test_garbage_is_refused(tmp_path, data):
    path = tmp_path / "z.npy"
    path.write_bytes(data)
    with pytest.raises(BadLatents, match=r"is no \.npy file \(.*\); wanted a plain array; save them with"):
        open_latents(path)


def test_pickled_objects_are_refused(tmp_path):
    np.save(tmp_path / "z.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(BadLatents, match="Python objects"):
        open_latents(tmp_path / "z.npy")


def test_fortran_order_is_refused(tmp_path):
    with pytest.raises(BadLatents, match=r"Fortran order; wanted C order; save numpy.ascontiguousarray"):
        open_latents(as_npy(tmp_path, np.asfortranarray(latents((3, 5, 7)))))


def test_a_file_that_shrinks_later_is_refused(tmp_path):
    path = as_npy(tmp_path, latents((3, 5, 7)))
    source = open_latents(path)
    os.truncate(path, 300)
    with pytest.raises(BadLatents, match="ends before byte"):
        source.read(Region(0, 0, 5, 7))


def test_what_is_missing_or_of_another_kind_is_refused(tmp_path):
    with pytest.raises(BadLatents, match=r"does not exist; wanted latents as .npy or .zarr; check the path"):
        open_latents(tmp_path / "no.npy")
    (tmp_path / "z.pt").write_bytes(b"x")
    with pytest.raises(BadLatents, match=r"is a \.pt file; wanted latents as \.npy or \.zarr; save them"):
        open_latents(tmp_path / "z.pt")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(BadLatents, match="wanted latents"):
        open_latents(tmp_path / "folder.npy")


def test_bad_zarr_is_refused(tmp_path):
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(BadLatents, match="is no zarr array"):
        open_latents(tmp_path / "empty.zarr")
    zarr.create_group(tmp_path / "none.zarr")
    with pytest.raises(BadLatents, match=r"0 arrays \(none\); wanted one array; give its own path"):
        open_latents(tmp_path / "none.zarr")
    two = zarr.create_group(tmp_path / "two.zarr")
    for name in ("a", "b"):
        two.create_array(name, shape=(3, 4, 5), dtype="f4")
    with pytest.raises(BadLatents, match=r"2 arrays \(a, b\)"):
        open_latents(tmp_path / "two.zarr")
    zarr.create_array(tmp_path / "big.zarr", shape=(16, 4096, 4096), dtype="f4", chunks=(16, 4096, 4096))
    with pytest.raises(BadLatents, match="chunks of 1024 MiB, each decoded whole; wanted at most 256 MiB"):
        open_latents(tmp_path / "big.zarr")


def test_a_damaged_zarr_chunk_is_refused(tmp_path):
    path = as_zarr(tmp_path, latents((2, 6, 8)), chunks=(2, 3, 4))
    source = open_latents(path)
    chunk = path / "c" / "0" / "1" / "1"
    chunk.write_bytes(chunk.read_bytes()[:7])
    assert source.read(Region(0, 0, 3, 8)).any()
    with pytest.raises(BadLatents, match="has a damaged chunk in Region"):
        source.read(Region(2, 2, 5, 5))
    with pytest.raises(BadLatents, match="has a damaged chunk in Region"):
        source.digest()


def test_a_header_of_negative_sizes_is_refused(tmp_path):
    path = tmp_path / "z.npy"
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -5, 2)}"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(120))
    with pytest.raises(BadLatents, match=r"has shape \(-3, -5, 2\); wanted"):
        open_latents(path)


def test_importing_the_room_imports_numpy_alone():
    code = "import sys, widefield.sources, widefield.images; print({'zarr', 'imagecodecs', 'torch'} & set(sys.modules))"
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.stdout.strip() == "set()", done.stderr
