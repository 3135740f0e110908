"""A picture to a larger one."""

import numpy as np

from widefield_bench.drawing import correlation
from widefield_bench.latents import mosaic


def test_upscale(timed, model, full):
    small = mosaic(256)[:192] if full else mosaic(64)[:48]

    def enlarged():
        with model.upscale(small, 2, "a photograph", engine="ort") as picture:
            return np.asarray(picture)

    large = timed(enlarged)
    assert large.shape == (2 * small.shape[0], 2 * small.shape[1], 3)
    assert correlation(large, small) > 0.8
