"""On the trained checkpoint and photographs: exact is the untiled decode, sampled is within 45 dB of it, without seams.

Photographs are scikit-image's (public domain or CC0), in a mosaic of unlike brightness and scale.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import skimage.data
import torch
from skimage.transform import resize

import widefield
from families import ArraySource, decode_floats
from widefield.engine import EngineOptions
from widefield.sweep import SweepOptions, measure
from widefield_export.families import Decoder, Encoder

ORT = EngineOptions("ort")
CHECKPOINT = Path(__file__).parents[2] / "export" / "embedded" / "vae"


@cache
def checkpoint() -> Any:
    return diffusers.AutoencoderKL.from_pretrained(CHECKPOINT, low_cpu_mem_usage=False).eval()


@cache
def mosaic(side: int) -> np.ndarray:
    """(3, side, side) in [-1, 1]: photographs at unlike scales, dark on the left, bright on the right."""
    rng = np.random.default_rng(3)
    photographs = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    out = np.zeros((side, side, 3), np.float32)
    piece = 440  # no multiple of any tile
    for y in range(0, side, piece):
        for x in range(0, side, piece):
            photograph = photographs[rng.integers(len(photographs))]
            crop = min(photograph.shape[0], int(piece / rng.uniform(1.0, 2.5)))
            top, left = (int(rng.integers(0, n - crop + 1)) for n in photograph.shape[:2])
            part = resize(photograph[top : top + crop, left : left + crop] / 255.0, (piece, piece), order=1)
            part = part * rng.uniform(0.3, 1.0) + (0.15 if x > side // 2 else 0.0)
            out[y : y + piece, x : x + piece] = np.clip(part, 0, 1)[: side - y, : side - x]
    return np.ascontiguousarray(out.transpose(2, 0, 1) * 2 - 1)


@cache
def encoded(side: int) -> np.ndarray:
    with torch.no_grad():
        return Encoder(checkpoint()).eval()(torch.from_numpy(mosaic(side))[None])[0].numpy()


@cache
def untiled(side: int) -> np.ndarray:
    with torch.no_grad():
        return Decoder(checkpoint()).eval()(torch.from_numpy(encoded(side))[None])[0].numpy()


def to_uint8(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((x.transpose(1, 2, 0) + 1) * 127.5), 0, 255)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


def decoded_apart(z: np.ndarray, cells: int) -> np.ndarray:
    """Every tile as if it were the whole picture: what a seam is."""
    decoder = Decoder(checkpoint()).eval()
    rows = []
    with torch.no_grad():
        for y in range(0, z.shape[1], cells):
            tiles = [torch.from_numpy(z[None, :, y : y + cells, x : x + cells]) for x in range(0, z.shape[2], cells)]
            rows.append(np.concatenate([to_uint8(decoder(tile)[0].numpy()) for tile in tiles], 1))
    return np.concatenate(rows, 0)


def border_gradient(image: np.ndarray, reference: np.ndarray, borders: set[int]) -> list[float]:
    """For both axes: the mean absolute gradient across tile borders over the one across other latents' borders, each
    relative to the reference's own there, so that what the picture shows, and the decoder's period of 8, cancel."""
    found = []
    for axis in (0, 1):
        ours, theirs = (np.abs(np.diff(x, axis=axis)).mean((1 - axis, 2)) for x in (image, reference))
        places = np.arange(7, len(ours), 8)
        at = np.array([place + 1 in borders for place in places])
        ratio = [ours[p].sum() / theirs[p].sum() for p in (places[at], places[~at])]
        found.append(float(ratio[0] / ratio[1]))
    return found


def test_exact_equals_the_untiled_decode_of_the_trained_checkpoint(tmp_path):
    model = widefield.open()
    component = model.bundle.decoder
    z = encoded(520)
    source = ArraySource(z)
    summary = measure(
        model.bundle, component, source, "exact", SweepOptions(2, 1 << 29, tmp_path, EngineOptions("ort"))
    )
    result = decode_floats(model.bundle, component, source, summary, (24, 31))
    assert np.abs(result - untiled(520)).max() <= 1e-4
    encoder = model.bundle.encoder
    pixels = ArraySource(mosaic(520))
    summary = measure(model.bundle, encoder, pixels, "exact", SweepOptions(2, 1 << 29, tmp_path, ORT))
    assert np.abs(decode_floats(model.bundle, encoder, pixels, summary, (20, 31)) - z).max() <= 1e-4


def test_a_megapixel_sampled_is_close_and_its_errors_are_honest(tmp_path):
    model = widefield.open()
    z = encoded(1000)
    truth = to_uint8(untiled(1000))
    picture = model.decode(z, summary="sampled", cells=64, tile=(25, 25), engine="openvino")
    image = np.asarray(picture)
    assert psnr(image, truth) >= 45
    bf16 = np.asarray(model.decode(z, summary="sampled", cells=64, engine="openvino", precision="bf16"))
    assert psnr(bf16, truth) >= 45, "bfloat16 is offered because it holds this"
    options = SweepOptions(2, 1 << 29, tmp_path, ORT)
    exact = measure(model.bundle, model.bundle.decoder, ArraySource(z), "exact", options)
    sampled, inside, total = picture.summary(), 0, 0
    for site in model.bundle.decoder.sites:
        if site.kind == "norm":
            found, error = (sampled.moments[f"{site.result}.{name}"] for name in ("mean", "mean_error"))
            true = exact.moments[f"{site.result}.mean"]
            inside += int((np.abs(found - true) <= 3 * error).sum())
            total += len(true)
    assert inside >= 0.95 * total, f"{inside} of {total} means within three standard errors"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_megapixels_sampled_hold_45_db_and_show_no_seam():
    side, tile = 2048, 24
    model = widefield.open()
    z = encoded(side)
    truth = to_uint8(untiled(side))
    borders = {block + at for block in range(0, side, 512) for at in (192, 384, 512)} - {side}
    for seed in (0, 1, 2):
        image = np.asarray(model.decode(z, summary="sampled", seed=seed, tile=(tile, tile), engine="openvino"))
        error = np.abs(image - truth).max()
        seams = border_gradient(image.astype(float), truth, borders)
        print(f"seed {seed}: {psnr(image, truth):.1f} dB, max error {error:.0f}, seams {seams}")
        assert psnr(image, truth) >= 45 and error <= 10
        assert max(abs(s - 1) for s in seams) <= 0.01
    vae = checkpoint()
    vae.tile_sample_min_size, vae.tile_latent_min_size = 512, 64
    vae.enable_tiling()
    try:
        with torch.no_grad():
            tiled = to_uint8(Decoder(vae).eval()(torch.from_numpy(z)[None])[0].numpy())
    finally:
        vae.disable_tiling()
    seams = border_gradient(tiled, truth, set(range(384, side, 384)))
    print(f"diffusers' tiling: {psnr(tiled, truth):.1f} dB, max error {np.abs(tiled - truth).max():.0f}, seams {seams}")
    seams = border_gradient(decoded_apart(z, 64), truth, set(range(512, side, 512)))
    print(f"tiles decoded alone, side by side: seams {seams}")
    assert max(abs(s - 1) for s in seams) > 0.01, "a seam shows in this measure"
