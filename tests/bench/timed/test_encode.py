"""A picture to latents."""

import numpy as np

from widefield_bench.decode import psnr


def test_encode(timed, model, photograph):
    latents = timed(lambda: np.asarray(model.encode(photograph, engine="ort")))
    with model.decode(latents, engine="ort") as picture:
        assert psnr(np.asarray(picture), photograph)[0] > 20
