"""IIIF Image API 3.0, level 2: what the words of a URL ask for, and what info.json says. Pure.

    {region}/{size}/{rotation}/{quality}.{format}

    region      full, square, x,y,w,h, pct:x,y,w,h
    size        max, w,  ,h  w,h  !w,h  pct:n; each with ^ before it where more pixels than there are may be made
    rotation    0, 90, 180, 270; with ! before it mirrored first
    quality     default, color, gray, bitonal
    format      jpg, png

Source   https://iiif.io/api/image/3.0/
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from widefield.errors import BadRequest
from widefield.geometry import Region
from widefield.serve.pyramid import Pyramid
from widefield.serve.regions import View
from widefield.serve.served import Served
from widefield.store.box import Pixels

CONTEXT = "http://iiif.io/api/image/3/context.json"
PROFILE = "http://iiif.io/api/image/3/level2.json"
QUALITIES = ("default", "color", "gray", "bitonal")
FORMS = {"jpg": "jpeg", "png": "png"}
_INTEGER, _NUMBER = "([0-9]{1,9})", r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_PIXELS = re.compile(",".join([_INTEGER] * 4))
_PERCENT = re.compile("pct:" + ",".join([_NUMBER] * 4))
_SIDES = re.compile(rf"(!?){_INTEGER}?,{_INTEGER}?")
_SHARE = re.compile(f"pct:{_NUMBER}")


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """`turns` by 90 degrees clockwise, after mirroring. `form` is jpeg or png."""

    view: View
    mirrored: bool
    turns: int
    quality: str
    form: str

    @property
    def plain(self) -> bool:
        """Whether it is the view as it is."""
        return not self.mirrored and not self.turns and self.quality in ("default", "color")

    @property
    def tag(self) -> str:
        """A name for the answer, the same for equal ones."""
        region, view = self.view.region, self.view
        turned = f"{'m' if self.mirrored else ''}{self.turns}"
        quality = "default" if self.quality == "color" else self.quality
        box = f"{region.x0}-{region.y0}-{region.width}-{region.height}"
        return f"{box}-{view.width}-{view.height}-{turned}-{quality}-{self.form}"

    def finished(self, pixels: Pixels) -> Pixels:
        """A view's pixels as they were asked for."""
        if self.quality in ("gray", "bitonal"):
            grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)  # BT.601's luma
            values = np.where(grey < 128, 0, 255) if self.quality == "bitonal" else np.floor(grey + 0.5)
            pixels = np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)
        if self.mirrored:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(np.rot90(pixels, -self.turns))


def parse(pyramid: Pyramid, most_px: int, region: str, size: str, rotation: str, last: str) -> ImageRequest:
    """The request of the four last parts of a URL; `most_px` is the largest answer. BadRequest for what is none."""
    part = _region(pyramid, region)
    height, width = _size(part, size, most_px)
    turned = re.fullmatch(r"(!?)(0|90|180|270|360)(?:\.0{1,9})?", rotation)
    if turned is None:
        raise _bad("rotation", rotation, "0, 90, 180 or 270, with or without ! before it")
    quality, _, form = last.partition(".")
    if quality not in QUALITIES:
        raise _bad("quality", quality, ", ".join(QUALITIES))
    if form not in FORMS:
        raise _bad("format", form, ", ".join(FORMS))
    return ImageRequest(View(part, height, width), bool(turned[1]), int(turned[2]) // 90 % 4, quality, FORMS[form])


def _region(pyramid: Pyramid, text: str) -> Region:
    width, height = pyramid.width_px, pyramid.height_px
    whole = Region(0, 0, height, width)
    if text == "full":
        return whole
    if text == "square":
        side = min(width, height)
        y, x = (height - side) // 2, (width - side) // 2
        return Region(y, x, y + side, x + side)
    if found := _PIXELS.fullmatch(text):
        x, y, w, h = map(int, found.groups())
    elif found := _PERCENT.fullmatch(text):
        left, top, across, down = (float(number) / 100 for number in found.groups())
        x, y, w, h = (
            round(share * side) for share, side in ((left, width), (top, height), (across, width), (down, height))
        )
    else:
        raise _bad("region", text, "full, square, x,y,w,h or pct:x,y,w,h")
    region = Region(y, x, y + h, x + w).clipped(whole)
    if not region:
        raise _bad("region", text, f"some of the picture's {width} x {height} px")
    return region


def _size(region: Region, text: str, most_px: int) -> tuple[int, int]:
    """(height, width) of what is answered."""
    grows, asked = text.startswith("^"), text.removeprefix("^")
    high, wide = region.height, region.width
    if asked == "max":
        scale = math.sqrt(most_px / (high * wide))
        return _scaled(high, wide, scale if grows else min(1.0, scale))
    if found := _SHARE.fullmatch(asked):
        height, width = (round(side * float(found[1]) / 100) for side in (high, wide))
    elif (found := _SIDES.fullmatch(asked)) and (found[2] or found[3]):
        height, width = _sides(high, wide, found, grows=grows, text=text)
    else:
        raise _bad("size", text, "max, w, or ,h or w,h or !w,h or pct:n, with or without ^ before it")
    if height < 1 or width < 1:
        raise _bad("size", text, "at least one pixel")
    if not grows and (height > high or width > wide):
        raise _bad("size", text, f"at most the {wide} x {high} px of the region, or ^{asked}")
    if height * width > most_px:
        raise _bad("size", text, f"at most {most_px:,} px in all")
    return height, width


def _sides(high: int, wide: int, found: re.Match[str], *, grows: bool, text: str) -> tuple[int, int]:
    within, w, h = bool(found[1]), found[2], found[3]
    if within:
        if not (w and h):
            raise _bad("size", text, "both sides of the box")
        scale = min(int(w) / wide, int(h) / high)
        return _scaled(high, wide, scale if grows else min(1.0, scale)) if int(w) and int(h) else (0, 0)
    if w and h:
        return int(h), int(w)
    scale = int(w) / wide if w else int(h) / high
    return (max(1, round(high * scale)), int(w)) if w else (int(h), max(1, round(wide * scale)))


def _scaled(high: int, wide: int, scale: float) -> tuple[int, int]:
    """Rounded to the nearest, or down where that would be too many."""
    if scale == 1.0:
        return high, wide
    return max(1, int(high * scale + 1e-6)), max(1, int(wide * scale + 1e-6))


def _bad(what: str, found: str, wanted: str) -> BadRequest:
    return BadRequest(f"{what} {found[:80]!r} was asked for; wanted {wanted}; mend the address")


def info(picture: Served, address: str) -> dict[str, Any]:
    """info.json of a picture that is served at `address`."""
    pyramid = picture.pyramid
    levels = sorted(picture.levels, reverse=True)
    sizes = [pyramid.size(level) for level in levels]
    tiled = [level for level in reversed(levels) if level <= max(0, pyramid.deepest - 4)]
    return {
        "@context": CONTEXT,
        "id": address,
        "type": "ImageService3",
        "protocol": "http://iiif.io/api/image",
        "profile": "level2",
        "width": pyramid.width_px,
        "height": pyramid.height_px,
        "maxArea": picture.most_px,
        "sizes": [{"width": wide, "height": high} for high, wide in sizes if high * wide <= picture.most_px],
        "tiles": [{"width": pyramid.tile_px, "scaleFactors": [1 << level for level in tiled]}],
        "preferredFormats": ["png" if picture.form == "png" else "jpg"],
        "extraQualities": ["color", "gray", "bitonal"],
        "extraFeatures": ["mirroring", "sizeUpscaling"],
    }


def descriptor(pyramid: Pyramid, form: str) -> str:
    """The .dzi of a picture."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Image xmlns="http://schemas.microsoft.com/deepzoom/2008" Format="{form}" Overlap="0" '
        f'TileSize="{pyramid.tile_px}">\n  <Size Height="{pyramid.height_px}" Width="{pyramid.width_px}"/>\n</Image>\n'
    )
