"""The bench of kernels runs, on a CPU and tiny: what is checked is right, what is wrong is not timed."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from house.places import ROOT
from widefield_bench import kernel_cases, kernels
from widefield_kernels.manifest import KernelFault


def run(folder, *only: str) -> tuple[int, list[dict]]:
    status = kernels.main(["--device", "cpu", "--quick", "--out", str(folder), "--seed", "0", "--only", *only])
    return status, json.loads((folder / "kernels.json").read_text())["rows"]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """As tests/conftest.py has it: the bench may set it, and the next test is to find it as it was."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_it_checks_then_times_and_prints_a_table_last(tmp_path, capsys):
    status, rows = run(tmp_path, "norm.apply.nhwc.*", "epilogue.planes.fp32", "attention.bf16.d64")
    assert status == 0
    errors = {row["form"]: row["error"] for row in rows if "error" in row}
    assert set(errors) == {"norm.apply.nhwc.bf16", "norm.apply.nhwc.fp32", "epilogue.planes.fp32", "attention.bf16.d64"}
    assert max(errors.values()) <= 1
    timed = {(row["form"], row["by"]) for row in rows if row.get("ms", 0) > 0}
    assert {("norm.apply.nhwc.bf16", "group_norm + silu"), ("attention.bf16.d64", "SDPA math")} <= timed
    assert {(form, "triton") for form in errors} <= timed
    assert "the times mean nothing" in capsys.readouterr().out.splitlines()[-1]


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch, capsys):
    plain = kernel_cases.normal_reference
    monkeypatch.setattr(kernel_cases, "normal_reference", lambda *arguments: plain(*arguments) + 1)
    status, rows = run(tmp_path, "noise.*")
    assert status == 1
    assert [(row["by"], row["note"]) for row in rows] == [("triton", "WRONG")]
    assert capsys.readouterr().out.splitlines()[-1].endswith("1 wrong")


def test_what_is_not_written_is_found(tmp_path, monkeypatch):
    """A launch that does nothing leaves the results of the one before, were they not overwritten."""
    plain, launches = kernel_cases.noise.normal, []

    def once(*arguments):
        launches.append(arguments)
        return plain(*arguments) if len(launches) == 1 else arguments[-1]

    monkeypatch.setattr(kernel_cases.noise, "normal", once)
    status, rows = run(tmp_path, "noise.*")
    assert status == 1 and [row["note"] for row in rows] == ["WRONG"]


def test_a_kernel_that_cannot_be_launched_is_a_row(tmp_path, monkeypatch):
    def fails(*_):
        raise KernelFault("no such kernel")

    monkeypatch.setattr(kernel_cases.noise, "normal", fails)
    status, rows = run(tmp_path, "noise.*", "norm.apply.nhwc.fp32")
    assert status == 1
    assert [row["note"] for row in rows if row["form"] == "noise.fp32"] == ["WRONG: no such kernel"]
    assert any(row["form"] == "norm.apply.nhwc.fp32" and row.get("ms") for row in rows), "the others go on"


def test_nothing_is_begun_when_time_is_up(tmp_path):
    arguments = ["--device", "cpu", "--quick", "--minutes", "0", "--only", "noise.*", "--out", str(tmp_path)]
    assert kernels.main(arguments) == 0
    rows = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert [row.get("note") for row in rows if "error" not in row] == ["not run: out of time"] * 2


def test_a_value_that_is_not_a_number_is_an_error():
    found = torch.tensor([1.0, float("nan")])
    assert kernel_cases.worst(found, found.double().numpy() * 0, found.numpy() * 0) == float("inf")


def test_the_script_says_what_it_needs_where_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run([ROOT / "bench/device.sh"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 1 and "error: no GPU that torch can use" in done.stderr
