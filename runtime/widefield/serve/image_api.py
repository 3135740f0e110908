"""The routes of IIIF Image API 3. A region that is no tile is made of tiles, one region at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from widefield.serve import iiif
from widefield.serve.answers import FOREVER, OPEN, unchanged, unless_gone
from widefield.serve.flights import Busy
from widefield.serve.guard import Pieces
from widefield.serve.regions import as_tile, rendered
from widefield.serve.served import MEDIA, Served
from widefield.store import codecs

if TYPE_CHECKING:
    from widefield.serve.app import Site

MOST_REGIONS = 4  # at work, waiting or on their way


class ImageApi:
    """Regions of a site's pictures."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._regions, self._rendering = 0, asyncio.Semaphore(1)

    async def base(self, request: Request) -> Response:
        """303 to info.json."""
        picture = self._site.asked(request)
        return RedirectResponse(f"{_address(request, picture)}/info.json", 303, OPEN)

    async def info(self, request: Request) -> Response:
        """info.json, as JSON-LD to whoever says that it reads that."""
        picture = self._site.asked(request)
        linked = "application/ld+json" in request.headers.get("accept", "")
        media = f'application/ld+json;profile="{iiif.CONTEXT}"' if linked else "application/json"
        answer = JSONResponse(iiif.info(picture, _address(request, picture)), 200, {**OPEN, "vary": "accept"})
        answer.headers["content-type"] = media
        return answer

    async def image(self, request: Request) -> Response:
        """A region of a picture; where that is a tile, the tile."""
        picture, words = self._site.asked(request), request.path_params
        asked = iiif.parse(
            picture.pyramid, picture.most_px, words["region"], words["size"], words["rotation"], words["last"]
        )
        more = {**OPEN, "link": f'<{iiif.PROFILE}>;rel="profile"'}
        place = as_tile(picture, asked.view) if asked.plain and asked.form == picture.form else None
        if place is not None:
            return await self._site.sent_tile(request, picture, place, more)
        return await self._region(request, picture, asked, more)

    async def _region(
        self, request: Request, picture: Served, asked: iiif.ImageRequest, more: dict[str, str]
    ) -> Response:
        headers = {"etag": f'"{picture.id}-{asked.tag}"', "cache-control": FOREVER, **more}
        if (known := unchanged(request, headers)) is not None:
            return known
        if self._regions >= MOST_REGIONS:
            raise Busy
        self._regions += 1
        try:
            data = await unless_gone(request, self._rendered(picture, asked), self._site.closing)
        except BaseException:
            self._sent()
            raise
        return Pieces(data, 200, headers, MEDIA[asked.form], BackgroundTask(self._sent))

    async def _rendered(self, picture: Served, asked: iiif.ImageRequest) -> bytes:
        async with self._rendering:
            pixels = await rendered(picture, asked.view)
            finished = await asyncio.to_thread(asked.finished, pixels)
            return await asyncio.to_thread(codecs.encode, asked.form, finished, min(picture.quality, 95))

    def _sent(self) -> None:
        self._regions -= 1


def _address(request: Request, picture: Served) -> str:
    return f"{str(request.base_url).rstrip('/')}/iiif/{picture.id}"
