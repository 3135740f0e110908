"""Train the embedded autoencoder on the photographs that scikit-image's wheel holds, and on drawn pictures.

The first steps are many and cheap: small batches of small pictures, with the colours anchored (see
small_autoencoder.py). The rate follows half a cosine; what is saved is the running average of the weights.

Units    side: pixels; _px: pixels of a batch; _share: of the run. Nothing is ever downloaded.

    python -m widefield_export.train_autoencoder --minutes 50 --out export/embedded --seed 0 [--resume]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from widefield.errors import BadRequest
from widefield_export.reconstruction import contact_sheet, psnr, reconstruct
from widefield_export.small_autoencoder import build_autoencoder, losses
from widefield_export.training_pictures import Scenes, held_out_crops
from widefield_export.training_run import cpu_model, finished, update_ema

MODULE = "widefield_export.train_autoencoder"


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What a run is asked to do; the command line takes its defaults from an instance."""

    out: Path = Path("export/embedded")
    minutes: float = 50.0
    steps: int = 0  # when above 0, the run's length in steps instead of minutes
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    resume: bool = False
    sheet: Path | None = None  # a PNG: originals above reconstructions
    save_every_minutes: float = 3.0
    batch_px: int = 6 * 96 * 96  # pixels of a batch, whatever its side
    early_share: float = 0.35
    anchor_share: float = 0.35
    early_px: int = 6 * 64 * 64
    early_side: int = 64
    sides: tuple[int, ...] = (96, 128, 192, 256)
    side_odds: tuple[float, ...] = (0.6, 0.25, 0.1, 0.05)
    channels: tuple[int, ...] = (16, 32, 48, 80)
    learning_rate: float = 1.5e-3
    ema: float = 0.998


def learning_rate(options: TrainOptions, step: int, progress: float) -> float:
    """A warm-up of 100 steps, then half a cosine from the peak to a hundredth of it; progress in [0, 1]."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return options.learning_rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * cosine)


class Trainer:
    """Owns the weights, their average, the optimiser and the clocks, and saves and restores all of them."""

    def __init__(self, options: TrainOptions) -> None:
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        self.options = options
        self.model = build_autoencoder(options.channels).to(options.device)
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0)
        self.rng = np.random.default_rng(options.seed)
        self.scenes, self.crops = Scenes(), held_out_crops()
        self.step, self.seconds, self.commands = 0, 0.0, [shlex.join(["python", "-m", MODULE, *sys.argv[1:]])]
        if options.resume:
            path = options.out / "state.pt"
            if not path.exists():
                raise BadRequest(f"nothing to resume: {path} is missing; train without --resume first")
            self.restore(torch.load(path, map_location=options.device, weights_only=True))

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `save` wrote, the processor's generators included."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(state["torch"].cpu())
        self.step, self.seconds = state["step"], state["seconds"]
        self.commands = [*state["commands"], *self.commands]

    def progress(self) -> float:
        """The share of the run that is done, in steps or in minutes."""
        done, total = (
            (self.step, self.options.steps) if self.options.steps else (self.seconds / 60, self.options.minutes)
        )
        return done / total

    def train_step(self) -> tuple[float, float]:
        """One batch of one side; the loss and its L1 term."""
        side, batch_px = int(self.rng.choice(self.options.sides, p=self.options.side_odds)), self.options.batch_px
        if self.progress() < self.options.early_share:
            side, batch_px = self.options.early_side, self.options.early_px
        pixels = self.scenes.batch(self.rng, max(1, round(batch_px / side**2)), side).to(self.options.device)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.options, self.step, self.progress())
        loss, l1 = losses(self.model, pixels, 1 - self.progress() / self.options.anchor_share)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):  # a step that cannot be trusted is not taken
            self.optimizer.step()
            update_ema(self.ema, self.model, min(self.options.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return float(loss.detach()), float(l1)

    def run(self) -> None:
        """Train until the run's length is reached; log every 50 steps, save every few minutes and at the end."""
        started, before = time.perf_counter(), self.seconds
        saved = self.seconds
        while self.progress() < 1:
            loss, l1 = self.train_step()
            self.seconds = before + time.perf_counter() - started
            if self.step % 50 == 0:
                print(
                    f"step {self.step}  {self.seconds:.0f} s  loss {loss:.4f}  l1 {l1:.4f}", file=sys.stderr, flush=True
                )
            if self.seconds - saved > 60 * self.options.save_every_minutes and self.progress() < 1:
                saved = self.seconds
                self.save()
        self.save()

    @torch.no_grad()
    def latent_moments(self, batches: int = 16) -> tuple[float, list[float], list[float]]:
        """Deviation over all, then mean and deviation of each channel, over fresh training pictures."""
        rng = np.random.default_rng(self.options.seed + 1)
        side = self.options.sides[0]
        pixels = [self.scenes.batch(rng, 8, side).to(self.options.device) for _ in range(batches)]
        latents = torch.cat([self.ema.encode(p).latent_dist.mean for p in pixels]).transpose(0, 1).flatten(1)
        return float(latents.std()), latents.mean(1).tolist(), latents.std(1).tolist()

    def save(self) -> None:
        """Write the averaged weights, training.json, the contact sheet and the state; each file appears whole."""
        deviation, means, deviations = self.latent_moments()
        self.ema.register_to_config(scaling_factor=round(1 / deviation, 5), shift_factor=None)
        pairs = {name: (crop, reconstruct(self.ema, crop)) for name, crop in self.crops.items()}
        decibels = {name: round(psnr(*pair), 2) for name, pair in pairs.items()}
        print(f"step {self.step}  latent std {deviation:.3f}  PSNR {decibels}", file=sys.stderr, flush=True)
        report = {
            "commands": self.commands,
            "seed": self.options.seed,
            "machine": {"cpu": cpu_model(), "device": self.options.device, "threads": self.options.threads},
            "versions": {name: version(name) for name in ("torch", "diffusers", "numpy", "scikit-image", "pillow")},
            "python": platform.python_version(),
            "wall_s": round(self.seconds),
            "steps": self.step,
            "finished": self.progress() >= 1,
            "parameters": sum(p.numel() for p in self.ema.parameters()),
            "latent_mean": [round(m, 4) for m in means],
            "latent_std": [round(d, 4) for d in deviations],
            "psnr_db": decibels,
        }
        self.options.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.options.out) as folder:
            self.ema.save_pretrained(folder)
            Path(folder, "training.json").write_text(json.dumps(report, indent=2) + "\n")
            torch.save(self.state(), Path(folder, "state.pt"))
            for path in Path(folder).iterdir():
                path.chmod(0o644)
                path.replace(self.options.out / path.name)
        if self.options.sheet is not None:
            contact_sheet(pairs.values()).save(self.options.sheet)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "numpy": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "step": self.step,
            "seconds": self.seconds,
            "commands": self.commands,
        }


def parse(argv: list[str] | None = None) -> TrainOptions:
    """The command line as options."""
    defaults = TrainOptions()
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=defaults.out, help="folder to write (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=defaults.minutes, help="length, earlier ones included (%(default)s)"
    )
    parser.add_argument("--steps", type=int, default=defaults.steps, help="length in steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=defaults.threads, help="processor threads (%(default)s)")
    parser.add_argument("--anchor-share", type=float, default=defaults.anchor_share, help="of the run (%(default)s)")
    parser.add_argument("--device", default=defaults.device, help="cpu or cuda (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="PNG of originals above reconstructions")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    return TrainOptions(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Train, and print the report of training.json on stdout."""
    options = parse(argv)
    return finished(lambda: Trainer(options).run(), options.out)


if __name__ == "__main__":
    sys.exit(main())
