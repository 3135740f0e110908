"""Train the small pipeline's autoencoder on procedural worlds; train_flow.py trains the rest on its latents.

A pool of pictures is kept in memory and one is replaced every few steps, so drawing does not bound the training; which
picture is where follows from the step alone, so a resumed run draws the same ones.

Units    side: pixels; _px: pixels of a batch; _share: of the run.

    python -m widefield_export.train_worlds --out FOLDER --minutes 60 --seed 0 [--resume] [--sheet SHEET.png]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from widefield.errors import WidefieldError
from widefield_export.reconstruction import contact_sheet, psnr, reconstruct
from widefield_export.small_pipeline import autoencoder_losses, build_autoencoder, principal_components
from widefield_export.training_run import Run, RunOptions
from widefield_export.worlds.pictures import draw_picture

MODULE = "widefield_export.train_worlds"
ENCODER = ("encoder.", "quant_conv.")
UNSEEN = 1_000_003  # added to the seed of pictures that training never draws


@dataclass(frozen=True, slots=True)
class AutoencoderOptions(RunOptions):
    """A run of the autoencoder."""

    peak_rate: float = 2e-3
    latent_channels: int = 8
    channels: tuple[int, ...] = (16, 32, 64, 96)
    sheet: Path | None = None  # a PNG: originals above reconstructions
    pool: int = 512
    pool_side: int = 256
    new_every: int = 4  # steps from one new picture to the next
    batch_px: int = 8 * 64 * 64
    sides: tuple[int, ...] = (64, 96, 128, 192)
    side_odds: tuple[float, ...] = (0.5, 0.3, 0.12, 0.08)
    anchor_share: float = 0.5  # of the run until the anchor rests at `anchor_floor`
    anchor_floor: float = 0.01
    decoder_only: bool = False  # denoisers trained on the latents stay valid
    basis: int = 48  # pictures that the principal components are of
    checks: int = 24


class AutoencoderRun(Run):
    """Random parts of the pool's pictures, flipped and turned, in batches of one size."""

    def __init__(self, options: AutoencoderOptions) -> None:
        torch.manual_seed(options.seed)
        super().__init__(options, build_autoencoder(options.latent_channels, options.channels), MODULE)
        self.given = options
        self.rng = np.random.default_rng(options.seed)
        self.drawn, self.square = options.pool, 0.1
        if options.resume:
            state = self.restore()
            self.rng.bit_generator.state = state["numpy"]
            self.drawn = state["drawn"]
        shape = (options.pool, options.pool_side, options.pool_side, 3)
        self.pixels: NDArray[np.uint8] = np.empty(shape, np.uint8)
        if options.decoder_only:
            self.freeze_encoder(options.out / "vae")
        for index in range(self.drawn - options.pool, self.drawn):
            self.draw(index)
        first = [draw_picture(options.seed + UNSEEN + 1, k, options.pool_side).pixels for k in range(options.basis)]
        pixels = torch.from_numpy(np.stack(first)).permute(0, 3, 1, 2).to(options.device) / 127.5 - 1
        self.components = principal_components(pixels, options.latent_channels)
        self.checks = [draw_picture(options.seed + UNSEEN, k, options.pool_side).pixels for k in range(options.checks)]

    def freeze_encoder(self, folder: Path) -> None:
        """Take the averaged encoder that `folder` holds, with its scale, and train the decoder alone from here on."""
        from diffusers import AutoencoderKL

        saved = AutoencoderKL.from_pretrained(folder, local_files_only=True)
        for model in (self.model, self.ema):
            own: Any = model
            own.load_state_dict({**own.state_dict(), **encoder_weights(saved)})
            own.register_to_config(scaling_factor=saved.config.scaling_factor)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(not name.startswith(ENCODER))

    def draw(self, index: int) -> None:
        """Put picture `index` into its place of the pool."""
        options = self.given
        self.pixels[index % options.pool] = draw_picture(options.seed, index, options.pool_side).pixels

    def batch(self) -> torch.Tensor:
        """(n, 3, side, side) in [-1, 1], channels last."""
        options, rng = self.given, self.rng
        side = int(rng.choice(options.sides, p=options.side_odds))
        crops = []
        for _ in range(max(1, round(options.batch_px / side**2))):
            k, y, x, turn = rng.integers((options.pool, *(options.pool_side - side + 1,) * 2, 8))
            crop = self.pixels[k, y : y + side, x : x + side]
            crops.append(np.rot90(crop[::-1] if turn > 3 else crop, turn))
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return (pixels.to(options.device).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    def train_step(self) -> None:
        """One batch, and now and then a new picture."""
        if self.step % self.given.new_every == 0:
            self.draw(self.drawn)
            self.drawn += 1
        anchor = max(self.given.anchor_floor, 1 - self.progress() / self.given.anchor_share)
        loss, square = autoencoder_losses(self.model, self.batch(), self.components, anchor)
        self.square = 0.98 * self.square + 0.02 * float(square)
        self.descend(loss)

    @torch.no_grad()
    def write(self) -> dict[str, Any]:
        """The averaged weights in diffusers' layout; PSNR of unseen pictures, the moments of their latents."""
        originals = [np.asarray(check / np.float32(255), np.float32) for check in self.checks]
        pairs = [(picture, reconstruct(self.ema, picture)) for picture in originals]
        stacked = torch.from_numpy(np.stack(originals)).permute(0, 3, 1, 2).to(self.options.device) * 2 - 1
        model: Any = self.ema
        latents = torch.cat([model.encode(x).latent_dist.mean for x in torch.split(stacked, 4)])
        decibels = [psnr(*pair) for pair in pairs]
        error = float(np.mean([np.mean((a - b) ** 2) for a, b in pairs]))
        if not self.given.decoder_only:
            model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
        model.save_pretrained(self.options.out / "vae")
        if self.given.sheet is not None:
            contact_sheet(pairs[:12]).save(self.given.sheet)
        return {
            "psnr_db_mean": round(float(np.mean(decibels)), 2),
            "psnr_db_of_mean_error": round(-10 * float(np.log10(error)), 2),
            "psnr_db_training": round(-10 * float(np.log10(self.square / 4)), 2),
            "psnr_db_lowest": round(min(decibels), 2),
            "latent_std": [round(s, 3) for s in latents.std((0, 2, 3)).tolist()],
            "latent_mean": [round(m, 3) for m in latents.mean((0, 2, 3)).tolist()],
        }

    def state(self) -> dict[str, Any]:
        return {**super().state(), "numpy": self.rng.bit_generator.state, "drawn": self.drawn}


def encoder_weights(model: Any) -> dict[str, torch.Tensor]:
    """What makes latents of pictures."""
    return {name: weight for name, weight in model.state_dict().items() if name.startswith(ENCODER)}


def parse(argv: list[str] | None = None) -> AutoencoderOptions:
    """The command line as options."""
    defaults = AutoencoderOptions(Path())
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="length, earlier ones included")
    parser.add_argument("--steps", type=int, default=0, help="length in steps, instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--latent-channels", type=int, default=defaults.latent_channels, help="(%(default)s)")
    parser.add_argument("--decoder-only", action="store_true", help="leave the encoder as OUT/vae has it")
    parser.add_argument("--sheet", type=Path, help="PNG of originals above reconstructions")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    return AutoencoderOptions(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Train, and print the card on stdout."""
    options = parse(argv)
    try:
        AutoencoderRun(options).run()
    except WidefieldError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return 1
    print((options.out / "training.json").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
