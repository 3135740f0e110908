"""Launching compiled kernels: what is refused, what is chosen, what a launch comes to, on a fake libcuda."""

from __future__ import annotations

import shutil
import struct
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from kernels.fake_driver import FakeDriver
from widefield_kernels import compiled
from widefield_kernels.manifest import Entry, KernelFault, Manifest, source_hash

ENTRY = Entry(
    name="toy.bf16", capability=90, exact=True, module="norm", source=source_hash("norm"), key="k", file="toy.cubin",
    sha256="s", symbol="toy_kernel", arguments=(("x_ptr", "*bf16"), ("rows", "i32"), ("scale", "fp32"), ("row", "i64")),
    hidden=2, constants={"BLOCK": 64}, divisible=("x_ptr", "row"), divisor=8,
    grid=("cdiv(rows, BLOCK)", "2 * rows", "1"), num_warps=8,
    shared_nbytes=1024, registers=40, spill_nbytes=0, stack_nbytes=0,
)  # fmt: skip


class FakeArray:
    """As much of a CuPy array as a launch looks at."""

    def __init__(self, address: int, dtype: str) -> None:
        self.data = SimpleNamespace(ptr=address)
        self.dtype = np.dtype(dtype)


@pytest.fixture
def machine():
    """A function that puts a GPU of some capability into this machine."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler, cc, for a fake libcuda")
    return FakeDriver


@pytest.fixture
def folder(tmp_path):
    """A function that writes a manifest of entries, with code for each, and says where."""

    def write(*entries: Entry):
        Manifest("3.9.0", entries).write(tmp_path)
        for entry in entries:
            (tmp_path / entry.file).write_bytes(b"\x7fELF toy")
        return tmp_path

    return write


def test_a_launch_has_the_bytes_that_the_code_reads():
    values = {"x_ptr": FakeArray(0x7F00AA10, "uint16"), "rows": -3, "scale": 1.5, "row": 2**40 + 8}
    data = b"".join(part.tobytes() for part in compiled.pack(ENTRY, values))
    assert data == struct.pack("<QifqQQ", 0x7F00AA10, -3, 1.5, 2**40 + 8, 0, 0)


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("u64", 2**64 - 1, b"\xff" * 8),
        ("u8", 255, b"\xff"),
        ("i32", np.int64(7), struct.pack("<i", 7)),
        ("fp64", 0.1, struct.pack("<d", 0.1)),
        ("u32", 2**32 - 2, struct.pack("<I", 2**32 - 2)),
        ("fp32", 3, struct.pack("<f", 3.0)),
    ],
)
def test_numbers_keep_their_width(kind, value, wanted):
    entry = replace(ENTRY, arguments=(("n", kind),), hidden=0)
    (parameter,) = compiled.pack(entry, {"n": value})
    assert parameter.tobytes() == wanted


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rows", 2**31, "rows = 2147483648, wanted i32"),
        ("rows", 2.5, "rows = 2.5, wanted i32"),
        ("scale", "big", "scale = 'big', wanted fp32"),
        ("row", 12, "row = 12, wanted a multiple of 8"),
        ("x_ptr", 0x7F08, "x_ptr = 32520, wanted a multiple of 16"),
        ("x_ptr", -16, "x_ptr = -16, wanted"),
        ("x_ptr", FakeArray(0, "float32"), "FakeArray of float32, wanted a CuPy array of bfloat16 or uint16"),
        ("x_ptr", np.zeros(4, np.uint16), "ndarray of uint16, wanted a CuPy array"),
        ("x_ptr", None, "NoneType, wanted a CuPy array"),
    ],
)
def test_what_the_code_would_misread_is_refused(name, value, said):
    values = {"x_ptr": 0, "rows": 1, "scale": 1.0, "row": 8, name: value}
    with pytest.raises(KernelFault, match=r"toy\.bf16 found") as fault:
        compiled.pack(ENTRY, values)
    assert said in str(fault.value)


def test_a_kernel_is_loaded_and_launched(machine, folder):
    fake = machine(90, gpus=4)
    fake.expect([8, 4, 4, 8, 8, 8], "toy_kernel")
    kernel = compiled.load("toy.bf16", fake.device(3), folder=folder(ENTRY))
    kernel(FakeArray(0x1000, "uint16"), 100, scale=2.0, row=16)
    (launch,) = fake.launches
    assert (launch.grid, launch.block, launch.shared_nbytes) == ((2, 200, 1), (256, 1, 1), 1024)
    assert b"".join(launch.parameters) == struct.pack("<QifqQQ", 0x1000, 100, 2.0, 16, 0, 0)


@pytest.mark.parametrize(("stream", "handle"), [(SimpleNamespace(ptr=7), 7), (9, 9), (None, 0)])
def test_the_callers_stream_is_used(machine, folder, stream, handle):
    fake = machine()
    kernel = compiled.load("toy.bf16", fake.device(), folder=folder(ENTRY))
    kernel(0x1000, 1, 2.0, 16, stream=stream)
    assert [launch.stream for launch in fake.launches] == [handle]


def test_an_empty_grid_launches_nothing(machine, folder):
    fake = machine()
    compiled.load("toy.bf16", fake.device(), folder=folder(ENTRY))(0, 0, 1.0, 8)
    assert not fake.launches


@pytest.mark.parametrize(("shared", "asked"), [(49152, []), (49153, ["8 = 49153"])])
def test_more_than_48_kb_of_shared_memory_is_asked_for(machine, folder, shared, asked):
    fake = machine()
    compiled.load("toy.bf16", fake.device(), folder=folder(replace(ENTRY, shared_nbytes=shared)))
    assert [told for name, told in fake.calls if name == "cuFuncSetAttribute"] == asked


@pytest.mark.parametrize(
    ("arguments", "named"), [((0, 1), {}), ((0, 1, 1.0, 8, 9), {}), ((0, 1), {"rows": 2, "scale": 1.0, "row": 8}),
                             ((0, 1, 1.0), {"column": 8})],
)  # fmt: skip
def test_arguments_are_each_given_once(machine, folder, arguments, named):
    kernel = compiled.load("toy.bf16", machine().device(), folder=folder(ENTRY))
    with pytest.raises(KernelFault, match="wanted x_ptr, rows, scale, row"):
        kernel(*arguments, **named)


def test_a_grid_that_no_gpu_takes_is_refused(machine, folder):
    kernel = compiled.load("toy.bf16", machine().device(), folder=folder(ENTRY))
    with pytest.raises(KernelFault, match=r"a grid of \(512, 65536, 1\)"):
        kernel(0, 32768, 1.0, 8)


@pytest.mark.parametrize(
    "rule", ["rows.bit_length()", "__import__('os')", "rows if rows else 1", "[rows]", "print(rows)"]
)
def test_a_grid_rule_is_arithmetic_and_no_more(rule):
    with pytest.raises(KernelFault, match="wanted integer arithmetic"):
        compiled.grid_rule(rule)


@pytest.mark.parametrize(
    ("gpu", "compiled_for", "chosen"),
    [
        (86, [80, 86, 89], 86),
        (87, [80, 86, 89], 86),  # a later minor of the major
        (89, [80, 86], 86),
        (80, [86, 89], None),  # no earlier one
        (90, [80, 86, 89], None),  # nor another major
        (90, [90], 90),
        (121, [120], None),  # sm_120a is for 12.0 alone
        (103, [100], None),
    ],
)
def test_code_is_chosen_by_capability(folder, gpu, compiled_for, chosen):
    entries = [replace(ENTRY, capability=c, exact=c >= 90, file=f"toy.sm_{c}.cubin") for c in compiled_for]
    if chosen is None:
        with pytest.raises(KernelFault, match=f"wanted sm_{gpu}; python setup.py build_kernels"):
            compiled.choose("toy.bf16", gpu, folder(*entries))
    else:
        assert compiled.choose("toy.bf16", gpu, folder(*entries)).file == f"toy.sm_{chosen}.cubin"


def test_absent_kernels_say_how_to_build_them(tmp_path):
    with pytest.raises(
        KernelFault, match=r"no compiled kernels in .*; with triton installed, python setup.py build_kernels"
    ):
        compiled.choose("toy.bf16", 90, tmp_path)


def test_an_unknown_name_lists_those_that_there_are(folder):
    with pytest.raises(KernelFault, match=r"no compiled kernel is called toy.fp16; wanted one of toy.bf16"):
        compiled.choose("toy.fp16", 90, folder(ENTRY))


def test_a_stale_kernel_is_named(folder):
    with pytest.raises(KernelFault, match=r"toy.cubin is stale: jit/norm.py has changed since"):
        compiled.choose("toy.bf16", 90, folder(replace(ENTRY, source="0" * 64)))


def test_another_format_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": 0, "triton": "1", "entries": []}')
    with pytest.raises(KernelFault, match="has format 0, wanted 1"):
        compiled.choose("toy.bf16", 90, tmp_path)


def test_what_is_not_loaded_is_not_launched():
    x, y, z = (compiled.grid_rule(rule) for rule in ENTRY.grid)
    with pytest.raises(KernelFault, match=r"toy\.bf16 is not loaded on any GPU"):
        compiled.CompiledKernel(ENTRY, None, (x, y, z))(0, 1, 1.0, 8)


def test_a_manifest_reads_as_it_was_written(folder):
    from widefield_kernels.manifest import read_manifest

    written = (ENTRY, replace(ENTRY, capability=120, file="b"))
    found = read_manifest(folder(*written))
    assert found.entries == written and found.triton == "3.9.0" and found.capabilities == (90, 120)
