"""Answers that the routes share: in a line, in JSON, "you have it", and one to each fault. And work that whoever asked
for it can leave.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from widefield.errors import BadRequest, OverBudget, WidefieldError
from widefield.serve.flights import Busy
from widefield.serve.served import Missing

log = logging.getLogger("widefield.serve")
Result = TypeVar("Result")
FOREVER = "public, max-age=31536000, immutable"
OPEN = {"access-control-allow-origin": "*"}  # IIIF wants its pictures readable from any page
RETRY_SECONDS = 2
LOOK_SECONDS = 0.5  # between two looks whether the server closes


class Gone(Exception):
    """Whoever asked went away."""


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


def unchanged(request: Request, headers: dict[str, str]) -> Response | None:
    """304, where whoever asks has it already."""
    has = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return Response(None, 304, headers) if headers["etag"] in has or "*" in has else None


def fresh(document: Any) -> Response:
    """JSON that is not kept."""
    return JSONResponse(document, 200, {"cache-control": "no-store"})


def plain(line: str, status: int, **headers: str) -> Response:
    """A line that is not kept."""
    return PlainTextResponse(line + "\n", status, {"cache-control": "no-store", **OPEN, **headers})


async def _busy(_: Request, __: Exception) -> Response:
    return plain("too much is being made at the moment; come again", 503, **{"retry-after": str(RETRY_SECONDS)})


async def _gone(_: Request, __: Exception) -> Response:
    return Response(None, 499)


async def _missing(_: Request, error: Exception) -> Response:
    return plain(str(error), 404)


async def _refused(_: Request, error: Exception) -> Response:
    return plain(str(error), 400)


async def _failed(_: Request, error: Exception) -> Response:
    log.error("%s", error)
    return plain("the picture cannot be read here; whoever runs this server has been told why", 500)


FAULTS: dict[Any, Any] = {
    Busy: _busy, Gone: _gone, Missing: _missing, BadRequest: _refused, OverBudget: _refused,
    WidefieldError: _failed,
}  # fmt: skip
