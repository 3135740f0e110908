"""Which engines run on which device here, and of those that do not, why and what to install. Opens nothing."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from widefield.errors import MissingBackend, WidefieldError

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute in cuda.h


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an engine runs on a device. `why` is empty where it does; `install` where nothing would help."""

    engine: str
    device: str
    works: bool
    version: str = ""
    why: str = ""
    install: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Driver:
    """NVIDIA's: the newest CUDA it knows, as (13, 0), and what its GPUs are called. `why` where there is none.
    `capability` is that of the first, as "90"."""

    cuda: tuple[int, int] | None
    gpus: tuple[str, ...]
    why: str = ""
    capability: str = ""


def find_driver() -> Driver:
    """Asks libcuda itself, so neither torch nor cupy is needed."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Driver(None, (), "no NVIDIA driver: libcuda.so.1 is not there")
    if code := cuda.cuInit(0):
        return Driver(None, (), f"the NVIDIA driver does not start: cuInit gave {code}")
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
        cuda.cuDeviceGet(ctypes.byref(device), number)
        cuda.cuDeviceGetName(name, len(name), device)
        names.append(name.value.decode())
    return Driver((version.value // 1000, version.value % 1000 // 10), tuple(names), "", _capability(cuda))


def _capability(cuda: ctypes.CDLL) -> str:
    """Of the first GPU; "" where there is none."""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    cuda.cuDeviceGetAttribute(ctypes.byref(major), CAPABILITY_MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), CAPABILITY_MINOR, device)
    return f"{major.value}{minor.value}"


def verdicts(driver: Driver) -> list[Verdict]:
    """Of every engine on the CPU and, first of them, on GPU 0."""
    on_gpu: list[tuple[str, Callable[[], str], str]] = [
        ("trt", partial(_trt, driver.capability), "widefield[trt]"),
        ("torch", _torch_gpu, "widefield[torch]"),
        ("ort", _ort_gpu, "onnxruntime-gpu[cuda,cudnn]"),
    ]
    found = [
        _of("ort", "cpu", _ort_cpu, "widefield[onnxruntime]"),
        _of("openvino", "cpu", lambda: version_of("openvino", "openvino"), "widefield[openvino]"),
        _of("torch", "cpu", _torch_cpu, "widefield[torch]"),
    ]
    if driver.cuda is None or not driver.gpus:
        why = driver.why or "the NVIDIA driver finds no GPU"
        return found + [Verdict(engine, "cuda:0", False, "", why, "install NVIDIA's driver") for engine, *_ in on_gpu]
    return found + [_of(engine, "cuda:0", ask, extra) for engine, ask, extra in on_gpu]


def _of(engine: str, device: str, ask: Callable[[], str], extra: str) -> Verdict:
    try:
        return Verdict(engine, device, True, ask())
    except WidefieldError as fault:
        return Verdict(engine, device, False, "", str(fault), f"pip install '{extra}'")
    except ImportError as cause:
        return Verdict(engine, device, False, "", f"it does not load: {cause}", f"pip install '{extra}'")


def version_of(module: str, *names: str) -> str:
    """Of an installed module, by the names it may be distributed under. MissingBackend where it is not installed."""
    if importlib.util.find_spec(module) is None:
        raise MissingBackend(f"{module} is not installed")
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def _ort_cpu() -> str:
    return version_of("onnxruntime", "onnxruntime-gpu", "onnxruntime")


def _torch_cpu() -> str:
    version_of("onnx", "onnx")
    return version_of("torch", "torch")


def _trt(capability: str) -> str:
    from widefield.engine.trt_bindings import bindings, check_capability, identity

    version_of("onnx", "onnx")
    version_of("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy")
    found = bindings()
    check_capability(found, capability)
    return identity(found)


def _torch_gpu() -> str:
    version_of("onnx", "onnx")
    found = version_of("torch", "torch")
    from widefield.engine.torch_engine import find_device

    find_device("cuda:0")
    return found


def _ort_gpu() -> str:
    found = _ort_cpu()
    from widefield.engine.ort_cuda import check_provider

    check_provider(None)
    version_of("cupy", "cupy-cuda13x", "cupy-cuda12x", "cupy")
    return found


def machine() -> dict[str, str]:
    """What the versions are of: Python, the system, the processor's name."""
    return {"python": platform.python_version(), "system": platform.platform(terse=True), "processor": processor()}


def processor() -> str:
    """Its name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.machine()
