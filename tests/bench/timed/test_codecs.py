"""A store tile to bytes and back."""

import numpy as np
import pytest

from widefield.store import codecs
from widefield_bench.decode import psnr
from widefield_bench.store import dead_leaves

CODECS = ("jpeg", "jpegxl", "png", "deflate", "zstd")


@pytest.fixture(scope="module")
def tile():
    return dead_leaves(512)


def close(codec, found, tile):
    """Equal, or as near as JPEG of quality 90 comes."""
    return psnr(found, tile)[0] > 30 if codec == "jpeg" else np.array_equal(found, tile)


@pytest.mark.parametrize("codec", CODECS)
def test_encode(benchmark, tile, codec):
    assert close(codec, codecs.decode(codec, codecs.encode(codec, tile, 90), tile.shape), tile)
    assert len(benchmark(codecs.encode, codec, tile, 90)) < tile.nbytes


@pytest.mark.parametrize("codec", CODECS)
def test_decode(benchmark, tile, codec):
    data = codecs.encode(codec, tile, 90)
    assert close(codec, benchmark(codecs.decode, codec, data, tile.shape), tile)
