"""A server in this process, from its socket to its last answer."""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from widefield.errors import BadRequest
from widefield.serve.app import Site, build
from widefield.serve.gallery import Gallery
from widefield.serve.guard import LOOPBACK

MOST_CONNECTIONS = 1024
SPARE_FILES = 64  # beside connections: stores, cached tiles, libraries
GRACE_SECONDS = 3
IDLE_SECONDS = 75  # that a connection is kept: one closed as it is used again is an error to its client


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 is any that is free."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def listen(self) -> socket.socket:
        """A socket that has begun to listen. BadRequest where that cannot be."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self.host, self.port))
            listening.listen(MOST_CONNECTIONS)
        except (OSError, OverflowError) as error:
            listening.close()
            raise BadRequest(
                f"{self.host}:{self.port} cannot be listened on ({error}); wanted a free address of this machine; "
                "choose another with --host or --port"
            ) from error
        return listening


def serve(gallery: Gallery, address: Address, ready: Callable[[str], None]) -> None:
    """Answer until Ctrl-C or SIGTERM. `ready` is called with the server's URL when it listens. BadRequest."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with address.listen() as listening:
        server: uvicorn.Server | None = None
        site = Site(gallery, lambda: server is not None and server.should_exit)
        app = build(site, LOOPBACK | {address.host} if address.is_loopback else None)
        server = uvicorn.Server(configured(app))
        host, port = listening.getsockname()[:2]
        ready(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")
        server.run(sockets=[listening])


def configured(app: ASGIApp, log_level: str = "warning") -> uvicorn.Config:
    """How uvicorn is to run it."""
    return uvicorn.Config(
        app, log_level=log_level, access_log=False, server_header=False, lifespan="on", ws="none",
        limit_concurrency=_connections(), timeout_keep_alive=IDLE_SECONDS, timeout_graceful_shutdown=GRACE_SECONDS,
    )  # fmt: skip


def _connections() -> int:
    """As many as this process may have files open for; the limit is raised as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + SPARE_FILES
    if soft < wanted and (hard == resource.RLIM_INFINITY or hard > soft):
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(16, min(MOST_CONNECTIONS, soft - SPARE_FILES))


def cache_folder() -> Path:
    """Where tiles are kept if nobody says: the user's cache folder (XDG Base Directory)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "widefield" / "tiles"
