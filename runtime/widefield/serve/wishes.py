"""A visitor's wish for a picture, as JSON: read in pieces, from our own page or a program, checked, and no more."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request

from widefield.errors import BadRequest
from widefield.serve.gallery import Wish

LARGEST_NBYTES = 1 << 14


async def read_wish(request: Request) -> Wish:
    """{"prompt": text, "size": [width, height], "seed": number, or its digits}.

    BadRequest; 413 for too much of it; 415 where it is not declared to be JSON and 403 from another site's page, which
    together keep such pages from drawing here.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "wanted application/json")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "pictures are drawn for this server's own page")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_NBYTES:
            raise HTTPException(413, f"wanted at most {LARGEST_NBYTES} bytes")
    try:
        asked = json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise BadRequest("the body is no JSON; wanted an object with prompt, size and seed; mend it") from None
    if not isinstance(asked, dict) or not isinstance(asked.get("prompt"), str):
        raise BadRequest("the body has no text under 'prompt'; wanted one; mend it")
    size = asked.get("size")
    if not isinstance(size, list) or len(size) != 2:
        raise BadRequest("'size' is no pair of numbers; wanted [width, height] in pixels; mend it")
    return Wish(
        asked["prompt"], (_whole(size[0], "size"), _whole(size[1], "size")), _whole(asked.get("seed", 0), "seed")
    )


def _whole(value: Any, name: str) -> int:
    """A whole number of at most 20 digits; a seed is longer than what JavaScript counts to, so digits do too."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**20:
        return value
    raise BadRequest(f"{name!r} has {str(value)[:40]!r}; wanted a whole number; mend it")
