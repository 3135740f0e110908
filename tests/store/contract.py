"""What every form of store keeps. A form's tests subclass `StoreContract` and say how the form is called."""

from pathlib import Path

import numpy as np
import pytest

from store.pictures import digests, fill, picture, read_level, reference_pyramid
from widefield.errors import StoreError
from widefield.store import Store, StoreSpec, create_or_resume, open_store
from widefield.store.sidecar import sidecar_path

SIZES = [(1300, 700, 512), (513, 512, 512), (1, 5000, 512), (300, 200, 512), (300, 201, 64), (129, 257, 32)]


class StoreContract:
    suffix: str
    pyramidal = True

    def spec(self, width: int, height: int, tile: int = 64, fingerprint: str = "5eed", codec: str = "lossless"):
        metadata = {"bundle": "c0ffee"}
        return StoreSpec(width, height, fingerprint, codec=codec, tile_px=tile, metadata=metadata)

    def path(self, tmp_path: Path) -> Path:
        return tmp_path / f"out{self.suffix}"

    def check(self, store: Store, image: np.ndarray) -> None:
        for level, want in enumerate(reference_pyramid(image, len(store.levels))):
            np.testing.assert_array_equal(read_level(store, level), want, err_msg=f"level {level}")

    @pytest.mark.parametrize(("width", "height", "tile"), SIZES)
    def test_every_level_is_the_box_mean_of_the_one_below(self, tmp_path, width, height, tile):
        image = picture(width, height)
        with create_or_resume(self.path(tmp_path), self.spec(width, height, tile)) as store:
            fill(store, image, threads=2)
        assert not sidecar_path(self.path(tmp_path)).exists()
        with open_store(self.path(tmp_path)) as store:
            assert store.complete() and store.spec.metadata == {"bundle": "c0ffee"}
            assert (len(store.levels) > 1) == (
                self.pyramidal and (max(width, height) > tile or store.levels[-1].width_px == 1)
            )
            self.check(store, image)

    @pytest.mark.parametrize("seed", range(3))
    def test_any_order_gives_the_same(self, tmp_path, seed):
        image = picture(333, 290)
        with create_or_resume(self.path(tmp_path), self.spec(333, 290, 32)) as store:
            fill(store, image, order=np.random.default_rng(seed).permutation, threads=2)
        with open_store(self.path(tmp_path)) as store:
            self.check(store, image)

    @pytest.mark.parametrize("count", [0, 1, 7, 29, 30])
    def test_a_resumed_run_is_asked_for_the_rest_only(self, tmp_path, count):
        image = picture(333, 290)  # 6 x 5 tiles
        with create_or_resume(self.path(tmp_path), self.spec(333, 290)) as store:
            wanted = fill(store, image, count=count)
        with create_or_resume(self.path(tmp_path), self.spec(333, 290)) as store:
            assert int(store.done(0).sum()) == count
            assert sorted(fill(store, image, threads=2)) == sorted(wanted[count:])
        with open_store(self.path(tmp_path)) as store:
            self.check(store, image)

    def test_a_finished_picture_is_opened_again_and_nothing_is_missing(self, tmp_path):
        image = picture(200, 100)
        with create_or_resume(self.path(tmp_path), self.spec(200, 100)) as store:
            fill(store, image)
        before = digests(tmp_path)
        with create_or_resume(self.path(tmp_path), self.spec(200, 100)) as store:
            assert fill(store, image) == []
        assert digests(tmp_path) == before

    def test_an_unfinished_picture_is_read_while_it_is_written(self, tmp_path):
        image = picture(333, 290)
        store = create_or_resume(self.path(tmp_path), self.spec(333, 290))
        row, column = fill(store, image, count=4)[0]
        reader = open_store(self.path(tmp_path))
        np.testing.assert_array_equal(reader.read(0, row, column), image[:64, :64])
        np.testing.assert_array_equal(reader.done(0), store.done(0))
        with pytest.raises(StoreError, match="has no tile 4,5 at level 0"):
            reader.read(0, 4, 5)
        store.write(0, 4, 5, image[256:, 320:])
        np.testing.assert_array_equal(reader.read(0, 4, 5), image[256:, 320:])
        assert reader.done(0)[4, 5]
        with pytest.raises(StoreError, match="opened for reading"):
            reader.write(0, 0, 0, image[:64, :64])
        reader.close()
        store.close()

    def test_tiles_written_without_a_pyramid_writer_are_made_again_where_ancestors_need_them(self, tmp_path):
        image = picture(333, 290)
        with create_or_resume(self.path(tmp_path), self.spec(333, 290)) as store:
            store.write(0, 1, 1, image[64:128, 64:128])
        with create_or_resume(self.path(tmp_path), self.spec(333, 290)) as store:
            assert len(fill(store, image)) == (30 if self.pyramidal else 29)
        with open_store(self.path(tmp_path)) as store:
            self.check(store, image)

    def test_lost_canvases_heal(self, tmp_path):
        image = picture(333, 290)
        with create_or_resume(self.path(tmp_path), self.spec(333, 290)) as store:
            fill(store, image, count=13)
        (sidecar_path(self.path(tmp_path)) / "canvases").unlink()
        with create_or_resume(self.path(tmp_path), self.spec(333, 290)) as store:
            fill(store, image)
        with open_store(self.path(tmp_path)) as store:
            self.check(store, image)

    def test_another_fingerprint_is_refused_and_both_are_named(self, tmp_path):
        image = picture(200, 100)
        with create_or_resume(self.path(tmp_path), self.spec(200, 100)) as store:
            fill(store, image, count=3)
        before = digests(tmp_path)
        with pytest.raises(StoreError, match=r"is 5eed; wanted 0dd;.*overwrite"):
            create_or_resume(self.path(tmp_path), self.spec(200, 100, fingerprint="0dd"))
        with pytest.raises(StoreError, match="begun with tile_px 64; wanted 32"):
            create_or_resume(self.path(tmp_path), self.spec(200, 100, 32))
        assert digests(tmp_path) == before

    def test_overwrite_starts_again(self, tmp_path):
        with create_or_resume(self.path(tmp_path), self.spec(200, 100)) as store:
            fill(store, picture(200, 100), count=3)
        other = picture(300, 150, seed=9)
        with create_or_resume(self.path(tmp_path), self.spec(300, 150, fingerprint="0dd"), overwrite=True) as store:
            assert not store.done(0).any()
            fill(store, other)
        with open_store(self.path(tmp_path)) as store:
            self.check(store, other)

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("kind", ["file", "empty", "folder"])
    def test_what_is_not_ours_is_left_as_it_is(self, tmp_path, kind, overwrite):
        path = self.path(tmp_path)
        if kind == "folder":
            path.mkdir()
            (path / "thesis.txt").write_text("all of it")
        else:
            path.write_bytes(b"II*\0" + bytes(99) if kind == "file" else b"")
        before = digests(tmp_path)
        for attempt in (lambda: create_or_resume(path, self.spec(9, 9), overwrite=overwrite), lambda: open_store(path)):
            with pytest.raises(StoreError, match="not written by widefield"):
                attempt()
        assert digests(tmp_path) == before

    def test_a_foreign_sidecar_folder_is_left_as_it_is(self, tmp_path):
        sidecar_path(self.path(tmp_path)).mkdir()
        (sidecar_path(self.path(tmp_path)) / "thesis.txt").write_text("all of it")
        before = digests(tmp_path)
        with pytest.raises(StoreError, match="widefield did not make"):
            create_or_resume(self.path(tmp_path), self.spec(9, 9))
        assert digests(tmp_path) == before

    def test_a_missing_folder_and_a_missing_file_are_named(self, tmp_path):
        with pytest.raises(StoreError, match="nowhere is not a folder"):
            create_or_resume(tmp_path / "nowhere" / f"out{self.suffix}", self.spec(9, 9))
        with pytest.raises(StoreError, match="does not exist"):
            open_store(self.path(tmp_path))

    def test_a_folder_that_takes_no_files_is_one_clear_error(self):
        with pytest.raises(StoreError, match=r"^/proc/out\S+: "):
            create_or_resume(Path("/proc") / f"out{self.suffix}", self.spec(9, 9))

    def test_two_writers_do_not_share_a_picture(self, tmp_path):
        first = create_or_resume(self.path(tmp_path), self.spec(200, 100))
        with pytest.raises(StoreError, match=r"being written by process \d+"):
            create_or_resume(self.path(tmp_path), self.spec(200, 100))
        first.close()
        create_or_resume(self.path(tmp_path), self.spec(200, 100)).close()

    def test_a_tile_of_another_shape_type_or_place_is_a_callers_bug(self, tmp_path):
        with create_or_resume(self.path(tmp_path), self.spec(200, 100)) as store:
            with pytest.raises(ValueError, match=r"uint8 \(64, 64, 3\)"):
                store.write(0, 0, 0, np.zeros((63, 64, 3), np.uint8))
            with pytest.raises(ValueError, match="float32"):
                store.write(0, 0, 0, np.zeros((64, 64, 3), np.float32))
            with pytest.raises(IndexError, match="2 x 4 tiles"):
                store.write(0, 2, 0, np.zeros((64, 64, 3), np.uint8))

    def test_a_full_tile_at_the_edge_is_clipped(self, tmp_path):
        image = picture(64, 64)
        with create_or_resume(self.path(tmp_path), self.spec(40, 50)) as store:
            fill(store, image)
        with open_store(self.path(tmp_path)) as store:
            self.check(store, image[:50, :40])

    def test_a_damaged_tile_is_a_store_error(self, tmp_path, monkeypatch):
        with create_or_resume(self.path(tmp_path), self.spec(200, 100)) as store:
            fill(store, picture(200, 100), count=1)
            data = store.read_encoded(0, 0, 0)
            for damaged in (data[: len(data) // 2], b"", bytes(len(data) - 1)):
                monkeypatch.setattr(store, "_fetch", lambda *_, damaged=damaged: damaged)
                with pytest.raises(StoreError, match=r"tile 0,0 of level 0 in \S+ is damaged"):
                    store.read(0, 0, 0)
