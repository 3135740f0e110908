"""A store without a single tile gives way to another picture; one with a tile does not."""

from __future__ import annotations

import numpy as np
import pytest

from widefield.errors import StoreError
from widefield.store import StoreSpec, create_or_resume, default_codec, open_store


@pytest.mark.parametrize("suffix", ["tif", "zarr", "dzi", "png"])
def test_only_a_blank_store_is_replaced(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    codec = default_codec(path)
    create_or_resume(path, StoreSpec(600, 300, "aa", codec)).close()
    with create_or_resume(path, StoreSpec(600, 300, "bb", codec)) as store:
        assert store.spec.fingerprint == "bb"
        store.write(0, 0, 0, np.full((300, 512, 3), 7, np.uint8))
    with pytest.raises(StoreError, match="bb"):
        create_or_resume(path, StoreSpec(600, 300, "cc", codec))
    with open_store(path) as store:
        assert store.spec.fingerprint == "bb" and store.done(0)[0, 0]


def test_a_damaged_offset_of_a_tiff_is_not_ours_and_no_overflow(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(b"II\x2b\x00\x08\x00\x00\x00" + b"\xff" * 8 + b"\x00" * 100)
    with pytest.raises(StoreError):
        open_store(path)
