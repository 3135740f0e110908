"""Encoding tile by tile against diffusers' own untiled encode, and what is written of it."""

import json
import warnings

import numpy as np
import pytest
import torch

import widefield
from widefield.errors import BadLatents, BadRequest, OverBudget, StoreError
from widefield.geometry import Region
from widefield.images import open_image
from widefield.sinks import create_latents
from widefield_export.commands import build_bundle
from widefield_export.families import latent_affine


def autoencoder():
    """Small, with GroupNorms and an attention in the middle, as the large ones have; 4 px a latent."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16), latent_channels=4, norm_num_groups=4, layers_per_block=1,
        scaling_factor=0.3, shift_factor=0.1,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def coders(tmp_path_factory):
    """(diffusers' autoencoder, the model of its bundle)."""
    vae, folder = autoencoder(), tmp_path_factory.mktemp("encode") / "vae.wf"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build_bundle(vae, folder, name="vae", source={})
    return vae, widefield.open(folder)


def photograph(height: int, width: int) -> np.ndarray:
    """Not stationary: a bright, smooth corner, a dark, rough one."""
    rng = np.random.default_rng(height * width)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    smooth = np.stack([200 * (1 - x * y), 255 * x * (1 - y), 120 + 100 * np.sin(7 * y * x)], -1)
    return np.clip(
        smooth * (1 - 0.6 * y[..., None]) + rng.normal(size=smooth.shape) * 60 * x[..., None], 0, 255
    ).astype(np.uint8)


def untiled(vae, pixels: np.ndarray) -> np.ndarray:
    """As diffusers encodes the whole picture, as its pipelines scale it."""
    x = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    mean, std = latent_affine(vae)
    with torch.no_grad():
        return ((vae.encode(x).latent_dist.mode() - mean) / std)[0].numpy()


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("tile", [(16, 16), (24, 24), (20, 31)])
def test_an_exact_encode_is_the_untiled_one(coders, tile, engine):
    vae, model = coders
    pixels = photograph(160, 224)
    found = np.asarray(model.encode(pixels, summary="exact", tile=tile, engine=engine))
    wanted = untiled(vae, pixels)
    assert found.shape == wanted.shape == (4, 40, 56)
    assert np.abs(found - wanted).max() <= 1e-4


def test_odd_sides_are_edge_padded_to_whole_latents(coders):
    vae, model = coders
    pixels = photograph(147, 181)
    found = np.asarray(model.encode(pixels, summary="exact", tile=(16, 16), batch=2, workers=2, engine="ort"))
    padded = np.pad(pixels, ((0, 1), (0, 3), (0, 0)), mode="edge")
    assert found.shape == (4, 37, 46)
    assert np.abs(found - untiled(vae, padded)).max() <= 1e-4


@pytest.mark.parametrize("form", [".npy", ".zarr"])
def test_files_hold_what_the_array_holds_and_decode_reads_them(coders, form, tmp_path):
    _, model = coders
    pixels, path, seen = photograph(147, 181), tmp_path / f"latents{form}", []
    encoding = model.encode(pixels, tile=(20, 31), workers=2)
    encoded = encoding.save(path, progress=seen.append)
    assert encoded.shape == encoding.shape and encoded.plan.tiles == len(seen) == 4
    assert (seen[-1].done, seen[-1].px_done) == (4, 148 * 184)
    assert json.loads(json.dumps(encoded.as_dict()))["encoded_px"] == [184, 148]
    source = model.decode(path).source
    np.testing.assert_array_equal(source.read(Region(0, 0, 37, 46)), np.asarray(encoding))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_picture_that_must_be_decoded_whole_counts(coders, tmp_path):
    import imagecodecs

    path = tmp_path / "photo.png"
    path.write_bytes(imagecodecs.png_encode(photograph(1024, 1024)))
    _, model = coders
    plain = model.encode(photograph(1024, 1024)).plan()
    whole = model.encode(path).plan()
    assert whole.peak_nbytes() - plain.peak_nbytes() == 3 << 20
    with pytest.raises(OverBudget) as refused:
        model.encode(path, memory="1MiB").plan()
    enough = model.encode(path, memory_nbytes=refused.value.smallest_nbytes).plan()
    assert enough.peak_nbytes() <= refused.value.smallest_nbytes


@pytest.mark.parametrize("form", [".npy", ".zarr"])
def test_what_is_there_is_kept_unless_it_may_be_replaced(coders, form, tmp_path):
    _, model = coders
    pixels, path = photograph(64, 64), tmp_path / f"latents{form}"
    model.encode(pixels).save(path)
    before = model.decode(path).source.digest()
    with pytest.raises(StoreError, match="exists; wanted a new path"):
        model.encode(pixels[::-1].copy()).save(path)
    assert model.decode(path).source.digest() == before
    model.encode(pixels[::-1].copy(), overwrite=True).save(path)
    assert model.decode(path).source.digest() != before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_others_folders_are_never_replaced(coders, tmp_path):
    _, model = coders
    path = tmp_path / "mine.zarr"
    path.mkdir()
    (path / "diary.txt").write_text("dear diary")
    with pytest.raises(StoreError, match="left as it is"):
        model.encode(photograph(64, 64), overwrite=True).save(path)
    assert (path / "diary.txt").read_text() == "dear diary"


@pytest.mark.parametrize("form", [".npy", ".zarr"])
def test_a_run_that_fails_leaves_what_was_there(form, tmp_path):
    path = tmp_path / f"latents{form}"
    with (
        pytest.raises(ZeroDivisionError),
        create_latents(path, (4, 40, 40), (16, 16), {}, overwrite=False) as sink,
    ):
        sink.write(Region(0, 0, 16, 16), np.zeros((4, 16, 16), np.float32))
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_bad_requests_are_said_before_anything_is_made(coders, tmp_path):
    _, model = coders
    pixels = photograph(64, 64)
    with pytest.raises(StoreError, match=r"no latents are called '\.pt'"):
        model.encode(pixels).save(tmp_path / "latents.pt")
    with pytest.raises(StoreError, match="is not a folder"):
        model.encode(pixels).save(tmp_path / "nowhere" / "latents.npy")
    with pytest.raises(BadRequest, match="no engine 'magic'"):
        model.encode(pixels, engine="magic").save(tmp_path / "latents.npy")
    with pytest.raises(BadLatents, match="float32"):
        model.encode(pixels.astype(np.float32))
    assert not list(tmp_path.iterdir())


def test_an_array_is_opened_as_it_is():
    pixels = photograph(8, 9)
    np.testing.assert_array_equal(open_image(pixels).read(Region(0, 0, 8, 9)), pixels)
