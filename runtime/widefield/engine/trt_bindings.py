"""TensorRT's Python module: TensorRT 10 and 11, or TensorRT-RTX, which has the same classes under another name."""

from __future__ import annotations

import importlib
import threading
from typing import Any

from widefield.errors import MissingBackend

NAMES = ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings")
OLDEST = (10, 8)  # of TensorRT; the first RTX has all that is used


def bindings() -> Any:
    """The first of NAMES that is installed. MissingBackend says what to install, or which library is not found."""
    for name in NAMES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as cause:
            if cause.name != name:
                raise
            continue
        except ImportError as cause:
            raise MissingBackend(
                f"engine trt: {name} does not load ({cause}); install it again, libraries too"
            ) from None
        if not is_rtx(module) and _version(module) < OLDEST:
            raise MissingBackend(
                f"engine trt wants TensorRT {OLDEST[0]}.{OLDEST[1]}, found {module.__version__}; update it"
            )
        return module
    raise MissingBackend(
        "engine trt needs tensorrt; pip install 'widefield[trt]', or 'widefield[rtx]' on GeForce and RTX"
    )


def is_rtx(trt: Any) -> bool:
    """Whether a module is TensorRT-RTX."""
    return "rtx" in str(trt.__name__)


def check_capability(trt: Any, capability: str) -> None:
    """MissingBackend where a library has no code for a GPU of that capability, as "90": TensorRT-RTX for some."""
    if is_rtx(trt) and not hasattr(trt.ComputeCapability, f"SM{capability}"):
        raise MissingBackend(
            f"engine trt: TensorRT-RTX does not build for sm_{capability}; pip install 'widefield[trt]' for that GPU"
        )


def identity(trt: Any) -> str:
    """What engines depend on: "tensorrt 11.4.0"."""
    return f"{'tensorrt-rtx' if is_rtx(trt) else 'tensorrt'} {trt.__version__}"


def make_logger(trt: Any) -> Any:
    """A logger that says nothing and keeps the errors, in `errors`."""

    class Kept(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self._lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                with self._lock:
                    self.errors.append(message)

    return Kept()


def _version(trt: Any) -> tuple[int, int]:
    major, minor, *_ = str(trt.__version__).split(".")
    return int(major), int(minor)
