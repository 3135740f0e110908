"""`widefield inspect`: what is in a bundle, or how far a picture is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from widefield.commands import arguments
from widefield.commands.about_parts import abilities, about_generation, rows_of
from widefield.commands.output import print_json, show_nbytes
from widefield.errors import BadRequest

if TYPE_CHECKING:
    from widefield.bundle import Bundle, Component
    from widefield.store import Store

PICTURES = (".tif", ".tiff", ".zarr", ".dzi", ".png")


@click.command("inspect", cls=arguments.Command, short_help="Say what is in a bundle or a picture.")
@click.argument("path", required=False, type=arguments.PATH, metavar="[BUNDLE | PICTURE]")
@arguments.bundle
@arguments.option("--verify", is_flag=True, section="Files", help="Hash every file of a bundle against its manifest.")
@arguments.as_json
def inspect_path(path: Path | None, bundle: Path | None, verify: bool, as_json: bool) -> None:
    """Say what is in a bundle, or what a picture holds and how many of its tiles are there, of a .zarr at s3:// too.

    \b
    widefield inspect vae.wf --verify
    widefield inspect picture.tif
    """
    from widefield.cluster.place import remote_url

    path = arguments.one_bundle(path, bundle)
    far = path is not None and remote_url(path) is not None
    if path is not None and not far and not path.exists():
        raise BadRequest(f"{path} does not exist; wanted a bundle or a picture; check the path")
    picture = far or (path is not None and path.suffix.lower() in PICTURES and not (path / "manifest.json").is_file())
    if picture and verify:
        raise BadRequest(f"{path} is a picture; --verify wants a bundle; leave it out")
    about = _about_picture(path) if path is not None and picture else _about_bundle(path, verify=verify)
    if as_json:
        print_json(about)
    else:
        _tell(about)


def _about_bundle(path: Path | None, *, verify: bool) -> dict[str, Any]:
    bundle = arguments.open_model(path).bundle
    if verify:
        bundle.verify()
    return {
        "kind": "bundle",
        "path": str(bundle.path),
        "name": bundle.name,
        "family": bundle.family,
        "scale": bundle.scale,
        "latent_channels": bundle.latent_channels,
        "version": bundle.manifest["version"],
        "digest": bundle.digest,
        "verified": verify,
        "weights_nbytes": bundle.weights_nbytes,
        "dtype": str(bundle.manifest.get("dtype", "float32")),  # older ones do not say
        "files": len(bundle.manifest["files"]),
        "files_nbytes": sum(int(entry["nbytes"]) for entry in bundle.manifest["files"].values()),
        "created": dict(bundle.manifest.get("created", {})),
        "source": dict(bundle.manifest.get("source", {})),
        "can": abilities(bundle),
        "components": {name: _about_component(bundle, c) for name, c in bundle.components.items()},
        "generation": about_generation(bundle),
    }


def _about_component(bundle: Bundle, component: Component) -> dict[str, Any]:
    sites = [site.kind for site in component.sites]
    return {
        "margin_cells": component.margin_cells,
        "sites": {kind: sites.count(kind) for kind in dict.fromkeys(sites)},
        "stages": len(component.sites) + 1,
        "flops_per_latent": component.flops_per_cell,
        "attention_keys": component.keys,
        "input_channels": component.input_channels,
        "output_channels": component.output_channels,
    }


def _about_picture(path: Path) -> dict[str, Any]:
    from widefield.cluster.far import open_picture
    from widefield.cluster.place import remote_url

    with open_picture(path) as store:
        levels = [_about_level(store, level) for level in range(len(store.levels))]
        spec = store.spec
        return {
            "kind": "picture",
            "path": remote_url(path) or str(path),
            "size_px": [spec.width_px, spec.height_px],
            "codec": spec.codec,
            "quality": spec.quality if spec.codec == "jpeg" else None,
            "tile_px": spec.tile_px,
            "tiles_done": sum(level["tiles_done"] for level in levels),
            "tiles": sum(level["tiles"] for level in levels),
            "complete": all(level["tiles_done"] == level["tiles"] for level in levels),
            "fingerprint": spec.fingerprint,
            "metadata": dict(spec.metadata),
            "levels": levels,
        }


def _about_level(store: Store, level: int) -> dict[str, Any]:
    it, done = store.levels[level], store.done(level)
    return {"size_px": [it.width_px, it.height_px], "tiles": int(done.size), "tiles_done": int(done.sum())}


def _tell(about: dict[str, Any]) -> None:
    """Name and value, a line each; what is nested is said in one line."""
    rows = list(_rows(about))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in about.items():
        match name, value:
            case ("components", dict()):
                rows += [(component, _line(entry)) for component, entry in value.items()]
            case ("generation", dict()):
                rows += rows_of(value)
            case ("can", list()):
                rows.append((name, ", ".join(value) or "nothing by itself"))
            case ("levels", list()):
                rows += [(f"level {n}", _level_line(level)) for n, level in enumerate(value)]
            case ("metadata" | "source" | "created", dict()):
                rows += [(f"{name}: {key}", str(entry)) for key, entry in value.items()]
            case (_, None):
                pass
            case _:
                rows.append((_words(name), _value(name, value)))
    return rows


def _value(name: str, value: Any) -> str:
    if name.endswith("_nbytes"):
        return show_nbytes(value)
    if name == "size_px":
        return f"{value[0]} x {value[1]} px"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _words(name: str) -> str:
    return name.removesuffix("_nbytes").removesuffix("_px").replace("_", " ")


def _level_line(level: dict[str, Any]) -> str:
    return f"{_value('size_px', level['size_px'])}, {level['tiles_done']} of {level['tiles']} tiles"


def _line(component: dict[str, Any]) -> str:
    sites = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in component["sites"].items()) or "none"
    keys = f", {component['attention_keys']} keys of a sampled attention" if component["attention_keys"] else ""
    return (
        f"{component['input_channels']} to {component['output_channels']} channels, margin "
        f"{component['margin_cells']} latents, sites: {sites}{keys}, "
        f"{component['flops_per_latent'] / 1e6:.3g} MFLOP a latent"
    )
