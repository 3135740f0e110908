"""What a bundle was made of: the SHA-256 of every file that was read."""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from pathlib import Path


def hashes(files: Iterable[Path], checkpoint: Path, *, known: Container[str]) -> dict[str, str]:
    """In hex, by the path within the checkpoint's folder, else by folder and name; `known` ones are left out."""
    top = checkpoint if checkpoint.is_dir() else checkpoint.parent
    found: dict[str, str] = {}
    for file in files:
        inside = file.is_relative_to(top)
        name = file.relative_to(top).as_posix() if inside else f"{file.parent.name}/{file.name}"
        if name not in known and name not in found:
            with file.open("rb") as stream:
                found[name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
