"""What each way to store a tile costs, in bits a pixel, and what JPEG loses: the README's reasons for its default.

    python scripts/compare_codecs.py

Pictures  photographs that scikit-image ships, each as it is, and encoded and decoded with the embedded checkpoint.
Loss      PSNR, dB, of the stored picture against the one that was handed to the codec.
"""

import imagecodecs
import numpy as np
import skimage.data
from numpy.typing import NDArray

import widefield
from widefield.store import codecs

PHOTOGRAPHS = ("chelsea", "astronaut", "coffee", "rocket")
QUALITIES = (75, 85, 90, 95)
Pixels = NDArray[np.uint8]


def psnr_db(a: Pixels, b: Pixels) -> float:
    """Of two pictures of one size."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))


def line(name: str, picture: Pixels) -> str:
    """Bits a pixel and dB for each quality, then bits a pixel of the lossless codecs."""
    area = picture.shape[0] * picture.shape[1]
    cells = []
    for quality in QUALITIES:
        data = codecs.encode("jpeg", picture, quality)
        cells.append(f"q{quality} {len(data) * 8 / area:.2f} {psnr_db(picture, imagecodecs.jpeg8_decode(data)):.1f} dB")
    for codec, pixels in (("jpegxl", picture), ("deflate", codecs.difference(picture)), ("zstd", picture)):
        cells.append(f"{codec} {len(codecs.encode(codec, pixels, 100)) * 8 / area:.2f}")
    return f"{name:22}" + "  ".join(cells)


def main() -> None:
    """Print the table."""
    model = widefield.open()
    for name in PHOTOGRAPHS:
        photograph = np.ascontiguousarray(getattr(skimage.data, name)()[..., :3])
        with model.decode(np.asarray(model.encode(photograph))) as picture:
            decoded = np.asarray(picture)
        height, width = photograph.shape[:2]
        print(line(name, photograph))
        print(line(f"{name}, decoded", decoded), f" ({psnr_db(photograph, decoded[:height, :width]):.1f} dB from it)")


if __name__ == "__main__":
    main()
