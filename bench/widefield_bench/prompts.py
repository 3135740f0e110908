"""Whether the embedded checkpoint heeds its prompts, and how like its pictures are to those it learnt from.

    python -m widefield_bench.prompts --seeds 16 -o bench/results

concept   a prompt with and one without it, from the same noises: the mean of a property of the pictures in both, and
          the effect (m1 - m0) / sqrt((s0^2 + s1^2) / 2), which is 0.8 for what is called large.
held out  two concepts that training never has together, against a prompt that lacks one or the other; `seen` counts how
          often they meet in the scenes that training draws.
likeness  pictures of captions of worlds that training never drew, against those worlds and beside level 0 enlarged
          bicubically: see widefield_bench.likeness. `floor` is of other such worlds against them.

Pictures of concepts are of 128 x 128 px, by diffusers from the checkpoint; those of likeness by `Model.generate`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import widefield
from widefield_bench.common import about, table, write_rows
from widefield_bench.likeness import LIGHT, Picture, likeness

CHECKPOINT = Path(__file__).parents[2] / "export" / "embedded"
FRESH = 4242  # the seed of worlds that training never draws: its own are 0, 10, and 1,000,003 more to measure itself
Measure = Callable[[Picture], float]


def bright(picture: Picture) -> float:
    """Mean light."""
    return float((picture @ LIGHT).mean())


def white(picture: Picture) -> float:
    """Mean of each pixel's least colour."""
    return float(picture.min(-1).mean())


def warm(picture: Picture) -> float:
    """Mean of red over blue."""
    return float((picture[..., 0] - picture[..., 2]).mean())


def green(picture: Picture) -> float:
    """Mean of green over the mean of the others."""
    return float((picture[..., 1] - (picture[..., 0] + picture[..., 2]) / 2).mean())


def water(picture: Picture) -> float:
    """Share of pixels that are bluer than red by a tenth."""
    return float((picture[..., 2] - picture[..., 0] > 0.1).mean())


@dataclass(frozen=True, slots=True)
class Concept:
    """A prompt without it and one with it, and a property that should grow, or shrink where `sign` is -1."""

    name: str
    without: str
    given: str
    measure: Measure
    sign: int = 1


CONCEPTS = (
    Concept("ice", "a coast, from space", "an icy coast, from space", white),
    Concept("desert", "plains, from high above", "desert plains, from high above", warm),
    Concept("islands", "plains, from space", "islands, from space", water),
    Concept("forest", "mountains, from high above", "rainforest mountains, from high above", green),
    Concept("night", "mountains by day", "mountains at night", bright, -1),
    Concept("clouds", "the open sea by day", "the open sea by day, cloudy", white),
    Concept("sea", "plains, from space", "the open sea, from space", water),
    Concept("dawn", "mountains by day", "mountains at dawn", warm),
)
# A pair of widefield_export.worlds.draw.HELD_OUT; each concept against a prompt that has the other alone.
HELD_OUT = ("rainforest", "dusk")
COMPOSED = (
    Concept("dusk, of a rainforest at dusk", "a rainforest by day", "a rainforest at dusk", bright, -1),
    Concept("rainforest, of a rainforest at dusk", "a desert at dusk", "a rainforest at dusk", green),
)


def load_pipeline(checkpoint: Path) -> Any:
    """The checkpoint in float32."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, prompt: str, seeds: Sequence[int], steps: int, guidance: float) -> NDArray[np.float32]:
    """(seeds, side, side, 3) in [0, 1], each from its own noise."""
    import torch

    noises = [torch.Generator().manual_seed(seed) for seed in seeds]
    given: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np"}
    pictures = pipeline([prompt] * len(seeds), generator=noises, **given).images
    return np.asarray(pictures, np.float32)


def effect(without: Sequence[float], given: Sequence[float]) -> float:
    """Cohen's d, as at the head of this file."""
    spread = np.sqrt((np.var(without, ddof=1) + np.var(given, ddof=1)) / 2)
    return float((np.mean(given) - np.mean(without)) / max(spread, 1e-6))


def heed(pipeline: Any, concept: Concept, seeds: Sequence[int], steps: int, guidance: float) -> dict[str, Any]:
    """A row: what the property is without and with the concept."""
    values = [
        [concept.measure(picture) for picture in draw(pipeline, prompt, seeds, steps, guidance)]
        for prompt in (concept.without, concept.given)
    ]
    measured = concept.sign * np.array(values)
    return {
        "concept": concept.name,
        "without": concept.without,
        "given": concept.given,
        "measure": concept.measure.__name__,
        "mean_without": round(float(np.mean(values[0])), 4),
        "mean_given": round(float(np.mean(values[1])), 4),
        "effect": round(effect(*measured), 2),
        "seeds_right": f"{int((measured[1] > measured[0]).sum())}/{len(seeds)}",
    }


def meetings(pair: tuple[str, str], count: int) -> int:
    """In how many of the first `count` scenes of training both concepts are."""
    from widefield_export.worlds.draw import draw_scene

    scenes = (draw_scene(np.random.default_rng([0, index])) for index in range(count))
    return sum(set(pair) <= scene.concepts for scene in scenes)


def compare(count: int, side_px: int) -> list[dict[str, Any]]:
    """Rows of likeness: drawn by the model, level 0 enlarged, and other worlds, against fresh worlds."""
    from PIL import Image

    from widefield_export.worlds.pictures import draw_picture

    worlds = [draw_picture(FRESH, index, side_px) for index in range(2 * count)]
    fresh, others = ([w.pixels / 255 for w in part] for part in (worlds[:count], worlds[count:]))
    ours, enlarged = [], []
    for index, world in enumerate(worlds[:count]):
        picture = widefield.open().generate(world.captions[0], size=(side_px, side_px), seed=index, engine="ort")
        try:
            small = Image.fromarray(np.asarray(picture.level(0)))
            ours.append(np.asarray(picture) / 255)
        finally:
            picture.close()
        enlarged.append(np.asarray(small.resize((side_px, side_px), Image.Resampling.BICUBIC)) / 255)
    sets = {"drawn": ours, "level 0, bicubic": enlarged, "floor": others}
    return [
        {"pictures": name, "count": count, "side_px": side_px}
        | {key: round(value, 3) for key, value in likeness(found, fresh).items()}
        for name, found in sets.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Print tables, and write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.prompts", allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=16, help="pictures a prompt (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="(%(default)s)")
    parser.add_argument("--guidance", type=float, default=2.0, help="(%(default)s)")
    parser.add_argument("--pictures", type=int, default=8, help="of likeness; 0 for none (%(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of those, pixels (%(default)s)")
    parser.add_argument("--scenes", type=int, default=20_000, help="to look for the held-out pair in (%(default)s)")
    parser.add_argument("-o", "--out", type=Path, help="folder for prompts.json")
    asked = parser.parse_args(argv)
    pipeline, seeds = load_pipeline(CHECKPOINT), range(1000, 1000 + asked.seeds)
    rows = [heed(pipeline, concept, seeds, asked.steps, asked.guidance) for concept in (*CONCEPTS, *COMPOSED)]
    seen = {"pair": HELD_OUT, "scenes": asked.scenes, "seen": meetings(HELD_OUT, asked.scenes)}
    print(table(rows, ("concept", "measure", "mean_without", "mean_given", "effect", "seeds_right")))
    print(f"{' and '.join(HELD_OUT)} meet in {seen['seen']} of {asked.scenes} scenes of training")
    looks = compare(asked.pictures, asked.side) if asked.pictures else []
    if looks:
        print(table(looks, ("pictures", "slope", "slope_off", "fine_off", "colours", "patches")))
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        write_rows(asked.out / "prompts.json", [*rows, *looks], {**about(), "held_out": seen})
    return 0


if __name__ == "__main__":
    sys.exit(main())
