"""What every training run has: a length in minutes or steps, a rate that follows it, averaged weights, a saved state.

    rate = peak * warm-up * 1 until COOL of the run is done, then linearly down to a fiftieth of the peak

A run's length may be raised when it is resumed: the rate goes up again, and nothing is lost.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import shlex
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from widefield.engine.available import processor
from widefield.errors import BadRequest, WidefieldError

COOL = 0.75
WARM_STEPS = 200


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What any run is asked to do; the command line takes its defaults from an instance."""

    out: Path
    minutes: float = 60.0
    steps: int = 0  # when above 0, the run's length in steps instead of minutes
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    resume: bool = False
    save_every_minutes: float = 4.0
    peak_rate: float = 1e-3
    ema: float = 0.999


def run_parser(module: str, about: str | None, defaults: RunOptions) -> argparse.ArgumentParser:
    """A parser of what any run is asked; a script adds its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="length, earlier ones included")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="length in steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(%(default)s)")
    parser.add_argument("--peak-rate", type=float, default=defaults.peak_rate, help="learning rate (%(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="processor threads (%(default)s)")
    parser.add_argument("--device", default=defaults.device, help="cpu or cuda (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    return parser


def finished(train: Callable[[], None], out: Path) -> int:
    """Train, and print the card on stdout; a user's mistake is one line and 1."""
    try:
        train()
    except WidefieldError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    print((out / "training.json").read_text(), end="")
    return 0


def rate_at(peak: float, step: int, progress: float) -> float:
    """The learning rate at a step; progress in [0, 1] of the run."""
    cooled = min(1.0, max(0.0, (1 - progress) / (1 - COOL)))
    return peak * min(1.0, (step + 1) / WARM_STEPS) * (0.02 + 0.98 * cooled)


def update_ema(ema: Any, model: Any, decay: float) -> None:
    """Move the averaged weights towards the trained ones, in place."""
    with torch.no_grad():
        for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


@contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Within, SIGINT and SIGTERM call `act`, also where a shell started the process with them ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: act()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run(ABC):
    """Modules, their averages, an optimiser and the clocks; saves and restores all of them."""

    def __init__(self, options: RunOptions, model: torch.nn.Module, module: str) -> None:
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.options = options
        self.model = model.to(options.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0, fused=True
        )
        self.step, self.seconds, self.loss = 0, 0.0, 0.0
        self.commands = [shlex.join(["python", "-m", module, *sys.argv[1:]])]
        self.history: list[dict[str, float]] = []

    def progress(self) -> float:
        """The share of the run that is done, in steps or in minutes."""
        if self.options.steps:
            return self.step / self.options.steps
        return self.seconds / 60 / self.options.minutes

    def descend(self, loss: torch.Tensor) -> None:
        """One step of the optimiser and of the averages; a step whose gradient is not finite is not taken."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.options.peak_rate, self.step, self.progress())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
            update_ema(self.ema, self.model, min(self.options.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        share = 0.98 if self.loss else 0.0
        self.loss = share * self.loss + (1 - share) * float(loss.detach())

    @abstractmethod
    def train_step(self) -> None:
        """Draw a batch, and `descend` on its loss."""

    @abstractmethod
    def write(self) -> dict[str, Any]:
        """Write what the run makes, and give what its card should say."""

    def run(self) -> None:
        """Train until the run's length is reached; log every 50 steps, save every few minutes and at the end.

        SIGINT and SIGTERM end it after the current step, saved.
        """
        started, before, saved = time.perf_counter(), self.seconds, self.seconds
        asked = threading.Event()
        with on_signals(asked.set):
            self._train(asked, started, before, saved)
        self.save()

    def _train(self, asked: threading.Event, started: float, before: float, saved: float) -> None:
        while self.progress() < 1 and not asked.is_set():
            self.train_step()
            self.seconds = before + time.perf_counter() - started
            if self.step % 50 == 0:
                print(f"step {self.step}  {self.seconds:.0f} s  loss {self.loss:.4f}", file=sys.stderr, flush=True)
            if self.seconds - saved > 60 * self.options.save_every_minutes and self.progress() < 1:
                self.save()
                saved = self.seconds = before + time.perf_counter() - started

    def save(self) -> None:
        """The results, their card, then the state; each file appears whole, the state last."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        report = self.write()
        self.history.append({"step": self.step, "seconds": round(self.seconds), "loss": round(self.loss, 5)})
        card = {
            "commands": self.commands,
            "seed": self.options.seed,
            "machine": {"cpu": processor(), "device": self.options.device, "threads": self.options.threads},
            "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
            "python": platform.python_version(),
            "wall_s": round(self.seconds),
            "steps": self.step,
            "finished": self.progress() >= 1,
            "parameters": sum(p.numel() for p in self.ema.parameters()),
            **report,
            "history": self.history,
        }
        print(f"step {self.step}  {json.dumps(report)}", file=sys.stderr, flush=True)
        (self.options.out / "training.json").write_text(json.dumps(card, indent=2) + "\n")
        whole = self.options.out / "state.pt.part"
        torch.save(self.state(), whole)
        whole.replace(self.options.out / "state.pt")

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; a run that owns more adds to it."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "clock": [self.step, self.seconds, self.loss],
            "commands": self.commands,
            "history": self.history,
        }

    def restore(self) -> dict[str, Any]:
        """Go on from what `save` wrote; gives the state, for what else is in it."""
        path = self.options.out / "state.pt"
        if not path.exists():
            raise BadRequest(f"nothing to resume: {path} is missing; train without --resume first")
        state: dict[str, Any] = torch.load(path, map_location=self.options.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["torch"].cpu())
        step, self.seconds, self.loss = state["clock"]
        self.step = int(step)
        self.commands = [*state["commands"], *self.commands]
        self.history = state["history"]
        return state
