"""`widefield doctor`: which engines run here, on what, how fast the machine is at most, and what to install."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import click

from widefield import __version__
from widefield.commands import arguments
from widefield.commands.output import print_json

SIDE, COPY_NBYTES = 1024, 64 << 20


@click.command("doctor", cls=arguments.Command, short_help="Which engines run here, and what to install for others.")
@arguments.option("--no-measure", is_flag=True, section="Machine", help="Leave out the ceilings, which take a second.")
@arguments.as_json
def doctor(no_measure: bool, as_json: bool) -> None:
    """Say which engines run on which device and, of those that do not, why not and what to install.

    Ceilings are what this machine copies and multiplies at most, measured now: no decode is faster than they allow.

    \b
    widefield doctor
    widefield doctor --json --no-measure
    """
    about = examine(measure=not no_measure)
    if as_json:
        print_json(about)
        return
    machine = about["machine"]
    click.echo(f"widefield {__version__}, Python {machine['python']}, {machine['system']}")
    click.echo(f"{machine['processor']}, {about['cores']} cores to use")
    driver = about["driver"]
    click.echo(
        f"NVIDIA driver for CUDA {driver['cuda']}: {', '.join(driver['gpus'])}" if driver["cuda"] else driver["why"]
    )
    for verdict in about["engines"]:
        click.echo(_line(verdict))
    for name, ceiling in about["ceilings"].items():
        click.echo(
            f"{name}: copies {ceiling['copy_gbps']:.3g} GB/s, multiplies {ceiling['product_gflops']:.4g} GFLOP/s"
        )


def _line(verdict: dict[str, Any]) -> str:
    where = f"{verdict['engine']} on {verdict['device']}"
    if verdict["works"]:
        return f"{where:<18} works ({verdict['version']})"
    return f"{where:<18} does not: {verdict['why']}; {verdict['install']}"


def examine(*, measure: bool) -> dict[str, Any]:
    """All of it, as --json prints it."""
    from widefield.engine.available import find_driver, machine, verdicts

    driver = find_driver()
    cuda = None if driver.cuda is None else f"{driver.cuda[0]}.{driver.cuda[1]}"
    found = verdicts(driver)
    return {
        "widefield": __version__,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "driver": {"cuda": cuda, "gpus": list(driver.gpus), "why": driver.why},
        "engines": [verdict.as_dict() for verdict in found],
        "kernels": _kernels(bool(driver.gpus)),
        "ceilings": _ceilings(any(v.works and v.device != "cpu" for v in found)) if measure else {},
    }


def _kernels(launches: bool) -> dict[str, Any]:
    """For which capabilities there are compiled kernels, and whether there is a GPU to launch them on."""
    from widefield_kernels.manifest import KernelFault, read_manifest

    try:
        manifest = read_manifest()
    except KernelFault as fault:
        return {"capabilities": [], "why": str(fault), "launches": launches}
    return {"capabilities": list(manifest.capabilities), "why": "", "launches": launches}


def _ceilings(gpu: bool) -> dict[str, dict[str, float]]:
    import numpy as np

    a = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    source = np.ones(COPY_NBYTES // 4, np.float32)
    target = np.zeros_like(source)
    found = {"cpu, float32": _speeds(lambda: np.copyto(target, source), lambda: a @ a, lambda: None, COPY_NBYTES, SIDE)}
    if gpu and importlib.util.find_spec("torch") is not None:
        found["cuda:0, bf16"] = _gpu_speeds()
    return found


def _gpu_speeds() -> dict[str, float]:
    import torch

    if not torch.cuda.is_available():
        return {"copy_gbps": float("nan"), "product_gflops": float("nan")}
    side, nbytes = 8192, 1 << 30
    a = torch.randn(side, side, device="cuda").bfloat16()
    source = torch.ones(nbytes // 4, device="cuda")
    target = torch.empty_like(source)
    return _speeds(lambda: target.copy_(source), lambda: a @ a, torch.cuda.synchronize, nbytes, side)


def _speeds(
    copy: Callable[[], Any], product: Callable[[], Any], wait: Callable[[], Any], nbytes: int, side: int
) -> dict[str, float]:
    """A copy reads and writes; a product of two (side, side) matrices is 2 side^3 operations. The best of five."""
    return {
        "copy_gbps": 2 * nbytes / _best(copy, wait) / 1e9,
        "product_gflops": 2 * side**3 / _best(product, wait) / 1e9,
    }


def _best(run: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Seconds."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run()
        wait()
        times.append(time.perf_counter() - began)
    return max(1e-9, min(times))
