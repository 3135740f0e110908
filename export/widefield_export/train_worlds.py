"""Train the small pipeline's autoencoder on procedural worlds; train_flow.py trains the rest on its latents.

A pool of pictures is kept in memory and one is replaced every few steps, so drawing does not bound the training; which
picture is where follows from the step alone, so a resumed run draws the same ones.

Units    side: pixels; _px: pixels of a batch; _share: of the run.

    python -m widefield_export.train_worlds --out FOLDER --minutes 60 --seed 0 [--resume] [--sheet SHEET.png]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from widefield_export.linear_decoder import make_linear_decoder
from widefield_export.linear_encoder import make_linear, principal_components
from widefield_export.reconstruction import contact_sheet, psnr, reconstruct
from widefield_export.small_pipeline import autoencoder_losses, build_autoencoder
from widefield_export.training_run import Run, RunOptions, finished, run_parser
from widefield_export.worlds.pictures import draw_picture

MODULE = "widefield_export.train_worlds"
ENCODER = ("encoder.", "quant_conv.")
UNSEEN = 1_000_003  # added to the seed of pictures that training never draws


@dataclass(frozen=True, slots=True)
class AutoencoderOptions(RunOptions):
    """A run of the autoencoder."""

    peak_rate: float = 2e-4
    latent_channels: int = 8
    channels: tuple[int, ...] = (16, 32, 64, 96)
    sheet: Path | None = None  # a PNG: originals above reconstructions
    pool: int = 512
    pool_side: int = 256
    new_every: int = 4  # steps from one new picture to the next
    batch_px: int = 8 * 64 * 64
    sides: tuple[int, ...] = (64, 96, 128, 192)
    side_odds: tuple[float, ...] = (0.5, 0.3, 0.12, 0.08)
    decoder_only: bool = False  # denoisers trained on the latents stay valid
    basis: int = 160  # pictures that the principal components are of
    fitted: int = 64  # of them that the linear decoder is fitted to
    fitted_px: int = 128  # side of the part of these that it is fitted to
    checks: int = 24


class AutoencoderRun(Run):
    """Random parts of the pool's pictures, flipped and turned, in batches of one size."""

    def __init__(self, options: AutoencoderOptions) -> None:
        torch.manual_seed(options.seed)
        model = build_autoencoder(options.latent_channels, options.channels)
        if not options.resume:
            pixels = self.first_pictures(options)
            components = principal_components(pixels, options.latent_channels)
            make_linear(model.encoder, components)
            fitted = pixels[: options.fitted, :, : options.fitted_px, : options.fitted_px]
            make_linear_decoder(model.decoder, components, fitted)
        super().__init__(options, model, MODULE)
        self.given = options
        self.rng = np.random.default_rng(options.seed)
        self.drawn, self.square, self.scaling = options.pool, 0.1, 1.0
        if options.resume:
            state = self.restore()
            self.rng.bit_generator.state = state["numpy"]
            self.drawn, self.scaling = state["drawn"], state["scaling"]
        shape = (options.pool, options.pool_side, options.pool_side, 3)
        self.pixels: NDArray[np.uint8] = np.empty(shape, np.uint8)
        if options.decoder_only:
            self.freeze_encoder()
        for index in range(self.drawn - options.pool, self.drawn):
            self.draw(index)
        self.checks = [draw_picture(options.seed + UNSEEN, k, options.pool_side).pixels for k in range(options.checks)]

    @staticmethod
    def first_pictures(options: AutoencoderOptions) -> torch.Tensor:
        """Pictures that neither training nor its checks see, for the components: (n, 3, side, side) in [-1, 1]."""
        seed, side = options.seed + UNSEEN + 1, options.pool_side
        pictures = [draw_picture(seed, index, side).pixels for index in range(options.basis)]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1

    def freeze_encoder(self) -> None:
        """Take the averaged encoder, and train the decoder alone from here on."""
        model: Any = self.model
        model.load_state_dict({**model.state_dict(), **encoder_weights(self.ema)})
        for name, weight in model.named_parameters():
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
        if self.step == 0:
            self.save()  # the latents mean something already
        if self.step % self.given.new_every == 0:
            self.draw(self.drawn)
            self.drawn += 1
        loss, square = autoencoder_losses(self.model, self.batch())
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
        if self.step == 0 or not self.given.decoder_only:
            self.scaling = round(1 / float(latents.std()), 5)
        model.register_to_config(scaling_factor=self.scaling)
        part = self.options.out / "vae.part"
        model.save_pretrained(part)
        (self.options.out / "vae").mkdir(exist_ok=True)
        for path in part.iterdir():  # a denoiser's run may be reading them
            path.replace(self.options.out / "vae" / path.name)
        part.rmdir()
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
        return {**super().state(), "numpy": self.rng.bit_generator.state, "drawn": self.drawn, "scaling": self.scaling}


def encoder_weights(model: Any) -> dict[str, torch.Tensor]:
    """What makes latents of pictures."""
    return {name: weight for name, weight in model.state_dict().items() if name.startswith(ENCODER)}


def parse(argv: list[str] | None = None) -> AutoencoderOptions:
    """The command line as options."""
    defaults = AutoencoderOptions(Path())
    parser = run_parser(MODULE, __doc__, defaults)
    parser.add_argument("--latent-channels", type=int, default=defaults.latent_channels, help="(%(default)s)")
    parser.add_argument("--decoder-only", action="store_true", help="train no encoder: leave it linear, or as it was")
    parser.add_argument("--sheet", type=Path, help="PNG of originals above reconstructions")
    return AutoencoderOptions(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Train, and print the card on stdout."""
    options = parse(argv)
    return finished(lambda: AutoencoderRun(options).run(), options.out)


if __name__ == "__main__":
    sys.exit(main())
