"""What the launchers hand to Triton is what the manifest says that the compiled forms take, for every form."""

from __future__ import annotations

import pytest

from widefield_bench.forms import Launch, choose, instead
from widefield_bench.kernel_cases import cases
from widefield_kernels.compiled import CompiledKernel, grid_rule, pack
from widefield_kernels.jit.interpreter import interpreted
from widefield_kernels.manifest import KernelFault

pytestmark = [
    pytest.mark.skipif(not interpreted(), reason="a GPU is here: bench/device.sh launches the compiled forms"),
    pytest.mark.timeout(1800),  # whoever asks for the matrix first waits for it: a minute or two on two cores
]
BUILDERS = list(cases("quick", "cpu"))


@pytest.fixture
def kernels(matrix):
    """A function from names to kernels, for all architectures, not loaded: without a GPU a launcher takes the
    configurations of none in particular, which are those of most."""
    made = [CompiledKernel(e, None, tuple(grid_rule(rule) for rule in e.grid)) for e in matrix.entries]

    def named(*names: str) -> list[CompiledKernel]:
        return [kernel for kernel in made if kernel.entry.name in names]

    return named


@pytest.mark.parametrize("build", BUILDERS, ids=range(len(BUILDERS)))
def test_a_launcher_passes_what_the_compiled_form_takes(build, kernels):
    case, seen = build(), []

    def act(launch: Launch) -> None:
        kernel, values = choose(kernels(*case.forms), launch)
        parameters = pack(kernel.entry, values)
        assert len(parameters) == len(kernel.entry.arguments) + 2
        seen.append(kernel.entry.name)

    with instead(case.module, case.kernel, act):
        case.launch()
    assert set(seen) == set(case.forms)


def test_every_compiled_form_is_checked_on_a_gpu(matrix):
    assert {form for build in BUILDERS for form in build().forms} == {entry.name for entry in matrix.entries}


def test_another_constant_or_grid_is_found(kernels):
    kernel, *_ = kernels("noise.fp32")
    values = {name: 1 for name, _ in kernel.entry.arguments} | dict(kernel.entry.constants)
    assert choose([kernel], Launch(kernel.blocks(values), values))[0] is kernel
    with pytest.raises(KernelFault, match="wanted the launcher's"):
        choose([kernel], Launch((7, 7, 7), values))
    with pytest.raises(KernelFault, match="see variants"):
        choose([kernel], Launch((1, 1, 1), values | {"ROWS": 3}))
