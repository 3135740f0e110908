"""The table of blocks: every width compiles for every architecture, without spills and within its memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from house.places import ROOT
from widefield_kernels.jit.attention import variants
from widefield_kernels.jit.attention_table import WIDTHS, config, padded
from widefield_kernels.jit.variant import CAPABILITIES, SHARED_NBYTES

# Compiled in a process of its own: an interpreted one cannot.
COMPILE = """
import json, sys
from widefield_kernels.jit.attention import variant
from widefield_kernels.jit.cross import cross_compile
for form in json.loads(sys.argv[1]):
    dtype, width, capability, shared, writes = form
    done = cross_compile(variant(dtype, width, capability, shared=shared, writes=writes), capability)
    print(json.dumps([*form, done.spill_nbytes, done.shared_nbytes, done.registers]))
"""


def faults(forms, compiling):
    """Those that spill, want too much shared memory, or became a trap (too much tensor memory leaves 4 registers)."""
    command = [sys.executable, "-c", COMPILE, json.dumps(forms)]
    done = subprocess.run(
        command, env=compiling | {"PYTHONPATH": str(ROOT / "kernels")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(forms)
    limits = {capability: SHARED_NBYTES[capability] for capability in CAPABILITIES}
    return [form for form in found if form[5] or form[6] > limits[form[2]] or form[7] < 24]


@pytest.mark.parametrize("width", [40, 160])
def test_widths_cut_into_chunks_do_not_spill(width, compiling):
    assert faults([("bf16", width, 90, True, True), ("bf16", width, 86, False, False)], compiling) == []


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("dtype", "writes"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_no_width_spills(dtype, writes, capability, compiling):
    forms = [(dtype, width, capability, False, writes) for width in WIDTHS]
    assert faults([*forms, (dtype, 512, capability, True, writes)], compiling) == []


def test_no_width_is_padded_by_more_than_a_third():
    assert max(padded(width) / width for width in WIDTHS) <= 1.35


@pytest.mark.parametrize("width", WIDTHS)
def test_a_table_for_every_width_and_an_unknown_capability(width):
    blocks = config(width, half=True, shared=False, capability=121)
    assert blocks.queries >= 16 and blocks.keys >= 16 and blocks.chunk >= 16


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_variants_are_few_and_named_once(capability):
    names = [variant.name for variant in variants(capability)]
    assert len(set(names)) == len(names) <= 16
    assert {"attention.bf16.d512.kv.page", "attention.fp16.d512.kv", "attention.bf16.d64"} <= set(names)
