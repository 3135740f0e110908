"""A prompt to pixels: a viewport of a large picture, and nothing else of it."""

import numpy as np

PROMPT = "a temperate coast, from space"


def test_generate(timed, model, full):
    side, part = (8192, 512) if full else (160, 40)

    def viewport():
        with model.generate(PROMPT, size=(side, side // 2), seed=3, engine="ort") as picture:
            return picture[side // 4 : side // 4 + part, side // 3 : side // 3 + part]

    first = viewport()
    assert first.shape == (part, part, 3) and first.std() > 1
    np.testing.assert_array_equal(timed(viewport), first)
