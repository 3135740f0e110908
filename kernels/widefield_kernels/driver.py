"""NVIDIA's driver, as much of it as loading and launching code takes, through ctypes: nothing is installed for it.

    function = find_device(0).load(cubin, "kernel", shared_nbytes=0)
    function((blocks, 1, 1), (threads, 1, 1), parameters, shared_nbytes=0, stream=0)

Everything happens in the device's primary context, which is that of CuPy, torch, ONNX Runtime and TensorRT, too. It is
retained once, for good, and is current only while a call lasts, so any thread may launch. What the driver refuses is a
KernelFault of one line: the call, what it was about, and the code's name. Source: CUDA driver API, cuda.h of CUDA 12.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from functools import cache, cached_property

import numpy as np

from widefield_kernels.manifest import KernelFault

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
MAX_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
SHARED_WITHOUT_ASKING = 48 << 10  # bytes of shared memory that any kernel may have; more has to be asked for
PARAMETER_NBYTES = 8  # of the widest
CALLS = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}
Triple = tuple[int, int, int]


class Driver:
    """The library, started. KernelFault where it is not there, is too old, or does not start."""

    def __init__(self, library: str = LIBRARY) -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError:
            raise KernelFault(
                f"compiled kernels need NVIDIA's driver: {library} is not there; install it, or compute on the CPU"
            ) from None
        for name, kinds in CALLS.items():
            if not hasattr(self._library, name):
                raise KernelFault(f"{library} has no {name}; wanted a driver for CUDA 12 or later; update it")
            getattr(self._library, name).argtypes = kinds
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object, about: str = "") -> None:
        """One call. KernelFault for every code but 0."""
        code = int(getattr(self._library, name)(*arguments))
        if code:
            said = c_char_p()
            self._library.cuGetErrorName(code, byref(said))
            known = said.value.decode() if said.value else "an unknown error"
            raise KernelFault(
                f"{name}{about and f' of {about}'} gave {known} ({code}), wanted success; see `widefield doctor`"
            )


class Device:
    """One GPU by its number. KernelFault where there is none of that number."""

    def __init__(self, driver: Driver, number: int) -> None:
        self.driver, self.number = driver, number
        count, self._handle, self._context = c_int(), c_int(), c_void_p()
        driver.call("cuDeviceGetCount", byref(count))
        if not 0 <= number < count.value:
            raise KernelFault(f"GPU {number} was asked for, the driver has {count.value}; name one of them")
        driver.call("cuDeviceGet", byref(self._handle), number)
        driver.call("cuDevicePrimaryCtxRetain", byref(self._context), self._handle, about=f"GPU {number}")

    @cached_property
    def capability(self) -> int:
        """Times ten, as 90."""
        return 10 * self._attribute(MAJOR) + self._attribute(MINOR)

    def _attribute(self, which: int) -> int:
        found = c_int()
        self.driver.call("cuDeviceGetAttribute", byref(found), which, self._handle)
        return found.value

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within, calls of this thread are about this device."""
        self.driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.driver.call("cuCtxPopCurrent_v2", byref(c_void_p()))

    def load(self, code: bytes, symbol: str, *, shared_nbytes: int = 0) -> Function:
        """A kernel of a cubin, which stays loaded for good, ready for launches with so much dynamic shared memory."""
        module, function = c_void_p(), c_void_p()
        with self.current():
            self.driver.call("cuModuleLoadData", byref(module), code, about=symbol)
            self.driver.call("cuModuleGetFunction", byref(function), module, symbol.encode(), about=symbol)
            if shared_nbytes > SHARED_WITHOUT_ASKING:
                self.driver.call("cuFuncSetAttribute", function, MAX_SHARED, shared_nbytes, about=symbol)
        return Function(self, function, symbol)


class Function:
    """A loaded kernel."""

    def __init__(self, device: Device, handle: c_void_p, symbol: str) -> None:
        self.device, self.symbol, self._handle = device, symbol, handle

    def __call__(
        self, grid: Triple, block: Triple, parameters: Sequence[np.generic], *, shared_nbytes: int = 0, stream: int = 0
    ) -> None:
        """Queue a launch on the stream with that handle; 0 is the default stream, which waits for all others.

        Each parameter is handed over as the bytes that it has; the driver copies as many as the code says.
        """
        values = b"".join(parameter.tobytes().ljust(PARAMETER_NBYTES, b"\0") for parameter in parameters)
        held = ctypes.create_string_buffer(values, len(values))
        first = ctypes.addressof(held)
        addresses = (c_void_p * len(parameters))(*range(first, first + len(values), PARAMETER_NBYTES))
        with self.device.current():
            self.device.driver.call(
                "cuLaunchKernel", self._handle, *grid, *block, shared_nbytes, stream, addresses, None, about=self.symbol
            )  # fmt: skip


@cache
def find_device(number: int) -> Device:
    """A GPU of this machine, opened once a process."""
    return Device(_driver(), number)


@cache
def _driver() -> Driver:
    return Driver()
