"""Train the small pipeline's text encoder and denoiser as a rectified flow over latents of procedural worlds.

    x_t = (1 - t) (x + l(t) (c - x)) + t n,   loss = mean (f(x_t, 1000 t, caption) - v)^2,   v = (x_t - x) / t
    x = latents * scaling_factor, n normal, t = sigmoid(normal + 0.4), or uniform for one picture in four,
    and 0.65 t for two close views in three

A cascade's deeper levels start from a strength: from c, what the level below shows, enlarged, encoded and noised. Half
of these views are therefore trained to come from it, l(t) = (t - 0.2) / 0.4 within 0 and 1; for all others l = 0, and
v = n - x. c is of the same picture, at a quarter of its size, somewhat blurred, and enlarged. Large forms are learnt
from wide views. One caption in ten is empty, for guidance. Latents are made once, as the pool grows: one picture a step
until it is full, then one replaces the oldest every few steps.

    python -m widefield_export.train_flow --autoencoder FOLDER/vae --out FOLDER --minutes 120 --seed 0 [--resume]

`--begin FOLDER` takes what fits of a pipeline that was trained before (small_begin.py).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from widefield.errors import BadRequest
from widefield_export.sample_sheet import PROMPTS, sample_sheet
from widefield_export.small_begin import begin_denoiser, load_text_encoder
from widefield_export.small_pipeline import build_denoiser, build_pipeline, build_text_encoder
from widefield_export.small_tokenizer import build_tokenizer, load_tokenizer, sample_captions, vocabulary_files
from widefield_export.training_run import Run, RunOptions, finished, run_parser
from widefield_export.worlds.pictures import CAPTIONS, draw_picture

MODULE = "widefield_export.train_flow"
UNSEEN = 1_000_003  # added to the seed of pictures that training never draws
CLOSE_M = 64.0  # metres per pixel below which a view is close
GROWTH = 4  # how many times a level of the cascade is enlarged


@dataclass(frozen=True, slots=True)
class FlowOptions(RunOptions):
    """A run of the text encoder and the denoiser."""

    autoencoder: Path = Path()
    begin: Path | None = None
    peak_rate: float = 8e-4
    ema: float = 0.999
    save_every_minutes: float = 8.0
    channels: tuple[int, ...] = (64, 96, 128)
    sheet: Path | None = None  # a PNG of samples
    pool: int = 16384
    first: int = 1500  # pictures in the pool before the first step
    new_every: int = 4  # steps from one new picture to the next, once the pool is full
    side_px: int = 128
    batch: int = 32
    blank_odds: float = 0.1
    checks: int = 64


def load_autoencoder(folder: Path) -> Any:
    """An AutoencoderKL of diffusers, frozen."""
    from diffusers import AutoencoderKL

    if not (folder / "config.json").exists():
        raise BadRequest(f"no autoencoder in {folder}; wanted config.json and weights; run train_worlds first")
    return AutoencoderKL.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)


def plain_attention() -> Any:
    """Attention as two matrix products: in bfloat16 torch's fused one is a quarter of a step on a CPU without AMX."""
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


def coarse(pixels: Tensor, blur_px: float) -> Tensor:
    """Pictures (n, 3, h, w) as a cascade enlarges them: the mean of GROWTH x GROWTH pixels, a normal blur of `blur_px`
    pixels of those, and cubics. Sides a multiple of GROWTH."""
    small = F.avg_pool2d(pixels, GROWTH)
    offsets = torch.arange(-3, 4, device=pixels.device)
    line = torch.exp(-0.5 * (offsets / max(blur_px, 1e-3)) ** 2)
    line = (line / line.sum()).to(pixels)[None, None].expand(pixels.shape[1], 1, -1)
    padded = F.pad(small, (3, 3, 3, 3), mode="replicate")
    small = F.conv2d(F.conv2d(padded, line[..., None, :], groups=len(line)), line[..., None], groups=len(line))
    # With antialias torch's cubic is that of a = -1/2, as the cascade's.
    enlarged = F.interpolate(small, scale_factor=GROWTH, mode="bicubic", antialias=True)
    return enlarged.clamp(-1, 1)


class Pool:
    """Of the newest pictures: latents (n, 2, c, side / 8, side / 8) in float16, of the picture and of it enlarged;
    tokens (n, CAPTIONS, length), scales (n,) in metres per pixel.
    """

    def __init__(self, options: FlowOptions, autoencoder: Any, tokenizer: Any, seed: int, size: int) -> None:
        self.seed, self.side, self.device = seed, options.side_px, options.device
        self.autoencoder, self.tokenizer, self.drawn = autoencoder, tokenizer, 0
        cells = options.side_px // 8
        self.latents = torch.zeros(size, 2, autoencoder.config.latent_channels, cells, cells, dtype=torch.float16)
        self.tokens = torch.zeros(size, CAPTIONS, tokenizer.model_max_length, dtype=torch.int16)
        self.scales = torch.zeros(size)

    @property
    def filled(self) -> int:
        return min(self.drawn, len(self.latents))

    @torch.no_grad()
    def grow(self) -> None:
        """Draw and encode the next picture."""
        drawn = draw_picture(self.seed, self.drawn, self.side)
        pixels = torch.from_numpy(drawn.pixels).permute(2, 0, 1)[None].to(self.device).float() / 127.5 - 1
        blur_px = np.random.default_rng([self.seed, self.drawn, 1]).uniform(0, 0.8)
        pair = torch.cat([pixels, coarse(pixels, blur_px)])
        latents = self.autoencoder.encode(pair).latent_dist.mean * self.autoencoder.config.scaling_factor
        place = self.drawn % len(self.latents)
        self.latents[place] = latents.half().cpu()
        self.tokens[place] = tokens_of(self.tokenizer, list(drawn.captions))
        self.scales[place] = drawn.metres_per_px
        self.drawn += 1

    def state(self) -> dict[str, Any]:
        """What there is of pictures, to go on with."""
        filled = self.filled
        arrays = {name: getattr(self, name)[:filled].clone() for name in ("latents", "tokens", "scales")}
        return {"drawn": self.drawn, **arrays}

    def restore(self, state: dict[str, Any]) -> None:
        """Take what `state` gave."""
        self.drawn = state["drawn"]
        for name in ("latents", "tokens", "scales"):
            getattr(self, name)[: len(state[name])] = state[name]


def tokens_of(tokenizer: Any, captions: list[str]) -> Tensor:
    """(n, length) int16, cut and padded."""
    ids: Tensor = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.to(torch.int16)


def draw_times(scales: Tensor) -> tuple[Tensor, Tensor]:
    """(times in [0, 1), l of them) for pictures of these scales, as at the head of this file, (n,) each."""
    count = len(scales)
    times = torch.where(torch.rand(count) < 0.25, torch.rand(count), (torch.randn(count) + 0.4).sigmoid())
    late = (scales < CLOSE_M) & (torch.rand(count) < 2 / 3)
    times = torch.where(late, 0.65 * times, times)
    from_below = late & (torch.rand(count) < 0.5)
    return times, torch.where(from_below, ((times - 0.2) / 0.4).clamp(0, 1), torch.zeros(()))


def flow_loss(
    denoiser: Any, latents: Tensor, context: Tensor, times: Tensor, noise: Tensor, below: Tensor, share: Tensor
) -> Tensor:
    """The loss at the head of this file; times and share (l) (n,), context (n, length, width), the rest (n, c, h, w).

    The denoiser computes in bfloat16 where autocast does; its weights and the loss are float32.
    """
    t, part = times[:, None, None, None], share[:, None, None, None] * (below - latents)
    with torch.autocast(latents.device.type, torch.bfloat16):
        velocity = denoiser((1 - t) * (latents + part) + t * noise, 1000 * times, context).sample
    error: Tensor = velocity.float() - (noise - latents + (1 - t) / t.clamp(min=1e-3) * part)
    return error.pow(2).mean()


class FlowRun(Run):
    """Captions and latents from the pool, in batches of one size."""

    def __init__(self, options: FlowOptions) -> None:
        torch.manual_seed(options.seed)
        self.given = options
        self.autoencoder = load_autoencoder(options.autoencoder).to(options.device)
        kept = options.out / "pipeline" if options.resume else options.begin
        # Words may have been added since; its tokens may not move.
        self.tokenizer = load_tokenizer(kept / "tokenizer") if kept else build_tokenizer(sample_captions(0, 2000))
        denoiser = build_denoiser(self.autoencoder.config.latent_channels, options.channels)
        denoiser.set_attn_processor(plain_attention())
        parts = {"denoiser": denoiser, "text": build_text_encoder(self.tokenizer)}
        if options.begin is not None and not options.resume:
            print(json.dumps(begin_denoiser(denoiser, options.begin)), file=sys.stderr)
            parts["text"] = load_text_encoder(options.begin)
        super().__init__(options, torch.nn.ModuleDict(parts), MODULE)
        self.blank = tokens_of(self.tokenizer, [""])[0]
        self.pool = Pool(options, self.autoencoder, self.tokenizer, options.seed, options.pool)
        if options.resume:
            self.pool.restore(self.restore()["pool"])
        while self.pool.drawn < options.first:
            self.pool.grow()
        self.unseen = Pool(options, self.autoencoder, self.tokenizer, options.seed + UNSEEN, options.checks)
        for _ in range(options.checks):
            self.unseen.grow()

    def batch(self) -> tuple[Tensor, ...]:
        """Latents, those of the level below, tokens, now and then of the empty caption, times, and l of them."""
        options, pool = self.given, self.pool
        which = torch.randint(pool.filled, (options.batch,))
        tokens = pool.tokens[which, torch.randint(CAPTIONS, (options.batch,))]
        tokens[torch.rand(options.batch) < options.blank_odds] = self.blank
        latents, below = (
            pool.latents[which, of].float().to(options.device).contiguous(memory_format=torch.channels_last)
            for of in (0, 1)
        )
        times, share = (values.to(options.device) for values in draw_times(pool.scales[which]))
        return latents, below, tokens.long().to(options.device), times, share

    def train_step(self) -> None:
        """One batch; a new picture while the pool is not full, later now and then."""
        if self.pool.drawn < len(self.pool.latents) or self.step % self.given.new_every == 0:
            self.pool.grow()
        latents, below, tokens, times, share = self.batch()
        parts: Any = self.model
        context = parts["text"](tokens).last_hidden_state
        self.descend(flow_loss(parts["denoiser"], latents, context, times, torch.randn_like(latents), below, share))

    @torch.no_grad()
    def unseen_losses(self) -> tuple[float, float]:
        """The averaged weights' losses on unseen pictures, at fixed times and noise: from noise alone at all times, and
        from the level below at a strength of 0.6."""
        parts: Any = self.ema
        generator = torch.Generator().manual_seed(1)
        losses = []
        for pair, tokens in zip(
            torch.split(self.unseen.latents.float(), 16), torch.split(self.unseen.tokens[:, 0], 16), strict=True
        ):
            count = len(pair)
            noise = torch.randn(pair[:, 0].shape, generator=generator)
            context = parts["text"](tokens.long().to(self.options.device)).last_hidden_state
            cases = [
                ((torch.arange(count) + 0.5) / count, torch.zeros(count)),
                (torch.full((count,), 0.6), torch.ones(count)),
            ]
            for times, share in cases:
                given = pair[:, 0], context, times, noise, pair[:, 1], share
                losses.append(float(flow_loss(parts["denoiser"], *(a.to(self.options.device) for a in given))))
        return float(np.mean(losses[::2])), float(np.mean(losses[1::2]))

    def write(self) -> dict[str, Any]:
        """The pipeline's folder with the averaged weights and the decoder as it is by now, and a sheet of samples."""
        parts: Any = self.ema
        autoencoder = load_autoencoder(self.given.autoencoder).to(self.options.device)
        pipeline = build_pipeline(autoencoder, parts["denoiser"], parts["text"], self.tokenizer)
        folder = self.options.out / "pipeline"
        pipeline.save_pretrained(folder)
        for name, text in vocabulary_files(self.tokenizer).items():
            (folder / "tokenizer" / name).write_text(text, encoding="utf-8")
        if self.given.sheet is not None:
            sample_sheet(pipeline, PROMPTS, seed=1, side=self.given.side_px).save(self.given.sheet)
        alone, from_below = self.unseen_losses()
        begun = {} if self.given.begin is None else {"begun_with": _card(self.given.begin)}
        return begun | {
            "loss_unseen": round(alone, 5),
            "loss_unseen_from_below": round(from_below, 5),
            "pictures_drawn": self.pool.drawn,
            "parameters_of": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
            | {"autoencoder": sum(p.numel() for p in self.autoencoder.parameters())},
        }

    def state(self) -> dict[str, Any]:
        return {**super().state(), "pool": self.pool.state()}


def _card(pipeline: Path) -> Any:
    """What a shipped pipeline says of its own training; None where it says nothing."""
    card = pipeline / "training.json"
    return json.loads(card.read_text())["flow"] if card.is_file() else None


def parse(argv: list[str] | None = None) -> FlowOptions:
    """The command line as options."""
    defaults = FlowOptions(Path())
    parser = run_parser(MODULE, __doc__, defaults)
    parser.add_argument("--autoencoder", type=Path, required=True, help="the autoencoder's folder")
    parser.add_argument("--begin", type=Path, help="a pipeline's folder to begin with, instead of at random")
    parser.add_argument("--batch", type=int, default=defaults.batch, help="pictures a step (%(default)s)")
    parser.add_argument("--pool", type=int, default=defaults.pool, help="pictures kept (%(default)s)")
    parser.add_argument("--sheet", type=Path, help="PNG of samples")
    return FlowOptions(**vars(parser.parse_args(argv)))


def main(argv: list[str] | None = None) -> int:
    """Train, and print the card on stdout."""
    options = parse(argv)
    return finished(lambda: FlowRun(options).run(), options.out)


if __name__ == "__main__":
    sys.exit(main())
