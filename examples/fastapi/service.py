"""An images endpoint as OpenAI's clients know it, around one opened model: POST /v1/images/generations.

    uvicorn service:app --port 8080

A picture is computed in a thread, one at a time, since it takes all cores; a few requests wait in line, and more are
told when to come again. When whoever asked hangs up, they leave the line, or their picture stops within a step of a
window. Pictures that were asked for as a URL are kept in memory, the newest KEPT of them.
"""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

import widefield
from widefield.errors import BadRequest, OverBudget, WidefieldError
from widefield.geometry import Region
from widefield.model import Model
from widefield.options import parse_size
from widefield.store.pngfile import png_pieces
from widefield.store.provenance import BUNDLE, BUNDLE_NAME, DRAWN, GENERATOR, SEED, SOURCE_TYPE, xmp_packet

AT_ONCE, IN_LINE = 1, 4  # pictures: each takes all cores, and the budget
MOST_PX, MOST_PICTURES = 1 << 22, 4  # of a request: what is larger is for `widefield generate`
KEPT = 64
RETRY_SECONDS, LOOK_SECONDS = 5, 0.1
Result = TypeVar("Result")


class Wish(BaseModel):
    """What may be asked for. `seed` is ours: the same one, the same picture; the n-th picture has seed + n."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=4000)
    n: int = Field(1, ge=1, le=MOST_PICTURES)
    size: str = "512x512"
    response_format: Literal["url", "b64_json"] = "url"
    seed: int | None = Field(None, ge=0, lt=1 << 53)  # what every JSON holds
    model: str | None = None  # there is one; clients name it all the same
    user: str | None = None


class Busy(Exception):
    """The line is full."""


class Gone(Exception):
    """Whoever asked hung up."""


class Studio:
    """One model; AT_ONCE threads that draw with it."""

    def __init__(self, model: Model, memory: str) -> None:
        self.model, self.memory = model, memory
        self.asked = self.drawn = self.stopped = 0  # requests in here; pictures made, and stopped
        self.turns = asyncio.Semaphore(AT_ONCE)

    async def png(self, prompt: str, size: tuple[int, int], seed: int) -> bytes:
        """A picture, when it is its turn. Cancelled, it leaves the line or stops; its thread has ended by then."""
        async with self.turns:
            left = threading.Event()
            drawing = asyncio.ensure_future(asyncio.to_thread(self._png, prompt, size, seed, left))
            try:
                data = await asyncio.shield(drawing)
            except asyncio.CancelledError:
                left.set()
                await asyncio.wait({drawing})
                self.stopped += 1
                raise
            self.drawn += 1
            return data

    def _png(self, prompt: str, size: tuple[int, int], seed: int, left: threading.Event) -> bytes:
        width, height = size
        with self.model.generate(prompt, size=size, seed=seed, memory=self.memory) as picture:
            pixels = picture.read(Region(0, 0, height, width), cancelled=left.is_set)
        said = {
            SOURCE_TYPE: DRAWN, GENERATOR: f"widefield {widefield.__version__}", SEED: str(seed),
            BUNDLE: self.model.bundle.digest, BUNDLE_NAME: self.model.bundle.name,
        }  # fmt: skip
        texts = [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_packet(said))]
        return b"".join(png_pieces(width, height, [pixels], texts=texts))

    async def pictures(self, wish: Wish) -> list[tuple[int, bytes]]:
        """(seed, PNG) of each. Busy at once where the line is full."""
        if self.asked >= AT_ONCE + IN_LINE:
            raise Busy
        self.asked += 1
        try:
            size, first = checked_size(wish.size), secrets.randbelow(1 << 31) if wish.seed is None else wish.seed
            return [(seed, await self.png(wish.prompt, size, seed)) for seed in range(first, first + wish.n)]
        finally:
            self.asked -= 1


def checked_size(text: str) -> tuple[int, int]:
    """(width, height). BadRequest."""
    width, height = parse_size(text)
    if width * height > MOST_PX:
        raise BadRequest(f"size {text} was asked for; wanted at most {MOST_PX:,} px; ask for less")
    return width, height


@asynccontextmanager
async def life(app: FastAPI) -> AsyncIterator[None]:
    """The model is opened once: bundle and budget are the environment's."""
    model = widefield.open(os.environ.get("WIDEFIELD_BUNDLE"))
    app.state.studio = Studio(model, os.environ.get("WIDEFIELD_MEMORY", "2GiB"))
    app.state.kept = OrderedDict()
    yield


app = FastAPI(title="Widefield", lifespan=life)


@app.post("/v1/images/generations")
async def generations(request: Request, wish: Wish) -> dict[str, Any]:
    """Draw n pictures of a prompt."""
    made = await unless_gone(request, request.app.state.studio.pictures(wish))
    return {"created": int(time.time()), "data": [answer(request, wish, *each) for each in made]}


def answer(request: Request, wish: Wish, seed: int, data: bytes) -> dict[str, Any]:
    """A picture, or where it is."""
    if wish.response_format == "b64_json":
        return {"b64_json": base64.b64encode(data).decode(), "seed": seed}
    name, kept = secrets.token_hex(16), request.app.state.kept
    kept[name] = data
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return {"url": str(request.url_for("picture", name=name)), "seed": seed}


@app.get("/v1/images/{name}.png")
async def picture(request: Request, name: str) -> Response:
    """One that was asked for as a URL."""
    data = request.app.state.kept.get(name)
    if data is None:
        raise HTTPException(404, "there is no such picture here, or not any more")
    return Response(data, media_type="image/png", headers={"cache-control": "private, immutable"})


@app.get("/healthz")
async def healthz(request: Request) -> dict[str, int]:
    """How it gets on."""
    studio = request.app.state.studio
    return {"asked": studio.asked, "drawn": studio.drawn, "stopped": studio.stopped}


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; cancelled, and Gone, when whoever asked hangs up."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if await request.is_disconnected():
                raise Gone
            await asyncio.wait({task}, timeout=LOOK_SECONDS)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# Faults, as OpenAI's clients read them: 429 and 503 they try again.


def fault(status: int, kind: str, message: str, *, param: str | None = None, **headers: str) -> JSONResponse:
    """{"error": ...}; `kind` is its type and its code."""
    about = {"message": message, "type": kind, "param": param, "code": kind}
    return JSONResponse({"error": about}, status, headers)


@app.exception_handler(RequestValidationError)
async def misread(_: Request, error: RequestValidationError) -> JSONResponse:
    """A field that is missing, unknown or out of bounds."""
    first = error.errors()[0]
    param = ".".join(map(str, first["loc"][1:])) or None
    return fault(400, "invalid_request_error", f"{param or 'body'}: {first['msg']}", param=param)


@app.exception_handler(BadRequest)
@app.exception_handler(OverBudget)
async def refused(_: Request, error: WidefieldError) -> JSONResponse:
    """What cannot be drawn, or not in this budget."""
    return fault(400, "invalid_request_error", str(error), param="size")


@app.exception_handler(Busy)
async def busy(_: Request, __: Busy) -> JSONResponse:
    """Come again."""
    return fault(
        429, "rate_limit_exceeded", f"{AT_ONCE + IN_LINE} requests are here already; come again",
        **{"retry-after": str(RETRY_SECONDS)},
    )  # fmt: skip


@app.exception_handler(Gone)
async def gone(_: Request, __: Gone) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)


@app.exception_handler(WidefieldError)
async def failed(_: Request, error: WidefieldError) -> JSONResponse:
    """A full disk, an engine that is not there."""
    return fault(503, "server_error", str(error), **{"retry-after": str(RETRY_SECONDS)})


@app.exception_handler(HTTPException)
async def other(_: Request, error: HTTPException) -> JSONResponse:
    """No such path, no such method."""
    return fault(error.status_code, "invalid_request_error", str(error.detail))
