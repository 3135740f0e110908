"""The routes.

    /                                            the viewer, and /assets/... what it is made of
    /pictures                                    GET: all of them; POST {"prompt", "size": [w, h], "seed"}: a new one
    /pictures/{id}                               one; /events how it gets on; /marks, /preview.jpeg what there is of it
    /dzi/{id}.dzi                                Deep Zoom, and /dzi/{id}_files/{depth}/{column}_{row}.{form}
    /iiif/{id}/info.json                         IIIF Image API 3, and /iiif/{id}/{region}/{size}/{rotation}/{last}
    /healthz /readyz /metrics                    for whoever runs it

No path of a request ever becomes a path of a file: pictures are found by id, assets by name, in dictionaries.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from widefield.errors import BadRequest
from widefield.serve import iiif
from widefield.serve.answers import FAULTS, FOREVER, OPEN, fresh, plain, unchanged, unless_gone
from widefield.serve.assets import load_assets
from widefield.serve.events import Watchers
from widefield.serve.gallery import Gallery
from widefield.serve.guard import Guard, Pieces
from widefield.serve.image_api import ImageApi
from widefield.serve.metrics import MEDIA as METRICS_MEDIA
from widefield.serve.metrics import Metrics
from widefield.serve.served import MEDIA, Missing, Served
from widefield.serve.stored import StoredPicture
from widefield.serve.wishes import read_wish

_PLACE = re.compile(r"([0-9]{1,9})_([0-9]{1,9})\.(jpeg|jpg|png)")


class Site:
    """All that the routes share."""

    def __init__(self, gallery: Gallery, closing: Callable[[], bool] = lambda: False) -> None:
        self.gallery, self.closing = gallery, closing
        self.watchers, self.metrics, self.assets = Watchers(closing), Metrics(), load_assets()
        self._drawing = asyncio.Lock()
        self._gauges()

    def _gauges(self) -> None:
        ask, studio = self.metrics.ask, self.gallery.studio
        ask("widefield_watchers", lambda: self.watchers.watching)
        first = self.gallery.first
        flights = studio.flights if studio else first.flights if isinstance(first, StoredPicture) else None
        if flights is not None:
            ask("widefield_tiles_begun_total", lambda: flights.begun)
            ask("widefield_tiles_shared_total", lambda: flights.joined)
            ask("widefield_tiles_dropped_total", lambda: flights.dropped)
            ask("widefield_tiles_flying", lambda: flights.flying)
            ask("widefield_tiles_queued", lambda: flights.queued)
        if studio is not None:
            ask("widefield_pictures_open", lambda: len(studio.desk))
            ask("widefield_cache_bytes", lambda: studio.cache.nbytes)
            ask("widefield_cache_refused_total", lambda: studio.cache.refused)

    # The viewer.

    async def page(self, request: Request) -> Response:
        return await self._asset("index.html", request)

    async def asset(self, request: Request) -> Response:
        return await self._asset(request.path_params["name"], request)

    async def _asset(self, name: str, request: Request) -> Response:
        found = self.assets.get(name)
        if found is None:
            return plain(f"{name[:80]!r} is no part of the viewer", 404)
        headers = {"etag": found.etag, "cache-control": "no-cache"}
        return unchanged(request, headers) or Pieces(found.data, 200, headers, found.media)

    # Pictures.

    async def pictures(self, request: Request) -> Response:
        """All pictures, whether more are drawn, and which is shown first."""
        shown, first = self.gallery.pictures(), self.gallery.first
        return fresh(
            {
                "draws": self.gallery.studio is not None,
                "first": first.id if first else None,
                "pictures": [picture.described() for picture in shown],
            }
        )

    async def draw(self, request: Request) -> Response:
        """A new picture, or the same one for the same wish: 201 and where it is."""
        wish = await read_wish(request)
        async with self._drawing:
            picture, gone = await asyncio.to_thread(self.gallery.draw, wish)
        for old in gone:
            await old.close()
        return JSONResponse(picture.described(), 201, {"location": f"/pictures/{picture.id}"})

    async def picture(self, request: Request) -> Response:
        picture = self.asked(request)
        await self.watchers.look(picture)
        return fresh(picture.described())

    async def marks(self, request: Request) -> Response:
        """Of a picture that is being made, which tiles are there, so that a viewer asks for no others."""
        picture = self.asked(request)
        await self.watchers.look(picture)
        return fresh(await asyncio.to_thread(picture.marks) if isinstance(picture, StoredPicture) else {})

    async def events(self, request: Request) -> Response:
        """Server-sent events, until the page is closed."""
        picture = self.asked(request)
        self.watchers.enter()
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self.watchers.events(picture), 200, headers, "text/event-stream")

    async def preview(self, request: Request) -> Response:
        """Of a picture that is being made, what there is of it."""
        picture = self.asked(request)
        if not isinstance(picture, StoredPicture):
            raise Missing("a drawn picture has its small levels first and needs no preview")
        return Pieces(await picture.preview(), 200, {"cache-control": "no-store"}, MEDIA["jpeg"])

    def asked(self, request: Request) -> Served:
        """The picture whose id the address has; Missing where there is none."""
        found = self.gallery.find(request.path_params["picture"])
        if found is None:
            raise Missing("there is no picture of that id here")
        return found

    # Deep Zoom.

    async def dzi(self, request: Request) -> Response:
        """The descriptor of Deep Zoom."""
        picture = self.asked(request)
        return Response(iiif.descriptor(picture.pyramid, picture.form), 200, OPEN, "application/xml")

    async def tile(self, request: Request) -> Response:
        """A tile of Deep Zoom."""
        picture, depth = self.asked(request), request.path_params["depth"]
        place = _PLACE.fullmatch(request.path_params["place"])
        if place is None or not re.fullmatch("[0-9]{1,3}", depth):
            raise BadRequest("the address of a tile is {depth}/{column}_{row}.{form}, in digits; mend it")
        if {"jpg": "jpeg"}.get(place[3], place[3]) != picture.form:
            raise Missing(f"tiles of this picture are {picture.form}s")
        return await self.sent_tile(
            request, picture, (picture.pyramid.deepest - int(depth), int(place[2]), int(place[1])), OPEN
        )

    async def sent_tile(
        self, request: Request, picture: Served, place: tuple[int, int, int], more: dict[str, str]
    ) -> Response:
        """The tile at (level, row, column), which may be made for it, with `more` headers."""
        try:
            picture.pyramid.box(*place)
        except IndexError as error:
            raise Missing(str(error)) from error
        headers = {"etag": picture.etag(*place), "cache-control": FOREVER, **more}
        if (known := unchanged(request, headers)) is not None:
            return known
        began = time.monotonic()
        data = await unless_gone(request, picture.tile(*place), self.closing)
        self.metrics.took(time.monotonic() - began)
        return Pieces(data, 200, headers, MEDIA[picture.form])

    # Whoever runs it.

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n", headers={"cache-control": "no-store"})

    async def readyz(self, request: Request) -> Response:
        """503 from when the server was told to close."""
        closing = self.closing()
        return PlainTextResponse("closing\n" if closing else "ready\n", 503 if closing else 200)

    async def scraped(self, request: Request) -> Response:
        return Response(self.metrics.text(), 200, media_type=METRICS_MEDIA)


def build(site: Site, hosts: frozenset[str] | None) -> ASGIApp:
    """The application. `hosts`: the names that are answered; None, any."""
    images = ImageApi(site)
    routes = [
        Route("/", site.page),
        Route("/assets/{name}", site.asset),
        Route("/pictures", site.pictures),
        Route("/pictures", site.draw, methods=["POST"]),
        Route("/pictures/{picture}", site.picture),
        Route("/pictures/{picture}/marks", site.marks),
        Route("/pictures/{picture}/events", site.events, methods=["GET"]),
        Route("/pictures/{picture}/preview.jpeg", site.preview),
        Route("/dzi/{picture}.dzi", site.dzi),
        Route("/dzi/{picture}_files/{depth}/{place}", site.tile),
        Route("/iiif/{picture}", images.base),
        Route("/iiif/{picture}/info.json", images.info),
        Route("/iiif/{picture}/{region}/{size}/{rotation}/{last}", images.image),
        Route("/healthz", site.healthz),
        Route("/readyz", site.readyz),
        Route("/metrics", site.scraped),
    ]

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await site.gallery.close()

    return Guard(Starlette(routes=routes, exception_handlers=FAULTS, lifespan=life), hosts, site.metrics)
