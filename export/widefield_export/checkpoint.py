"""Checkpoints: a folder or a file in, a diffusers autoencoder out. Nothing is downloaded, and no pickle is opened.

    pipeline folder      model_index.json names the class; the autoencoder is in vae/
    autoencoder folder   config.json with _class_name, and diffusion_pytorch_model.safetensors, whole, sharded or .fp16
    one .safetensors     an autoencoder, or a full checkpoint that contains one: see configs/ for which are known

The weights of a folder may have LDM's names too, so a published file and a config.json beside it make a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from widefield.errors import BadCheckpoint, first_line
from widefield_export.configs import FOREIGN, KNOWN, PUBLISHED, WITNESSES, Known
from widefield_export.configs.header import FLOATS, Stored, read_header, refuse_pickle
from widefield_export.configs.layout import COUNTERS, Shapes, arrange
from widefield_export.empty import build
from widefield_export.families import FAMILIES

_PASSING = ("_diffusers_version", "_name_or_path")  # of a config: who wrote it, and where
_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True, slots=True, eq=False)
class Autoencoder:
    """An autoencoder that is ready to export.

    `vae`: the diffusers module, in float32, evaluating, without gradients. `family`: its class, one of
    families.FAMILIES. `config`: with every default, as JSON would have it. `source_files`: the SHA-256, in hex, of
    every file that was read, by its path within the checkpoint.
    """

    vae: Any
    family: str
    config: dict[str, Any]
    source_files: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a checkpoint turned out to be, before any weight is read."""

    family: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    files: tuple[Path, ...]


def load_autoencoder(path: Path) -> Autoencoder:
    """Load the autoencoder of a checkpoint. Reads every byte of its files once, to hash them.

    BadCheckpoint, in one line, for a missing path, a pickle, a damaged or truncated file, weights that are not finite
    or do not fit their config, an unknown class, and a file that could be of more than one family.
    """
    path = Path(path)
    if not path.exists():
        raise BadCheckpoint(f"{path} does not exist; wanted a diffusers folder or a .safetensors file; check the path")
    parts = _folder(path) if path.is_dir() else _single_file(path)
    vae = build("diffusers", parts.family, parts.config, path)
    wanted = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    places, problems = arrange(_shapes(parts.tensors), wanted)
    if problems:
        raise BadCheckpoint(
            f"{path} has {some(problems)}; wanted the {len(wanted)} tensors of its config, {parts.family}; "
            "take config and weights from the same model"
        )
    state = _read({name: parts.tensors[place] for name, place in places.items()}, wanted)
    for name in wanted.keys() - state.keys():  # arrange lets only counters be missing
        state[name] = torch.zeros(wanted[name], dtype=torch.int64)
    vae.load_state_dict(state, strict=True, assign=True)
    vae.eval().requires_grad_(False)
    top = path if path.is_dir() else path.parent
    hashes = {file.relative_to(top).as_posix(): _sha256(file) for file in parts.files}
    config = {name: value for name, value in json.loads(vae.to_json_string()).items() if name not in _PASSING}
    return Autoencoder(vae, parts.family, config, hashes)


def _folder(path: Path) -> _Parts:
    index = path / "model_index.json"
    if not index.is_file():
        return _autoencoder_folder(path, ())
    components = read_json(index)
    entry = components.get("vae")
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)):
        names = ", ".join(name for name in components if not name.startswith("_")) or "nothing"
        raise BadCheckpoint(f"{index} lists {names}; wanted a component vae; give the autoencoder's own folder")
    parts = _autoencoder_folder(path / "vae", (index,))
    if parts.family != entry[1]:
        raise BadCheckpoint(
            f"{index} says that vae is {entry[1]}, its config.json {parts.family}; wanted one class; mend either"
        )
    return parts


def _autoencoder_folder(path: Path, read: tuple[Path, ...]) -> _Parts:
    config_file = path / "config.json"
    if not config_file.is_file():
        raise BadCheckpoint(_no_config(path))
    config = read_json(config_file)
    family = config.pop("_class_name", None)
    if family not in FAMILIES:
        raise BadCheckpoint(
            f"{config_file} has class {family}; wanted one of {', '.join(FAMILIES)}; export one of these"
        )
    more, weights = weight_files(path, _WEIGHTS)
    tensors: dict[str, Stored] = {}
    for file in weights:
        tensors |= read_header(file)
    return _Parts(family, config, tensors, (*read, config_file, *more, *weights))


def _no_config(path: Path) -> str:
    """What to say of a folder without a config.json."""
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    if not names:
        state, remedy = ("is empty" if path.is_dir() else "does not exist"), "download the model again"
    elif any(name.endswith(".safetensors") for name in names):
        state, remedy = (
            f"has {some(names)} and no config.json",
            "give the .safetensors file itself, or add a config.json",
        )
    else:
        state, remedy = f"has {some(names)} and no config.json", "give a diffusers folder or a .safetensors file"
    return f"{path} {state}; wanted model_index.json or config.json there; {remedy}"


def weight_files(path: Path, stem: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """(index files, weight files) of a component's folder: full precision if it is there, else its one variant."""
    found = {p.name: p for p in sorted(path.iterdir()) if p.name.startswith(stem)}
    whole = [p for p in found.values() if p.suffix == ".safetensors" and "-of-" not in p.name]
    indexes = [p for p in found.values() if ".safetensors.index." in p.name]
    if f"{stem}.safetensors" in found:
        return (), (found[f"{stem}.safetensors"],)
    if f"{stem}.safetensors.index.json" in found:
        return _sharded(found[f"{stem}.safetensors.index.json"])
    match [*whole, *indexes]:
        case [one]:
            return _sharded(one) if one in indexes else ((), (one,))
        case []:
            for p in sorted(path.iterdir()):
                refuse_pickle(p)
            raise BadCheckpoint(f"{path} has a config and no weights; wanted {stem}.safetensors; download it again")
        case several:
            names = some([p.name for p in several])
            raise BadCheckpoint(f"{path} has {names}; wanted one; rename the one to use to {stem}.safetensors")


def _sharded(index: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places or not all(Path(str(n)).name == n for n in places.values()):
        raise BadCheckpoint(f"{index} has no usable weight_map; wanted names of files beside it; download it again")
    shards = tuple(index.parent / name for name in sorted(set(places.values())))
    for shard in shards:
        if not shard.is_file():
            raise BadCheckpoint(f"{index} names {shard.name}, which is missing; wanted every shard; download it again")
        refuse_pickle(shard)
    return (index,), shards


def _single_file(path: Path) -> _Parts:
    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise BadCheckpoint(
            f"{path} is a {path.suffix or 'nameless'} file; wanted .safetensors; or give a diffusers folder"
        )
    tensors = read_header(path)
    known = _recognised(path, _shapes(tensors))
    return _Parts(known.family, known.config, tensors, (path,))


def _recognised(path: Path, shapes: Shapes) -> Known:
    """The one of KNOWN that a file holds. BadCheckpoint when there is none, or more than one, rather than a guess."""
    decides = "a folder with its config.json beside it decides"
    problems = {k.name: arrange(shapes, _expected(k))[1] for k in KNOWN}
    like = [k for k in KNOWN if not problems[k.name]]
    if not like:
        looked, nearest = ", ".join(problems), min(problems, key=lambda name: len(problems[name]))
        raise BadCheckpoint(
            f"{path} has {some(sorted(shapes))} (against {nearest}: {some(problems[nearest])}); wanted exactly the "
            f"tensors of the autoencoder of {looked}, alone or under first_stage_model. or vae.; {decides}: name it "
            f"{_WEIGHTS}.safetensors there"
        )
    if len(like) == 1:
        return like[0]
    names = {w.known for w in WITNESSES if w.seen(shapes)} or {PUBLISHED.get(_sha256(path), "")}
    told = [k for k in like if k.name in names and not any(n in shapes for n in FOREIGN)]
    if len(told) != 1:
        raise BadCheckpoint(
            f"{path} has the tensors of {' and '.join(k.name for k in like)}, alike but for the scale of the latents; "
            f"wanted another part of the model to tell by; {decides}: name it {_WEIGHTS}.safetensors there"
        )
    return told[0]


def _expected(known: Known) -> Shapes:
    vae = build("diffusers", known.family, known.config, Path(known.name))
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def _read(places: Mapping[str, Stored], shapes: Shapes) -> dict[str, Tensor]:
    """The tensors, in float32 (counters as they are)."""
    from safetensors import SafetensorError, safe_open

    state: dict[str, Tensor] = {}
    for file in sorted({stored.file for stored in places.values()}):
        try:
            with safe_open(file, framework="pt") as opened:
                for name, stored in places.items():
                    if stored.file == file:
                        state[name] = _checked(opened.get_tensor(stored.name), stored).reshape(shapes[name])
        except (SafetensorError, OSError) as cause:
            raise BadCheckpoint(
                f"{file} is damaged ({first_line(cause)}); wanted safetensors; download it again"
            ) from cause
    return state


def _checked(tensor: Tensor, stored: Stored) -> Tensor:
    if stored.name.endswith(COUNTERS):
        return tensor
    if stored.dtype not in FLOATS:
        raise BadCheckpoint(
            f"{stored.name} in {stored.file} is {stored.dtype}; wanted {', '.join(FLOATS)}; take the model before it "
            "was quantised"
        )
    tensor = tensor.to(torch.float32, copy=True)  # not a view of the file, which may change
    if not all(bound.isfinite() for bound in torch.aminmax(tensor)):  # NaN passes through
        raise BadCheckpoint(
            f"{stored.name} in {stored.file} has {int((~tensor.isfinite()).sum())} weights that are NaN or infinite; "
            "wanted finite ones; take another copy, in float32 if this is float16"
        )
    return tensor


def _shapes(tensors: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    return {name: stored.shape for name, stored in tensors.items()}


def some(names: Sequence[str]) -> str:
    """A few of `names`, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file. BadCheckpoint where there is none."""
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        raise BadCheckpoint(
            f"{path} cannot be read as JSON ({first_line(cause)}); wanted a table; download it again"
        ) from cause
    if not isinstance(read, dict):
        raise BadCheckpoint(f"{path} holds a {type(read).__name__}; wanted a table; download it again")
    return read


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
