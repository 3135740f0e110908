"""Launching compiled kernels, on a CuPy that only writes down what it is told."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

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


class FakeKernel:
    """As much of cupy.RawKernel."""

    def __init__(self, log: list, path: str, symbol: str) -> None:
        self.__dict__.update(log=log, path=path, symbol=symbol)

    def __setattr__(self, name: str, value: int) -> None:
        self.log.append(("attribute", name, value))

    def __call__(self, grid, block, arguments, *, shared_mem=0) -> None:
        self.log.append(("launch", grid, block, b"".join(a.tobytes() for a in arguments), shared_mem))


class FakeCuPy:
    """As much of cupy, for a GPU of one capability. Whatever else is asked of it is an error."""

    def __init__(self, capability: str) -> None:
        self.log: list = []
        self.cuda = SimpleNamespace(Device=lambda number=None: self._scope("device", number, capability))

    def RawModule(self, *, path: str) -> SimpleNamespace:
        self.log.append(("module", path.rpartition("/")[2]))
        return SimpleNamespace(get_function=lambda symbol: FakeKernel(self.log, path, symbol))

    def Stream(self) -> SimpleNamespace:
        return self._scope("stream", 7, "")

    def _scope(self, kind: str, number: int | None, capability: str):
        log = self.log

        class Scope:
            compute_capability = capability

            def __enter__(self):
                log.append((f"enter {kind}", number))

            def __exit__(self, *_):
                log.append((f"leave {kind}", number))

        return Scope()


@pytest.fixture
def cupy(monkeypatch):
    """A function that puts a GPU of some capability into this machine."""

    def put(capability: str) -> FakeCuPy:
        fake = FakeCuPy(capability)
        monkeypatch.setitem(sys.modules, "cupy", fake)
        return fake

    return put


@pytest.fixture
def folder(tmp_path):
    """A function that writes a manifest of entries, and says where."""

    def write(*entries: Entry):
        Manifest("3.9.0", entries).write(tmp_path)
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


def test_a_kernel_is_loaded_and_launched(cupy, folder):
    fake = cupy("90")
    kernel = compiled.load("toy.bf16", 3, folder=folder(ENTRY))
    kernel(FakeArray(0x1000, "uint16"), 100, scale=2.0, row=16)
    parameters = struct.pack("<QifqQQ", 0x1000, 100, 2.0, 16, 0, 0)
    assert fake.log == [
        ("enter device", 3), ("module", "toy.cubin"), ("leave device", 3),
        ("launch", (2, 200, 1), (256, 1, 1), parameters, 1024),
    ]  # fmt: skip


def test_the_callers_stream_is_used(cupy, folder):
    fake = cupy("90")
    kernel = compiled.load("toy.bf16", folder=folder(ENTRY))
    kernel(0x1000, 1, 2.0, 16, stream=fake.Stream())
    assert [kind for kind, *_ in fake.log[-3:]] == ["enter stream", "launch", "leave stream"]


def test_an_empty_grid_launches_nothing(cupy, folder):
    fake = cupy("90")
    compiled.load("toy.bf16", folder=folder(ENTRY))(0, 0, 1.0, 8)
    assert not [line for line in fake.log if line[0] == "launch"]


@pytest.mark.parametrize(("shared", "asked"), [(49152, []), (49153, [("max_dynamic_shared_size_bytes", 49153)])])
def test_more_than_48_kb_of_shared_memory_is_asked_for(cupy, folder, shared, asked):
    fake = cupy("90")
    compiled.load("toy.bf16", folder=folder(replace(ENTRY, shared_nbytes=shared)))
    assert [tuple(rest) for kind, *rest in fake.log if kind == "attribute"] == asked


@pytest.mark.parametrize(
    ("arguments", "named"), [((0, 1), {}), ((0, 1, 1.0, 8, 9), {}), ((0, 1), {"rows": 2, "scale": 1.0, "row": 8}),
                             ((0, 1, 1.0), {"column": 8})],
)  # fmt: skip
def test_arguments_are_each_given_once(cupy, folder, arguments, named):
    cupy("90")
    kernel = compiled.load("toy.bf16", folder=folder(ENTRY))
    with pytest.raises(KernelFault, match="wanted x_ptr, rows, scale, row"):
        kernel(*arguments, **named)


def test_a_grid_that_no_gpu_takes_is_refused(cupy, folder):
    cupy("90")
    kernel = compiled.load("toy.bf16", folder=folder(ENTRY))
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


def test_without_cupy_the_extra_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(KernelFault, match=r"needs cupy; pip install 'widefield\[gpu\]'"):
        compiled.load("toy.bf16", folder=folder(ENTRY))


def test_a_manifest_reads_as_it_was_written(folder):
    from widefield_kernels.manifest import read_manifest

    written = (ENTRY, replace(ENTRY, capability=120, file="b"))
    found = read_manifest(folder(*written))
    assert found.entries == written and found.triton == "3.9.0" and found.capabilities == (90, 120)
