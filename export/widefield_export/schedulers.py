"""Schedulers of diffusers to the tables of widefield.schedule, by asking them.

A scheduler is a linear map as long as it neither clips nor thresholds. At every step of a run x, m and n are fresh unit
vectors, so what comes back from `step` holds the coefficients: of this step's, of the step before's (the history that a
multistep sampler keeps), and of older ones, which no table has room for. The probe's tensors stay in float64 where
a scheduler casts to float32. Then runs on large random numbers must agree with the table to `LINEAR`, or it is refused.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from widefield.errors import BadCheckpoint
from widefield.schedule import COLUMNS, Schedule, update

SUPPORTED = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "DPMSolverMultistepScheduler",
    "FlowMatchEulerDiscreteScheduler",
)
COUNTS = (*range(1, 51), 60, 75, 100)
LINEAR = 1e-9  # of the largest number in a run, in float64
_HUGE = 1e3  # deviation of the random probes: no clip is that wide

Arguments = Callable[[int], Mapping[str, Any]]


class _Exact(Tensor):
    """A float64 tensor that no cast makes shorter."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.to, Tensor.float, Tensor.half):
            return args[0]
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def _exact(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.copy()).as_subclass(_Exact)


@contextmanager
def _noise_of(scheduler: Any, noise: list[Tensor]) -> Iterator[None]:
    """Let the scheduler's module draw `noise[0]` whenever it asks for noise."""
    module: Any = sys.modules[type(scheduler).__module__]
    drawn = getattr(module, "randn_tensor", None)
    module.randn_tensor = lambda *_, **__: noise[0]
    try:
        yield
    finally:
        if drawn is None:
            del module.randn_tensor
        else:
            module.randn_tensor = drawn


def probe(scheduler: Any, *, counts: Iterable[int] = COUNTS, arguments: Arguments | None = None) -> Schedule:
    """The tables of a diffusers scheduler for every number of steps in `counts` that it allows.

    `arguments` gives what a pipeline passes to `set_timesteps` for a number of steps; by default the number alone.
    BadCheckpoint, by the scheduler's name, for one that is unknown, not linear, or needs more history than one step.
    """
    name = type(scheduler).__name__
    if name not in SUPPORTED:
        raise BadCheckpoint(
            f"found {name}, which is not known to be a linear rule with a history of one step; wanted one of "
            f"{', '.join(SUPPORTED)}; export with --sampler and one of these"
        )
    tables: dict[int, NDArray[np.float64]] = {}
    initial: dict[int, float] = {}
    for count in counts:
        ready = _prepared(scheduler, count, arguments)
        if ready is None:
            continue
        tables[count] = _rounded(_table(ready, count))
        initial[count] = float(f"{float(getattr(ready, 'init_noise_sigma', 1.0)):.12g}")
    if not tables:
        raise BadCheckpoint(f"{name} allows none of the asked numbers of steps; mend its config")
    found = Schedule(name, tables, initial)
    for count in tables:
        _verify(found, _prepared(scheduler, count, arguments), count)
    return found


def _prepared(scheduler: Any, count: int, arguments: Arguments | None) -> Any:
    """A copy with its timesteps set and its own arrays in float64; None where it cannot run `count` steps."""
    ready = copy.deepcopy(scheduler)
    asked = arguments(count) if arguments else {"num_inference_steps": count}
    try:
        ready.set_timesteps(**asked)
    except ValueError:  # LCM and TCD: more steps than they were distilled for
        return None
    if len(ready.timesteps) != count:
        raise BadCheckpoint(
            f"{type(ready).__name__} asks the model {len(ready.timesteps)} times in {count} steps; wanted once a step; "
            "export with another --sampler"
        )
    for key, value in vars(ready).items():
        if isinstance(value, Tensor) and value.dtype == torch.float32 and key != "timesteps":
            setattr(ready, key, value.double())
    return ready


def _started(ready: Any, index: int) -> Any:
    """A copy that is about to take step `index` as its first. Its lists, in which a history is kept, are its own;
    tables and timesteps, which no step writes to, are shared."""
    fresh = copy.copy(ready)
    vars(fresh).update({key: value.copy() for key, value in vars(ready).items() if isinstance(value, list)})
    if hasattr(fresh, "set_begin_index"):
        fresh.set_begin_index(index)
    return fresh


def _call(scheduler: Any, m: Tensor, index: int, x: Tensor) -> NDArray[np.float64]:
    timestep = scheduler.timesteps[index]
    scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else None
    stepped: Tensor = scheduler.step(m, timestep, x, return_dict=False)[0]
    return np.asarray(stepped.detach().as_subclass(Tensor), np.float64)


def _rounded(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """To twelve digits: kinds of processors differ in the last two, and equal checkpoints shall make equal bundles."""
    return np.array([[float(f"{value:.12g}") for value in row] for row in table])


def _table(ready: Any, count: int) -> NDArray[np.float64]:
    """One run of `count` steps over unit vectors, and one first step from every place that a run may start at."""
    table = np.zeros((count, len(COLUMNS)))
    basis = np.eye(3 * count).reshape(count, 3, 1, 3 * count, 1, 1)  # (step, x m n, 1, vector, 1, 1)
    noise = [torch.empty(0)]
    running = _started(ready, 0)
    with _noise_of(ready, noise):
        for i in range(count):
            x, m, noise[0] = (_exact(v) for v in basis[i])
            found = _call(running, m, i, x).reshape(count, 3)
            _refuse_memory(ready, found, i)
            a, b, c = found[i]
            if i:
                table[i - 1, 5:7] = found[i - 1, :2]
            first = _started(ready, i)
            first_a, first_b, first_c = _call(first, m, i, x).reshape(count, 3)[i]
            if abs(first_c - c) > LINEAR:
                raise _too_much(ready, "adds other noise where a run starts")
            keep, deviation = _noised(_started(ready, i), i)
            timestep = float(ready.timesteps[i])
            table[i] = (timestep, _input_scale(ready, i), a, b, c, 0, 0, first_a, first_b, keep, deviation)
    return table


def _refuse_memory(scheduler: Any, found: NDArray[np.float64], i: int) -> None:
    older = found[: max(i - 1, 0)]
    if np.abs(older).max(initial=0.0) > LINEAR:
        raise _too_much(scheduler, "keeps more than the step before")
    if i and abs(found[i - 1, 2]) > LINEAR:
        raise _too_much(scheduler, "keeps its noise")


def _too_much(scheduler: Any, what: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{type(scheduler).__name__} with this config {what}; wanted x' = a x + b m + c n and one step of history; "
        "export with another --sampler"
    )


def _input_scale(ready: Any, index: int) -> float:
    """What the sample is multiplied by before the model sees it."""
    if not hasattr(ready, "scale_model_input"):
        return 1.0
    scaled = _started(ready, index).scale_model_input(_exact(np.ones((1, 1, 1, 1))), ready.timesteps[index])
    return float(scaled.as_subclass(Tensor))


def _noised(fresh: Any, index: int) -> tuple[float, float]:
    """(of the clean latent, of the noise) where a run starts at step `index`."""
    timestep = fresh.timesteps[index : index + 1]
    clean, noise = (_exact(v) for v in np.eye(2).reshape(2, 1, 2, 1, 1))
    if hasattr(fresh, "scale_noise"):
        mixed = fresh.scale_noise(clean, timestep, noise)
    else:
        mixed = fresh.add_noise(clean, noise, timestep)
    keep, deviation = mixed.as_subclass(Tensor).reshape(2).tolist()
    return float(keep), float(deviation)


def _verify(found: Schedule, ready: Any, count: int) -> None:
    """Run scheduler and table on large random numbers; BadCheckpoint where they part."""
    rng = np.random.default_rng(count)
    x = rng.standard_normal((1, 7, 1, 1)) * _HUGE
    run = found.run(count)
    scheduler, theirs, ours, history = _started(ready, 0), x, x, None
    largest = np.abs(x).max()
    noise = [torch.empty(0)]
    with _noise_of(ready, noise):
        for i, step in enumerate(run.steps):
            m, n = rng.standard_normal((2, 1, 7, 1, 1)) * _HUGE
            noise[0] = _exact(n)
            theirs = _call(scheduler, _exact(m), i, _exact(theirs))
            ours, history = update(step, ours, m, n, history)  # type: ignore[assignment]
            largest = max(largest, np.abs(theirs).max())
    if not np.abs(ours - theirs).max() <= LINEAR * largest:
        raise _too_much(ready, "clips, thresholds or otherwise bends what it is given")


def dynamic_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The `mu` of a flow scheduler whose shift grows with the picture: linear in the number of image tokens.

    Source: the same line in the pipelines of FLUX.1 and Stable Diffusion 3; the config's defaults are the scheduler's.
    """
    base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (most - base)
    return float(tokens * slope + low - slope * base)


def pipeline_arguments(scheduler: Any, *, tokens: int, sigmas: bool) -> Arguments:
    """What a pipeline passes to `set_timesteps`: `sigmas` for FLUX.1's own even ones, mu where the shift is dynamic."""
    config = scheduler.config
    allowed = inspect.signature(scheduler.set_timesteps).parameters

    def arguments(count: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"num_inference_steps": count}
        if sigmas and "sigmas" in allowed and not config.get("use_flow_sigmas"):
            asked = {"sigmas": np.linspace(1.0, 1 / count, count)}
        if config.get("use_dynamic_shifting") and "mu" in allowed:
            asked["mu"] = dynamic_shift(config, tokens)
        return asked

    return arguments
