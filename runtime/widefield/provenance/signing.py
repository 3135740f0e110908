"""Who says that a picture is what its manifest says: C2PA, of the manifest and of a small preview.

    manifest.json.c2pa    the signature, beside the manifest: C2PA's readers hold all that they hash in memory, and in a
                          pyramid it cannot be embedded. The manifest is small, and every tile's hash hangs from it.
    preview.jpg           at most PREVIEW_PX a side, with the XMP packet and a signature of its own inside: what people
                          pass on, and what other software checks as it does any picture

Source: C2PA technical specification 2; c2pa-python, which does the signing. A time stamp is not asked for: it would be
a service's word, over a network.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from widefield import __version__
from widefield.errors import BadRequest, MissingBackend, StoreError
from widefield.store import Store, open_store
from widefield.store import codecs as store_codecs
from widefield.store.box import Pixels
from widefield.store.faults import explained, replace_file
from widefield.store.hashes import MANIFEST, PREVIEW, SIGNATURE, provenance_path
from widefield.store.manifest import read_manifest
from widefield.store.provenance import SOFTWARE, source_type, xmp_packet

PREVIEW_PX, PREVIEW_QUALITY = 1024, 90
JSON, JPEG = "application/json", "image/jpeg"
UNTRUSTED = "signingCredential.untrusted"  # nobody's list has the certificate: its holder is as good as its word
_XMP = b"http://ns.adobe.com/xap/1.0/\0"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a C2PA reader finds: `valid`, whether what was signed is as it was and the certificate in order; `trusted`,
    whether a trust list has it; `issuer` its organisation; `problems` in C2PA's words."""

    valid: bool
    trusted: bool
    issuer: str
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "valid": self.valid,
            "trusted": self.trusted,
            "issuer": self.issuer,
            "problems": list(self.problems),
        }


class Signer:
    """A certificate (then those above it) and its private key, both PEM. BadRequest for what does not fit."""

    def __init__(self, cert: Path, key: Path) -> None:
        c2pa = _c2pa()
        self._parts = _read(cert), _read(key)
        algorithm = _algorithm(self._parts[1], key)
        info = c2pa.C2paSignerInfo(
            alg=algorithm.encode(), sign_cert=self._parts[0], private_key=self._parts[1], ta_url=None
        )
        try:
            self._signer = c2pa.Signer.from_info(info)
        except c2pa.C2paError as error:
            raise BadRequest(f"{cert} and {key}: {error}; wanted a certificate chain and its private key") from None

    def sign(self, data: bytes, form: str, about: dict[str, Any], *, embed: bool) -> bytes:
        """The signature of `data`, or, embedded, `data` with it."""
        c2pa = _c2pa()
        builder = c2pa.Builder(json.dumps(about))
        if not embed:
            builder.set_no_embed()
        out = io.BytesIO()
        try:
            signature: bytes = builder.sign(self._signer, form, io.BytesIO(data), out)
        except c2pa.C2paError as error:
            raise BadRequest(f"signing failed: {error}; wanted a certificate for signing, and its key") from None
        return out.getvalue() if embed else signature


def sign_picture(path: Path, cert: Path, key: Path) -> None:
    """Sign a finished picture's manifest, and a preview of it. What was signed before is signed again.

    MissingBackend without c2pa; BadRequest for a certificate or a key that cannot sign; StoreError without a manifest.
    """
    signer = Signer(cert, key)
    folder = provenance_path(path)
    manifest = read_manifest(folder / MANIFEST)
    with explained(path), open_store(path) as store:
        about = _about(store, manifest.root, "manifest.json")
        signature = signer.sign((folder / MANIFEST).read_bytes(), JSON, about, embed=False)
        replace_file(folder / SIGNATURE, signature, folder / f"{SIGNATURE}.part")
        small = _with_xmp(_preview(store), xmp_packet(store.spec.metadata))
        signed = signer.sign(small, JPEG, _about(store, manifest.root, "preview.jpg"), embed=True)
        replace_file(folder / PREVIEW, signed, folder / f"{PREVIEW}.part")


def read_signature(path: Path) -> Signature | None:
    """Of a picture's manifest; None where nobody signed it. MissingBackend without c2pa."""
    folder = provenance_path(path)
    file = folder / SIGNATURE
    if not file.is_file():
        return None
    return _found(JSON, (folder / MANIFEST).read_bytes(), file.read_bytes())


def _found(form: str, data: bytes, signature: bytes | None) -> Signature:
    c2pa = _c2pa()
    try:
        reader = c2pa.Reader(form, io.BytesIO(data), signature)
        document = json.loads(reader.json())
    except c2pa.C2paError as error:
        return Signature(False, False, "", (str(error),))
    problems = tuple(str(status.get("code")) for status in document.get("validation_status", []))
    active = document["manifests"][document["active_manifest"]]
    issuer = str((active.get("signature_info") or {}).get("issuer", ""))
    valid = document.get("validation_state") in ("Valid", "Trusted")
    return Signature(valid, valid and UNTRUSTED not in problems, issuer, problems)


def _about(store: Store, root: str, title: str) -> dict[str, Any]:
    """A C2PA manifest's definition."""
    kind, agent = source_type(store.spec.metadata), {"name": SOFTWARE, "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": kind, "softwareAgent": agent}
    picture = {
        "sha256": root,
        "width_px": store.spec.width_px,
        "height_px": store.spec.height_px,
        "bundle": store.spec.metadata.get("bundle", ""),
    }
    return {
        "claim_generator_info": [agent],
        "title": title,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": "org.widefield.picture", "data": picture},
        ],
    }


def _preview(store: Store) -> bytes:
    """A level, at most PREVIEW_PX a side where there is one, as a JPEG."""
    fitting = [k for k, it in enumerate(store.levels) if max(it.width_px, it.height_px) <= PREVIEW_PX]
    level = fitting[0] if fitting else len(store.levels) - 1
    it, tile = store.levels[level], store.spec.tile_px
    pixels: Pixels = np.empty((it.height_px, it.width_px, 3), np.uint8)
    for row in range(it.rows):
        for column in range(it.columns):
            y, x = row * tile, column * tile
            pixels[y : y + tile, x : x + tile] = store.read(level, row, column)
    step = -(-max(pixels.shape[:2]) // (2 * PREVIEW_PX))  # a .png has no smaller levels
    return store_codecs.encode("jpeg", np.ascontiguousarray(pixels[::step, ::step]), PREVIEW_QUALITY)


def _with_xmp(jpeg: bytes, packet: bytes) -> bytes:
    """A JPEG with an XMP packet behind its first marker (APP1; XMP specification part 3)."""
    segment = _XMP + packet
    return jpeg[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + jpeg[2:]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}; wanted a PEM file; check the path") from None


def _algorithm(key: bytes, path: Path) -> str:
    """C2PA's name for how a key signs."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ModuleNotFoundError as cause:
        raise _missing("cryptography") from cause
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:  # no PEM, or one with a password
        raise BadRequest(f"{path}: {error}; wanted a private key in PEM, without a password") from None
    match private:
        case ec.EllipticCurvePrivateKey():
            return {256: "es256", 384: "es384", 521: "es512"}.get(private.key_size, "es256")
        case rsa.RSAPrivateKey():
            return "ps256"
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case _:
            raise BadRequest(f"{path} holds a key that C2PA does not sign with; wanted ECDSA, RSA or Ed25519")


def _c2pa() -> Any:
    try:
        import c2pa
    except ModuleNotFoundError as cause:
        raise _missing("c2pa-python") from cause
    return c2pa


def _missing(what: str) -> MissingBackend:
    return MissingBackend(f"signatures need {what}; pip install 'widefield[provenance]'")


def check_signer(cert: Path | None, key: Path | None) -> None:
    """Before a run that shall sign at its end: BadRequest where it could not."""
    if (cert is None) != (key is None):
        raise BadRequest("--sign-cert and --sign-key belong together; wanted both or none; name the other one")
    if cert is not None and key is not None:
        Signer(cert, key)


def sign_finished(path: Path, cert: Path | None, key: Path | None) -> None:
    """Sign where somebody asked for it and nobody has yet."""
    if cert is not None and key is not None and not (provenance_path(path) / SIGNATURE).is_file():
        try:
            sign_picture(path, cert, key)
        except StoreError:
            if not (provenance_path(path) / SIGNATURE).is_file():  # another worker may have
                raise
