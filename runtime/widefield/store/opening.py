"""Which form a path asks for, and what may be done with what is already there."""

from __future__ import annotations

from pathlib import Path

from widefield.errors import StoreError
from widefield.store.base import Store
from widefield.store.dzi import DziStore
from widefield.store.faults import explained
from widefield.store.hashes import forget_provenance
from widefield.store.omezarr import ZarrStore
from widefield.store.png import PngStore
from widefield.store.sidecar import Sidecar
from widefield.store.spec import StoreSpec, agree, checked
from widefield.store.tiff import TiffStore


def _form(path: Path) -> type[Store]:
    match path.suffix.lower():
        case ".tif" | ".tiff":
            return TiffStore
        case ".zarr":
            return ZarrStore
        case ".dzi":
            return DziStore
        case ".png":
            return PngStore
        case suffix:
            raise StoreError(
                f"{path}: no form is called {suffix or 'nothing'!r}; there are .tif, .zarr, .dzi and .png; "
                "end the path in one of these"
            )


def default_codec(path: Path, *, lossless: bool = False) -> str:
    """The codec that the form of `path` uses when nobody chooses. StoreError for a suffix without a form."""
    form = _form(path)
    return form.lossless if lossless else form.codecs[0]


def create_or_resume(path: Path, spec: StoreSpec, *, overwrite: bool = False) -> Store:
    """Open `path` to write the picture `spec` to; the suffix chooses the form.

    What is there with the same fingerprint is resumed; another picture of ours is replaced when `overwrite`, or when no
    tile of it was ever made (a run that failed at its first tile must not stand in the way of the mended one).

    StoreError for another fingerprint, for files that we did not write (they are never touched), for a folder that is
    missing or not to be written, for a codec or size that the form does not take, and when another process is writing
    the picture.
    """
    path = Path(path)
    form = _form(path)
    spec = checked(spec, path, form.codecs, form.lossless)
    form.check(spec, path)
    if not path.parent.is_dir():
        raise StoreError(f"{path.parent} is not a folder; wanted one to put {path.name} in; create it first")
    with explained(path):
        found = form.found(path)
        if found is not None and not overwrite:
            overwrite = found.fingerprint != spec.fingerprint and _is_blank(form(path, found, None))
            if not overwrite:
                agree(found, spec, path)
        sidecar = Sidecar(path)
        try:
            return _held(form, path, spec, sidecar, overwrite=overwrite)
        except BaseException:
            sidecar.release()
            raise


def _held(form: type[Store], path: Path, spec: StoreSpec, sidecar: Sidecar, *, overwrite: bool) -> Store:
    """The rest of `create_or_resume`, with the sidecar's lock held: nobody else changes what is found."""
    found = form.found(path)
    if found is not None and overwrite:
        form.delete(path, sidecar)
        forget_provenance(path)
        found = None
    elif found is not None:
        agree(found, spec, path)
    sidecar.claim(found or spec, fresh=found is None)
    if found is None:
        form.create(path, spec, sidecar)
    return form(path, found or spec, sidecar)


def _is_blank(store: Store) -> bool:
    """Whether no tile of any level was made."""
    with store:
        return not any(store.done(level).any() for level in range(len(store.levels)))


def open_store(path: Path) -> Store:
    """Open `path` for reading, finished or not, written by another process or not. StoreError when it is not ours."""
    path = Path(path)
    form = _form(path)
    with explained(path):
        found = form.found(path)
        if found is None:
            raise StoreError(f"{path} does not exist; wanted a picture to read; check the path")
        return form(path, found, None)
