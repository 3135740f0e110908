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
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from widefield.errors import BadRequest, OverBudget, WidefieldError
from widefield.serve import iiif
from widefield.serve.assets import load_assets
from widefield.serve.events import Watchers
from widefield.serve.flights import Busy
from widefield.serve.gallery import Gallery
from widefield.serve.guard import Guard, Pieces
from widefield.serve.metrics import MEDIA as METRICS_MEDIA
from widefield.serve.metrics import Metrics
from widefield.serve.regions import as_tile, rendered
from widefield.serve.served import MEDIA, Missing, Served
from widefield.serve.stored import StoredPicture
from widefield.serve.wishes import read_wish
from widefield.store import codecs

log = logging.getLogger("widefield.serve")
Result = TypeVar("Result")
FOREVER = "public, max-age=31536000, immutable"
OPEN = {"access-control-allow-origin": "*"}  # IIIF wants its pictures readable from any page
RETRY_SECONDS = 2
LOOK_SECONDS = 0.5  # between two looks whether the server closes
MOST_REGIONS = 4  # at work, waiting or on their way
_PLACE = re.compile(r"([0-9]{1,9})_([0-9]{1,9})\.(jpeg|jpg|png)")


class Gone(Exception):
    """Whoever asked went away."""


class Site:
    """All that the routes share."""

    def __init__(self, gallery: Gallery, closing: Callable[[], bool] = lambda: False) -> None:
        self.gallery, self.closing = gallery, closing
        self.watchers, self.metrics, self.assets = Watchers(closing), Metrics(), load_assets()
        self._regions, self._rendering, self._drawing = 0, asyncio.Semaphore(1), asyncio.Lock()
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
            return _plain(f"{name[:80]!r} is no part of the viewer", 404)
        headers = {"etag": found.etag, "cache-control": "no-cache"}
        return _unchanged(request, headers) or Pieces(found.data, 200, headers, found.media)

    # Pictures.

    async def pictures(self, request: Request) -> Response:
        """All pictures, whether more are drawn, and which is shown first."""
        shown, first = self.gallery.pictures(), self.gallery.first
        return _fresh(
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
        picture = self._picture(request)
        await self.watchers.look(picture)
        return _fresh(picture.described())

    async def marks(self, request: Request) -> Response:
        """Of a picture that is being made, which tiles are there, so that a viewer asks for no others."""
        picture = self._picture(request)
        await self.watchers.look(picture)
        return _fresh(await asyncio.to_thread(picture.marks) if isinstance(picture, StoredPicture) else {})

    async def events(self, request: Request) -> Response:
        """Server-sent events, until the page is closed."""
        picture = self._picture(request)
        self.watchers.enter()
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self.watchers.events(picture), 200, headers, "text/event-stream")

    async def preview(self, request: Request) -> Response:
        """Of a picture that is being made, what there is of it."""
        picture = self._picture(request)
        if not isinstance(picture, StoredPicture):
            raise Missing("a drawn picture has its small levels first and needs no preview")
        return Pieces(await picture.preview(), 200, {"cache-control": "no-store"}, MEDIA["jpeg"])

    def _picture(self, request: Request) -> Served:
        found = self.gallery.find(request.path_params["picture"])
        if found is None:
            raise Missing("there is no picture of that id here")
        return found

    # Deep Zoom.

    async def dzi(self, request: Request) -> Response:
        """The descriptor of Deep Zoom."""
        picture = self._picture(request)
        return Response(iiif.descriptor(picture.pyramid, picture.form), 200, OPEN, "application/xml")

    async def tile(self, request: Request) -> Response:
        """A tile of Deep Zoom."""
        picture, depth = self._picture(request), request.path_params["depth"]
        place = _PLACE.fullmatch(request.path_params["place"])
        if place is None or not re.fullmatch("[0-9]{1,3}", depth):
            raise BadRequest("the address of a tile is {depth}/{column}_{row}.{form}, in digits; mend it")
        if {"jpg": "jpeg"}.get(place[3], place[3]) != picture.form:
            raise Missing(f"tiles of this picture are {picture.form}s")
        return await self._tile(
            request, picture, (picture.pyramid.deepest - int(depth), int(place[2]), int(place[1])), OPEN
        )

    async def _tile(
        self, request: Request, picture: Served, place: tuple[int, int, int], more: dict[str, str]
    ) -> Response:
        try:
            picture.pyramid.box(*place)
        except IndexError as error:
            raise Missing(str(error)) from error
        headers = {"etag": picture.etag(*place), "cache-control": FOREVER, **more}
        if (unchanged := _unchanged(request, headers)) is not None:
            return unchanged
        began = time.monotonic()
        data = await unless_gone(request, picture.tile(*place), self.closing)
        self.metrics.took(time.monotonic() - began)
        return Pieces(data, 200, headers, MEDIA[picture.form])

    # IIIF.

    async def iiif_base(self, request: Request) -> Response:
        """303 to info.json."""
        picture = self._picture(request)
        return RedirectResponse(f"{_address(request, picture)}/info.json", 303, OPEN)

    async def iiif_info(self, request: Request) -> Response:
        """info.json, as JSON-LD to whoever says that it reads that."""
        picture = self._picture(request)
        linked = "application/ld+json" in request.headers.get("accept", "")
        media = f'application/ld+json;profile="{iiif.CONTEXT}"' if linked else "application/json"
        answer = JSONResponse(iiif.info(picture, _address(request, picture)), 200, {**OPEN, "vary": "accept"})
        answer.headers["content-type"] = media
        return answer

    async def iiif_image(self, request: Request) -> Response:
        """A region of a picture; where that is a tile, the tile."""
        picture, words = self._picture(request), request.path_params
        asked = iiif.parse(
            picture.pyramid, picture.most_px, words["region"], words["size"], words["rotation"], words["last"]
        )
        more = {**OPEN, "link": f'<{iiif.PROFILE}>;rel="profile"'}
        place = as_tile(picture, asked.view) if asked.plain and asked.form == picture.form else None
        if place is not None:
            return await self._tile(request, picture, place, more)
        return await self._region(request, picture, asked, more)

    async def _region(
        self, request: Request, picture: Served, asked: iiif.ImageRequest, more: dict[str, str]
    ) -> Response:
        headers = {"etag": f'"{picture.id}-{asked.tag}"', "cache-control": FOREVER, **more}
        if (unchanged := _unchanged(request, headers)) is not None:
            return unchanged
        if self._regions >= MOST_REGIONS:
            raise Busy
        self._regions += 1
        try:
            data = await unless_gone(request, self._rendered(picture, asked), self.closing)
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
        Route("/iiif/{picture}", site.iiif_base),
        Route("/iiif/{picture}/info.json", site.iiif_info),
        Route("/iiif/{picture}/{region}/{size}/{rotation}/{last}", site.iiif_image),
        Route("/healthz", site.healthz),
        Route("/readyz", site.readyz),
        Route("/metrics", site.scraped),
    ]

    @asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        yield
        await site.gallery.close()

    faults: dict[Any, Any] = {
        Busy: _busy, Gone: _gone, Missing: _missing, BadRequest: _refused, OverBudget: _refused,
        WidefieldError: _failed,
    }  # fmt: skip
    return Guard(Starlette(routes=routes, exception_handlers=faults, lifespan=life), hosts, site.metrics)


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result], closing: Callable[[], bool]) -> Result:
    """What `work` gives. It is cancelled when whoever asked hangs up, which raises Gone, or the server closes: Busy."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(request))
    try:
        while not (task.done() or gone.done()):
            await asyncio.wait({task, gone}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if closing():
                raise Busy
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _unchanged(request: Request, headers: dict[str, str]) -> Response | None:
    """304, where whoever asks has it already."""
    has = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return Response(None, 304, headers) if headers["etag"] in has or "*" in has else None


def _address(request: Request, picture: Served) -> str:
    return f"{str(request.base_url).rstrip('/')}/iiif/{picture.id}"


def _fresh(document: Any) -> Response:
    return JSONResponse(document, 200, {"cache-control": "no-store"})


def _plain(line: str, status: int, **headers: str) -> Response:
    return PlainTextResponse(line + "\n", status, {"cache-control": "no-store", **OPEN, **headers})


async def _busy(_: Request, __: Exception) -> Response:
    return _plain("too much is being made at the moment; come again", 503, **{"retry-after": str(RETRY_SECONDS)})


async def _gone(_: Request, __: Exception) -> Response:
    return Response(None, 499)


async def _missing(_: Request, error: Exception) -> Response:
    return _plain(str(error), 404)


async def _refused(_: Request, error: Exception) -> Response:
    return _plain(str(error), 400)


async def _failed(_: Request, error: Exception) -> Response:
    log.error("%s", error)
    return _plain("the picture cannot be read here; whoever runs this server has been told why", 500)
