"""A C2PA reader that is not ours finds both signatures, and that something was changed."""

import io
import json
import sys

import pytest

from cli.runner import run
from provenance.certificates import KEYS, make_signer
from store.pictures import fill, picture
from widefield.errors import BadRequest, MissingBackend
from widefield.provenance.signing import read_signature, sign_picture
from widefield.provenance.verify import verify
from widefield.store import StoreSpec, create_or_resume, open_store
from widefield.store.hashes import provenance_path
from widefield.store.provenance import ALTERED, SCHEME

c2pa = pytest.importorskip("c2pa")
ABOUT = {"software": "widefield 9.9", "bundle": "c0ffee", "digital_source_type": ALTERED}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sea.tif"
    with create_or_resume(path, StoreSpec(1301, 437, "5eed", codec="jpeg", tile_px=64, metadata=ABOUT)) as store:
        fill(store, picture(1301, 437))
    return path


def read(form: str, data: bytes, signature: bytes | None = None) -> tuple[str, list[str], dict]:
    """(state, problems, the active manifest), as c2pa's own reader says."""
    document = json.loads(c2pa.Reader(form, io.BytesIO(data), signature).json())
    codes = [status["code"] for status in document.get("validation_status", [])]
    return document["validation_state"], codes, document["manifests"][document["active_manifest"]]


def assertion(manifest: dict, label: str) -> dict:
    (found,) = (entry["data"] for entry in manifest["assertions"] if entry["label"].startswith(label))
    return found


def test_both_signatures_are_read_by_others(path, tmp_path):
    sign_picture(path, *make_signer(tmp_path))
    folder = provenance_path(path)
    manifest, signature = (folder / "manifest.json").read_bytes(), (folder / "manifest.json.c2pa").read_bytes()
    preview = (folder / "preview.jpg").read_bytes()
    for form, data, beside in (("application/json", manifest, signature), ("image/jpeg", preview, None)):
        state, problems, active = read(form, data, beside)
        assert (state, problems) == ("Valid", ["signingCredential.untrusted"])  # nobody has heard of the certificate
        (action,) = assertion(active, "c2pa.actions")["actions"]
        assert action["action"] == "c2pa.created" and action["digitalSourceType"] == SCHEME + ALTERED
        said = assertion(active, "org.widefield.picture")
        assert said["sha256"] == json.loads(manifest)["sha256"] and said["bundle"] == "c0ffee"
        assert active["signature_info"]["issuer"] == "Tests of widefield"


def test_the_preview_is_a_picture_with_its_origin_in_it(path, tmp_path):
    import PIL.Image

    sign_picture(path, *make_signer(tmp_path))
    with PIL.Image.open(provenance_path(path) / "preview.jpg") as image, open_store(path) as store:
        assert image.size == (store.levels[1].width_px, store.levels[1].height_px) == (651, 219)
        assert ALTERED in image.info["xmp"].decode()


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind_sign(path, tmp_path, kind):
    sign_picture(path, *make_signer(tmp_path, kind))
    found = verify(path)
    assert found.good and found.signature.valid and not found.signature.trusted


def test_a_manifest_that_was_changed_and_made_to_agree_is_found(path, tmp_path):
    sign_picture(path, *make_signer(tmp_path))
    other = tmp_path / "other.tif"
    with create_or_resume(other, StoreSpec(1301, 437, "5eed", codec="jpeg", tile_px=64, metadata=ABOUT)) as store:
        fill(store, picture(1301, 437, seed=8))
    for name in ("manifest.json", "tiles.sha256"):  # all agrees, but for the signature
        (provenance_path(path) / name).write_bytes((provenance_path(other) / name).read_bytes())
    path.write_bytes(other.read_bytes())
    found = verify(path)
    assert not found.wrong and not found.good and "assertion.dataHash.mismatch" in found.signature.problems


def test_a_changed_preview_is_found(path, tmp_path):
    sign_picture(path, *make_signer(tmp_path))
    data = bytearray((provenance_path(path) / "preview.jpg").read_bytes())
    data[-100] ^= 1
    assert "assertion.dataHash.mismatch" in read("image/jpeg", bytes(data))[1]


def test_what_cannot_sign_is_said_before_anything_is_made(path, tmp_path):
    cert, key = make_signer(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(BadRequest, match="wanted a private key in PEM"):
        sign_picture(path, cert, cert)
    with pytest.raises(BadRequest, match=r"no\.pem: No such file"):
        sign_picture(path, tmp_path / "no.pem", key)
    assert read_signature(path) is None


def test_the_commands_sign_and_tell(path, tmp_path, capsys, monkeypatch):
    cert, key = make_signer(tmp_path)
    source, out = tmp_path / "sea.zarr", tmp_path / "out.tif"
    with create_or_resume(source, StoreSpec(300, 200, "5eed", codec="auto", tile_px=64, metadata=ABOUT)) as store:
        fill(store, picture(300, 200))
    command = ("finalize", source, "-o", out, "--quiet", "--sign-cert", cert)
    assert "belong together" in run(capsys, *command).fault() and not out.exists()
    assert run(capsys, *command, "--sign-key", key).status == 0
    assert "signed by Tests of widefield, whose certificate is on no trust list" in run(capsys, "verify", out).out
    assert run(capsys, "verify", out, "--json").json()["signature"]["valid"] is True
    assert "not signed" in run(capsys, "verify", path).out
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert "signed, and not checked" in run(capsys, "verify", out).out
    with pytest.raises(MissingBackend, match=r"pip install 'widefield\[provenance\]'"):
        sign_picture(path, cert, key)
