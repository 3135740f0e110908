"""What each way to store a tile costs, in bits a pixel, and what JPEG loses: the README's reasons for its default.

    python -m widefield_bench.codecs -o bench/results

Pictures  photographs that scikit-image ships, each as it is, and encoded and decoded with the embedded checkpoint.
Loss      PSNR, dB, of the stored picture against the one that was handed to the codec.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import widefield
from widefield.store import codecs
from widefield_bench.common import about, table, write_rows
from widefield_bench.decode import psnr

PHOTOGRAPHS = ("chelsea", "astronaut", "coffee", "rocket")
QUALITIES = (85, 90, 95)
LOSSLESS = {"jpegxl": "JPEG XL, lossless", "deflate": "deflate, lossless", "zstd": "zstd, lossless"}
Pixels = NDArray[np.uint8]


def costs(picture: Pixels) -> Iterator[dict[str, Any]]:
    """A row a codec: bits a pixel, and dB, which is None for a lossless one."""
    area = picture.shape[0] * picture.shape[1]
    for quality in QUALITIES:
        data = codecs.encode("jpeg", picture, quality)
        decibels, _ = psnr(codecs.decode("jpeg", data, picture.shape), picture)
        yield {
            "codec": f"JPEG q{quality}",
            "bits_per_px": round(8 * len(data) / area, 3),
            "psnr_db": round(decibels, 1),
        }
    for codec, title in LOSSLESS.items():
        pixels = codecs.difference(picture) if codec == "deflate" else picture  # as a .tif stores it
        nbytes = len(codecs.encode(codec, pixels, 100))
        yield {"codec": title, "bits_per_px": round(8 * nbytes / area, 3), "psnr_db": None}


def measured(names: Sequence[str] = PHOTOGRAPHS) -> list[dict[str, Any]]:
    """Rows of every photograph, as it is and decoded; `model_db` is how far decoding is from it."""
    import skimage.data

    model, rows = widefield.open(), []
    for name in names:
        photograph: Pixels = np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])
        with model.decode(np.asarray(model.encode(photograph))) as picture:
            decoded = np.asarray(picture)
        height, width = photograph.shape[:2]
        model_db = round(psnr(decoded[:height, :width], photograph)[0], 1)
        rows += [{"picture": name, "kind": "photograph", **row} for row in costs(photograph)]
        rows += [{"picture": name, "kind": "decoded", "model_db": model_db, **row} for row in costs(decoded)]
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and keep it as JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m widefield_bench.codecs", description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, help="folder for codecs.json")
    options = parser.parse_args(argv)
    rows = measured()
    print(table(rows, ("picture", "kind", "codec", "bits_per_px", "psnr_db", "model_db")))
    if options.output is not None:
        write_rows(options.output / "codecs.json", rows, about())
    return 0


if __name__ == "__main__":
    sys.exit(main())
