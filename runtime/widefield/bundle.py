"""A bundle: what an export wrote, opened and checked. Plain data; no engine is touched here.

manifest.json, version 2:

    format, version        "widefield-bundle", 1; a newer version is refused
    name, family           the checkpoint's name and its autoencoder's class
    scale                  pixels a latent cell, per side
    latent_channels        channels of the latents as a pipeline hands them over
    created, source        versions that wrote it; SHA-256 of every file of the checkpoint that was read
    weights                the one file that all graphs read weights from
    dtype                  what weights are stored in: "float32", or "float16", which graphs cast; what halves
                           cannot say exactly is float32 all the same. Bundles that do not say hold float32
    attention              the graph of one block of attention, where a component has one
    files                  every file of the folder but the manifest: bytes and SHA-256
    components             decoder and encoder, each:
      input, output        names of values
      margin_cells         cells around a tile that its result depends on
      values               axes ("batch", "rows", "columns", "cells", or a length), channels, scale, margin in pixels
      sites                norm: groups, channels, eps, gamma, beta; attention: width, query; linear_attention: shape.
                           `result` names the value that the frozen site makes
      sweep                one graph a stage, twice: over `squares`, each alone with all its margins, and over `planes`,
                           tiles that read what lies around them; stage N ends by measuring site N
      stream               interior, border and certified graphs, cut at attentions; certified ones have masks and also
                           give `site.INDEX.mean`, `.m2` and `.count` of every norm, on a lattice of the core
      flops_per_cell       of the fused graphs, margins left out
      keys                 tokens that a sampled attention keeps
    and of each graph: file, inputs, outputs, parameters (frozen values, by shape), and two polynomials in the tile's
    rows and columns, [a, b, c] for a rc + b (r + c) + c: flops, and live_elements (the peak is the largest of them).
    Graphs of planes also have the margins of their inputs (their results have none) and mask_cells, the margin of masks

A bundle of a whole checkpoint has denoiser, text, schedulers and defaults too: widefield.parts describes them. A key
that a runtime may leave alone without being wrong, as these, does not raise the version.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from widefield.bundle_specs import Component, GraphSpec, SiteSpec, ValueSpec, evaluate
from widefield.errors import BadBundle
from widefield.parts import Parts, parse_parts

FORMAT = "widefield-bundle"
VERSION = 2
OLDEST_VERSION = 2
MANIFEST = "manifest.json"
__all__ = [
    "FORMAT", "MANIFEST", "VERSION", "Bundle", "Component", "GraphSpec", "SiteSpec", "ValueSpec", "evaluate",
    "open_bundle",
]  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. `verify()` hashes every file; opening checks the manifest and that the files are there."""

    path: Path
    manifest: Mapping[str, Any] = field(repr=False)
    components: Mapping[str, Component] = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    @property
    def family(self) -> str:
        return str(self.manifest["family"])

    @property
    def scale(self) -> int:
        return int(self.manifest["scale"])

    @property
    def latent_channels(self) -> int:
        return int(self.manifest["latent_channels"])

    @property
    def decoder(self) -> Component:
        return self.component("decoder")

    @property
    def encoder(self) -> Component:
        return self.component("encoder")

    def component(self, name: str) -> Component:
        """The component of that name; raises BadBundle where there is none."""
        if name not in self.components:
            raise BadBundle(
                f"{self.path} has no {name}; it holds {', '.join(self.components) or 'neither'}; export one that has it"
            )
        return self.components[name]

    @cached_property
    def parts(self) -> Parts:
        """What the bundle has beside its autoencoder: denoiser, text encoders, samplers."""
        return parse_parts(self.manifest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest's content, and so of every file's hash: the bundle's identity."""
        text = json.dumps(self.manifest, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def file(self, name: str) -> Path:
        return self.path / name

    def nbytes(self, file: str) -> int:
        """Of one of its files."""
        return int(self.manifest["files"][file]["nbytes"])

    @property
    def weights_nbytes(self) -> int:
        return int(self.manifest["files"][self.manifest["weights"]]["nbytes"])

    def weight(self, component: str, name: str) -> NDArray[np.float32]:
        """One tensor of the weights file."""
        from safetensors import SafetensorError, safe_open

        path = self.file(self.manifest["weights"])
        try:
            with safe_open(path, framework="numpy") as tensors:
                return np.asarray(tensors.get_tensor(f"{component}/{name}"), np.float32)
        except SafetensorError as cause:
            raise BadBundle(f"{path}: {cause}; the bundle is damaged; export it again") from cause

    def verify(self) -> None:
        """Hash every file against the manifest; raises BadBundle naming the first that differs."""
        for name, entry in self.manifest["files"].items():
            path = self.file(name)
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise BadBundle(
                    f"{path} has SHA-256 {found[:12]}..., the manifest says {entry['sha256'][:12]}...; "
                    "the bundle is damaged; export or copy it again"
                )


def open_bundle(path: Path | str) -> Bundle:
    """Read and check a bundle's manifest, and that every file is there with its size; hashes only on `verify()`."""
    path = Path(path)
    manifest = _read_manifest(path)
    _check_files(path, manifest)
    try:
        components = {name: _component(name, entry) for name, entry in manifest["components"].items()}
        bundle = Bundle(path, manifest, components)
        _ = bundle.name, bundle.family, bundle.scale, bundle.latent_channels, bundle.weights_nbytes, bundle.parts
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise BadBundle(f"{path / MANIFEST} lacks or garbles {cause}; export the checkpoint again") from cause
    graphs = [graph.file for component in components.values() for graph in component.graphs]
    for file in (*graphs, *bundle.parts.files):
        if file not in manifest["files"]:
            raise BadBundle(f"{path / MANIFEST} uses {file!r} and does not list it; export again")
    return bundle


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        what = "no such folder" if not path.exists() else f"{path} holds no {MANIFEST}"
        raise BadBundle(f"{path} is no bundle: {what}; make one with `widefield export CHECKPOINT -o BUNDLE`")
    try:
        manifest = json.loads(file.read_bytes())
    except ValueError as cause:
        raise BadBundle(f"{file} is not JSON ({cause}); export the checkpoint again") from cause
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BadBundle(f"{file} does not say format {FORMAT!r}; export the checkpoint with widefield")
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise BadBundle(f"{file} has version {version}, this runtime reads up to {VERSION}; update widefield")
    if version < OLDEST_VERSION:
        raise BadBundle(f"{file} has version {version}, this runtime reads from {OLDEST_VERSION} on; export again")
    return manifest


def _check_files(path: Path, manifest: dict[str, Any]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise BadBundle(f"{path / MANIFEST} lists no files; export the checkpoint again")
    for name, entry in files.items():
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or len(pure.parts) != 1:
            raise BadBundle(f"{path / MANIFEST} names {name!r}, outside its folder; do not trust this bundle")
        file = path / name
        if not file.is_file() or path.resolve() not in file.resolve().parents:
            raise BadBundle(f"{file} is missing or leads outside the bundle; copy or export the bundle again")
        if file.stat().st_size != entry.get("nbytes"):
            raise BadBundle(
                f"{file} has {file.stat().st_size} bytes, the manifest says {entry.get('nbytes')}; copy or export again"
            )


def _component(name: str, entry: Mapping[str, Any]) -> Component:
    values = {
        key: ValueSpec(tuple(v["axes"]), int(v["channels"]), v["scale"], (int(v["margin"][0]), int(v["margin"][1])))
        for key, v in entry["values"].items()
    }
    sites = tuple(
        SiteSpec(index, **{**site, "shape": tuple(site.get("shape", ()))}) for index, site in enumerate(entry["sites"])
    )
    return Component(
        name,
        str(entry["input"]),
        str(entry["output"]),
        int(entry["margin_cells"]),
        values,
        sites,
        tuple(_graph(g) for g in entry["sweep"]["squares"]),
        tuple(_graph(g) for g in entry["sweep"]["planes"]),
        tuple(_graph(g) for g in entry["stream"]["interior"]),
        tuple(_graph(g) for g in entry["stream"]["border"]),
        tuple(_graph(g) for g in entry["stream"]["certified"]),
        int(entry["flops_per_cell"]),
        int(entry.get("keys", 0)),
    )


def _graph(entry: Mapping[str, Any]) -> GraphSpec:
    return GraphSpec(
        str(entry["file"]),
        tuple(entry["inputs"]),
        tuple(entry["outputs"]),
        {key: tuple(shape) for key, shape in entry["parameters"].items()},
        tuple(entry["flops"]),
        tuple(tuple(p) for p in entry["live_elements"]),
        {value: (int(m[0]), int(m[1])) for value, m in entry["margins"].items()} if "margins" in entry else None,
        int(entry["mask_cells"]) if "mask_cells" in entry else None,
    )
