"""What stands before every route: which hosts are answered, what every answer says, how long a reader may take.

A page of somebody else, open in the same browser, may reach a server on loopback under a name of its own (DNS
rebinding); so where a server listens on loopback, only names of loopback are answered.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from widefield.serve.metrics import Metrics

LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
SLOW_SECONDS = 30.0  # that a reader may leave a piece of an answer lying
PIECE = 1 << 16
HEADERS = {  # OpenSeadragon gives its elements styles in their markup
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' blob: data:; "
        "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """`hosts` None answers to any name."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, metrics: Metrics) -> None:
        self.app, self.hosts, self.metrics = app, hosts, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.count("widefield_requests_total", status=message["status"])
                message["headers"] += [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await send(message)

        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        if self.hosts is not None and _name(host) not in self.hosts:
            refusal = PlainTextResponse("this server answers to 127.0.0.1 and localhost alone\n", 421)
            await refusal(scope, receive, told)
            return
        await self.app(scope, receive, told)


def _name(host: str) -> str:
    """Without the port."""
    return host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and ":" in host else host


class Pieces(Response):
    """A body that is sent piece by piece; a reader who takes none of it for SLOW_SECONDS is hung up on."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = memoryview(bytes(self.body)) if scope["method"] != "HEAD" else memoryview(b"")
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for at in range(0, len(body), PIECE):
                piece: dict[str, Any] = {"type": "http.response.body", "body": bytes(body[at : at + PIECE])}
                await asyncio.wait_for(send({**piece, "more_body": True}), SLOW_SECONDS)
            await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            return  # the server closes a connection whose answer was not finished
        finally:
            if self.background is not None:
                await self.background()
