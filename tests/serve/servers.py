"""A server for tests, in a thread of this process, on loopback and any free port."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from widefield.serve.app import Site, build
from widefield.serve.gallery import Gallery
from widefield.serve.guard import LOOPBACK
from widefield.serve.run import Address, configured


@contextmanager
def running(gallery: Gallery) -> Iterator[str]:
    """The gallery's server in a thread; its URL without the last slash."""
    with Address("127.0.0.1", 0).listen() as listening:
        server: uvicorn.Server
        site = Site(gallery, lambda: server.should_exit)
        server = uvicorn.Server(configured(build(site, LOOPBACK), "critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
