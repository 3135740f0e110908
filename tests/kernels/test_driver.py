"""The launcher on a fake libcuda: what the driver is told, what it is handed, and what it refuses in one line."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pytest

from kernels.cubins import parameter_layout
from kernels.fake_driver import FakeDriver, needs_a_compiler
from widefield_kernels import compiled
from widefield_kernels.driver import Driver
from widefield_kernels.manifest import KernelFault

pytestmark = needs_a_compiler
CODE = b"\x7fELF\0 and more"
VALUES = (np.uint64(2**63 + 5), np.int32(-7), np.float32(0.1), np.uint16(0xBEEF), np.int8(-1), np.float64(-2.5))
BYTES = struct.pack("<Q", 2**63 + 5), struct.pack("<i", -7), struct.pack("<f", 0.1), b"\xef\xbe", b"\xff", (
    struct.pack("<d", -2.5)
)  # fmt: skip


def test_a_kernel_is_loaded_and_launched_within_its_devices_context():
    fake = FakeDriver(gpus=4)
    fake.expect([len(part) for part in BYTES], "toy")
    function = fake.device(3).load(CODE, "toy", shared_nbytes=70_000)
    function((5, 6, 7), (256, 1, 1), VALUES, shared_nbytes=70_000, stream=0xABCDEF012345)
    names = [name for name, _ in fake.calls]
    assert names == [
        "cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuModuleGetFunction",
        "cuFuncSetAttribute", "cuLaunchKernel",
    ]  # fmt: skip
    assert ("cuDeviceGet", "3") in fake.calls and ("cuDevicePrimaryCtxRetain", "103") in fake.calls
    assert ("cuFuncSetAttribute", "8 = 70000") in fake.calls
    (launch,) = fake.launches
    assert (launch.grid, launch.block, launch.shared_nbytes) == ((5, 6, 7), (256, 1, 1), 70_000)
    assert launch.stream == 0xABCDEF012345 and launch.parameters == BYTES
    assert fake.depth == 0


@pytest.mark.parametrize(("capability", "found"), [(90, 90), (121, 121), (80, 80)])
def test_a_capability_is_asked_of_the_driver(capability, found):
    assert FakeDriver(capability).device().capability == found


def test_no_more_shared_memory_than_usual_is_not_asked_for():
    fake = FakeDriver()
    fake.device().load(CODE, "toy", shared_nbytes=48 << 10)
    assert "cuFuncSetAttribute" not in [name for name, _ in fake.calls]


def test_other_threads_launch_too():
    fake = FakeDriver()
    fake.expect([4])
    function = fake.device().load(CODE, "toy")
    threads = [
        threading.Thread(target=function, args=((n, 1, 1), (32, 1, 1), [np.int32(n)])) for n in range(1, 9)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
        thread.join()
    assert [(launch.grid[0], launch.parameters) for launch in fake.launches] == [
        (n, (struct.pack("<i", n),)) for n in range(1, 9)
    ]


@pytest.mark.parametrize(
    ("call", "code", "said"),
    [
        ("cuDevicePrimaryCtxRetain", 2, r"cuDevicePrimaryCtxRetain of GPU 0 gave an unknown error \(2\)"),
        ("cuModuleLoadData", 209, r"cuModuleLoadData of toy gave CUDA_ERROR_NO_BINARY_FOR_GPU \(209\)"),
        ("cuModuleGetFunction", 500, r"cuModuleGetFunction of toy gave CUDA_ERROR_NOT_FOUND \(500\)"),
        ("cuFuncSetAttribute", 1, r"cuFuncSetAttribute of toy gave CUDA_ERROR_INVALID_VALUE \(1\)"),
        ("cuLaunchKernel", 1, r"cuLaunchKernel of toy gave CUDA_ERROR_INVALID_VALUE \(1\)"),
    ],
)
def test_what_the_driver_refuses_is_one_line(call, code, said):
    fake = FakeDriver()
    fake.refuse(call, code)
    with pytest.raises(KernelFault, match=said) as fault:
        fake.device().load(CODE, "toy", shared_nbytes=50_000)((1, 1, 1), (32, 1, 1), (), shared_nbytes=50_000)
    assert "\n" not in str(fault.value) and "widefield doctor" in str(fault.value)
    assert fake.depth == 0, "no context is left behind"


def test_a_driver_that_does_not_start_is_one_line():
    fake = FakeDriver()
    fake.refuse("cuInit", 100)
    with pytest.raises(KernelFault, match=r"cuInit gave an unknown error \(100\), wanted success"):
        Driver(fake.driver._library._name)


def test_code_that_is_none_is_refused():
    with pytest.raises(KernelFault, match="cuModuleLoadData of toy gave CUDA_ERROR_INVALID_IMAGE"):
        FakeDriver().device().load(b"not code", "toy")


@pytest.mark.parametrize(("number", "gpus"), [(2, 2), (0, 0), (-1, 3)])
def test_a_gpu_that_is_not_there_is_one_line(number, gpus):
    with pytest.raises(KernelFault, match=f"GPU {number} was asked for, the driver has {gpus}; name one of them"):
        FakeDriver(gpus=gpus).device(number)


def test_without_a_driver_it_is_one_line():
    with pytest.raises(
        KernelFault, match=r"libnowhere\.so\.1 is not there; install it, or compute on the CPU"
    ) as fault:
        Driver("libnowhere.so.1")
    assert "\n" not in str(fault.value)


def test_a_library_that_is_no_driver_is_one_line():
    with pytest.raises(KernelFault, match="has no cuInit; wanted a driver for CUDA 12"):
        Driver("libc.so.6")


@pytest.mark.timeout(1800)  # whoever asks for the matrix first waits for it: a minute or two on two cores
def test_every_compiled_kernel_reads_what_a_launch_hands_over(matrix, matrix_folder):
    """The sizes of parameters are the code's own, from its ELF file; the driver copies so many bytes."""
    seen = set()
    for entry in matrix.entries:
        layout = parameter_layout((matrix_folder / entry.file).read_bytes(), entry.symbol)
        fake = FakeDriver(entry.capability)
        fake.expect([nbytes for _, nbytes in layout], entry.symbol)
        kernel = compiled.load(entry.name, fake.device(), folder=matrix_folder)
        assert kernel.entry == entry
        values = {
            name: 4096 * (1 + index) if kind.startswith("*") else 1.0 if kind.startswith("fp") else 64
            for index, (name, kind) in enumerate(entry.arguments)
        }
        kernel(**values, stream=0x77)
        (launch,) = fake.launches
        packed = [part.tobytes() for part in compiled.pack(entry, values)]
        assert [len(part) for part in launch.parameters] == [nbytes for _, nbytes in layout], entry.file
        assert list(launch.parameters) == packed and launch.stream == 0x77
        assert launch.parameters[-entry.hidden :] == (bytes(8),) * entry.hidden
        assert launch.block == (32 * entry.num_warps, 1, 1) and launch.shared_nbytes == entry.shared_nbytes
        seen.add(entry.file)
    assert seen == {entry.file for entry in matrix.entries}, "every one of them was launched"
