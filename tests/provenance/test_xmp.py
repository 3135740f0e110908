"""What software that is not ours reads of a picture's origin."""

import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import pyvips
import tifffile

import widefield
from cli.runner import run
from store.pictures import fill, picture
from widefield.drawn import DrawnJob
from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.options import RunOptions
from widefield.save import store_spec
from widefield.sinks import create_latents
from widefield.store import StoreSpec, create_or_resume
from widefield.store.provenance import ALTERED, SCHEME, parse_source_type, xmp_packet

ODD = 'a "harbour" & <b>boats</b>\x00\x1b at dawn ü'
ABOUT = {
    "software": "widefield 9.9", "bundle_name": "tiny", "bundle": "c0ffee", "digital_source_type": ALTERED,
    "drawn_seed": "41", "prompt": ODD,
}  # fmt: skip


def properties(packet: bytes) -> dict[str, str]:
    """The attributes of an XMP packet's description, by their local names."""
    root = ElementTree.parse(io.BytesIO(packet)).getroot()
    (description,) = root.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    return {name.rpartition("}")[2]: value for name, value in description.attrib.items()}


WANTED = {
    "about": "", "CreatorTool": "widefield 9.9", "DigitalSourceType": SCHEME + ALTERED, "AISystemUsed": "tiny",
    "AIPromptInformation": ODD.replace("\x00", "\ufffd").replace("\x1b", "\ufffd"), "BundleSHA256": "c0ffee",
    "Seed": "41",
}  # fmt: skip


def tag_700(path: Path) -> bytes:
    with tifffile.TiffFile(path) as file:
        return bytes(file.pages[0].tags[700].value)


def of_tif(path: Path) -> list[bytes]:
    return [tag_700(path), pyvips.Image.new_from_file(str(path)).get("xmp-data").rstrip(b"\0")]


def of_png(path: Path) -> list[bytes]:
    with PIL.Image.open(path) as image:
        return [image.info["XML:com.adobe.xmp"].encode(), pyvips.Image.new_from_file(str(path)).get("xmp-data")]


def of_dzi(path: Path) -> list[bytes]:
    return [(path.with_name("out_files") / "picture.xmp").read_bytes()]


@pytest.mark.parametrize(("suffix", "read"), [(".tif", of_tif), (".png", of_png), (".dzi", of_dzi)])
def test_others_read_where_a_picture_came_from(tmp_path, suffix, read):
    path = tmp_path / f"out{suffix}"
    spec = StoreSpec(200, 130, "5eed", codec="auto", tile_px=64, metadata=ABOUT)
    with create_or_resume(path, spec) as store:
        fill(store, picture(200, 130))
    for packet in read(path):
        assert properties(packet) == WANTED


def test_zarr_says_it_in_its_attributes(tmp_path):
    import zarr

    spec = StoreSpec(200, 130, "5eed", codec="auto", tile_px=64, metadata=ABOUT)
    with create_or_resume(tmp_path / "out.zarr", spec) as store:
        fill(store, picture(200, 130))
    attributes = zarr.open_group(tmp_path / "out.zarr", mode="r").attrs
    assert attributes["digitalSourceType"] == SCHEME + ALTERED and attributes["software"] == "Widefield"
    assert attributes["widefield"]["metadata"]["bundle"] == "c0ffee"


def test_a_picture_that_says_nothing_was_drawn_by_a_model():
    assert properties(xmp_packet({"bundle": "c0ffee"})) == {
        "about": "", "CreatorTool": "Widefield", "DigitalSourceType": SCHEME + "trainedAlgorithmicMedia",
    }  # fmt: skip


def test_a_source_type_is_taken_by_its_name_and_by_its_uri():
    assert parse_source_type(SCHEME + ALTERED) == parse_source_type(ALTERED) == ALTERED
    with pytest.raises(BadRequest, match=r"'digitalCapture' is no digital source type.*take one of trained"):
        parse_source_type("digitalCapture")  # no camera's picture came out of a model


def said_of(job, options: RunOptions) -> dict[str, str]:
    """What a picture would say; nothing is computed."""
    spec = store_spec(job, Path("out.tif"), job.plan(options), options)
    return properties(xmp_packet(spec.metadata))


def test_a_drawn_picture_says_so_and_its_prompt_when_asked():
    picture = widefield.open().generate("the sea", size=(128, 128), seed=5, engine="ort")
    job = DrawnJob.beside(Path("out.tif"), picture.generation, picture.options)
    said = said_of(job, picture.options)
    assert said["DigitalSourceType"] == SCHEME + "trainedAlgorithmicMedia" and said["Seed"] == "5"
    assert said["BundleSHA256"] == picture.generation.bundle.digest and "AIPromptInformation" not in said
    assert "the sea" not in str(store_spec(job, Path("out.tif"), job.plan(picture.options), picture.options))
    assert said_of(job, replace(picture.options, record_prompt=True))["AIPromptInformation"] == "the sea"


def test_an_enlarged_photograph_is_composite():
    enlarged = widefield.open().upscale(picture(72, 64), 2, engine="ort")
    said = said_of(DrawnJob.beside(Path("out.tif"), enlarged.generation, enlarged.options), enlarged.options)
    assert said["DigitalSourceType"] == SCHEME + ALTERED


def test_decoded_latents_are_what_they_came_from(tmp_path):
    model = widefield.open()
    shape = (model.bundle.latent_channels, 16, 16)
    for name, about in (("ours", {"image": "5eed"}), ("drawn", {"digest": "5eed"})):
        with create_latents(tmp_path / f"{name}.zarr", shape, (16, 16), about, overwrite=False) as sink:
            sink.write(Region(0, 0, 16, 16), np.zeros(shape, np.float32))
    np.save(tmp_path / "unknown.npy", np.zeros(shape, np.float32))
    for name, more, wanted in (
        ("ours.zarr", {}, ALTERED),
        ("drawn.zarr", {}, "trainedAlgorithmicMedia"),
        ("unknown.npy", {}, "trainedAlgorithmicMedia"),
        ("unknown.npy", {"source_type": "algorithmicallyEnhanced"}, "algorithmicallyEnhanced"),
    ):
        decoded = model.decode(tmp_path / name, engine="ort", **more)
        assert said_of(decoded.job, decoded.options)["DigitalSourceType"] == SCHEME + wanted


def test_the_command_records_what_it_is_told(tmp_path, capsys):
    shape = (widefield.open().bundle.latent_channels, 16, 16)
    np.save(tmp_path / "latents.npy", np.zeros(shape, np.float32))
    out = tmp_path / "out.tif"
    command = ("decode", tmp_path / "latents.npy", "-o", out, "--engine", "ort", "--quiet", "--source-type")
    assert "no digital source type" in run(capsys, *command, "digitalCapture").fault()
    assert run(capsys, *command, ALTERED).status == 0
    assert properties(tag_700(out))["DigitalSourceType"] == SCHEME + ALTERED
    manifest = json.loads((tmp_path / "out.tif.provenance" / "manifest.json").read_bytes())
    assert manifest["digitalSourceType"] == SCHEME + ALTERED
