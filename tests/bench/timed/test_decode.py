"""Latents to a stored pyramid, on each engine."""

import numpy as np
import pytest

from widefield_bench.decode import psnr

MODEL_LOSES_DB = 20  # the embedded autoencoder is some 26 dB from photographs


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_decode(timed, model, photograph, tmp_path, engine):
    pytest.importorskip("openvino" if engine == "openvino" else "onnxruntime")
    picture = model.decode(np.asarray(model.encode(photograph, engine="ort")), engine=engine)
    assert psnr(np.asarray(picture)[: len(photograph), : photograph.shape[1]], photograph)[0] > MODEL_LOSES_DB
    saved = timed(lambda: picture.save(tmp_path / "picture.tif", overwrite=True))
    assert saved.tiles_made > 0 and saved.bytes_written > 0
