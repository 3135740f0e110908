"""The frozen result of every site: with it any tile decodes alone, later, elsewhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from widefield.bundle import Component, GraphSpec
from widefield.errors import BadRequest, StoreError

FORMAT = "widefield-summary-1"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Summary:
    """`arrays` are what graphs read, by parameter name, and `RESULT.keys` for attentions; `moments` what norms were
    measured to be, `RESULT.mean`, `.variance` and their standard errors, in float64 and of every group.

    `about`: method ("exact" or "sampled"), component, bundle (digest), latents (digest), cells, seed, keys.
    `engine_seconds`: how long engines ran to measure it, of all workers; 0 for one that was read.
    """

    arrays: Mapping[str, Array]
    moments: Mapping[str, NDArray[np.float64]]
    about: Mapping[str, str] = field(default_factory=dict)
    engine_seconds: float = 0.0

    def parameters(self, graph: GraphSpec) -> dict[str, Array]:
        """What one graph needs, in its shapes."""
        return {name: self.arrays[name].reshape(shape) for name, shape in graph.parameters.items()}

    def keys(self, result: str) -> Array:
        """Tokens (n, width) of the attention that makes `result`."""
        return self.arrays[f"{result}.keys"]

    @property
    def digest(self) -> str:
        """SHA-256 over everything that a decode reads from it."""
        total = hashlib.sha256()
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name])
            total.update(f"{name} {array.shape}\n".encode())
            total.update(array.tobytes())
        return total.hexdigest()

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values()) + sum(m.nbytes for m in self.moments.values())

    def largest_standard_error(self) -> float:
        """Of the means, in standard deviations of their group: 0 for an exact summary."""
        worst = 0.0
        for name, error in self.moments.items():
            if name.endswith(".mean_error"):
                deviation = np.sqrt(self.moments[name.replace(".mean_error", ".variance")])
                worst = max(worst, float(np.max(error / np.maximum(deviation, 1e-12), initial=0.0)))
        return worst

    def save(self, path: Path) -> None:
        """Write as safetensors, whole or not at all; StoreError where that is not possible.

        One summary is the same bytes each time: safetensors orders tensors, but not what it says of them, so that is
        one entry.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[np.float32] | NDArray[np.float64]] = {
            **{f"array/{k}": np.ascontiguousarray(v) for k, v in self.arrays.items()},
            **{f"moment/{k}": np.ascontiguousarray(v) for k, v in self.moments.items()},
        }
        work = path.with_name(f".{path.name}.part")
        try:
            save_file(tensors, work, metadata={FORMAT: json.dumps(dict(self.about), sort_keys=True)})
            work.chmod(0o644)  # safetensors hides what it writes from everybody else
            work.replace(path)
        except (OSError, SafetensorError) as cause:  # safetensors has its own name for a full disk
            raise StoreError(
                f"{path}: {str(cause).splitlines()[0]}; wanted to write {self.nbytes >> 10} KiB there; mend that, "
                "then run the same command again: it resumes where it stopped"
            ) from cause
        finally:
            work.unlink(missing_ok=True)


def load_summary(path: Path, component: Component, bundle_digest: str) -> Summary:
    """Read a saved summary and check that it was measured with this bundle; raises BadRequest otherwise."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadRequest(f"{path} is no file; --summary takes auto, exact, sampled or a saved summary")
    arrays: dict[str, Array] = {}
    moments: dict[str, NDArray[np.float64]] = {}
    try:
        with safe_open(path, framework="numpy") as tensors:
            metadata = tensors.metadata() or {}
            for key in tensors.keys():  # noqa: SIM118 -- a safe_open object is no mapping
                kind, _, name = key.partition("/")
                (arrays if kind == "array" else moments)[name] = tensors.get_tensor(key)
    except (SafetensorError, OSError) as cause:
        raise BadRequest(f"{path} is no summary ({cause}); measure it again with --summary sampled") from cause
    about = _about(metadata)
    if about is None:
        raise BadRequest(f"{path} is not a {FORMAT}; measure it again with --summary sampled")
    if about.get("bundle") != bundle_digest or about.get("component") != component.name:
        raise BadRequest(f"{path} was measured with another bundle; measure it again with --summary sampled")
    return Summary(arrays, moments, about)


def _about(metadata: Mapping[str, str]) -> dict[str, str] | None:
    """What a file says of its summary; None where it holds none. Older ones say it in two entries."""
    said = metadata.get("about") if metadata.get("format") == FORMAT else metadata.get(FORMAT)
    about = None if said is None else json.loads(said)
    return about if isinstance(about, dict) else None
