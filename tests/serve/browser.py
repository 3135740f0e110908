"""A headless Chromium and what it saw: every request it made, every line on its console."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from widefield.serve.assets import has_viewer

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Seen:
    """`faults` are console errors and warnings and uncaught exceptions; `hosts` whom it asked anything."""

    page: Any
    faults: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def loaded(self, seconds: float = 60) -> None:
        """Wait until every tile of the view is there."""
        self.page.wait_for_function(
            "() => window.widefield && widefield.viewer.world.getItemCount() &&"
            " widefield.viewer.world.getItemAt(widefield.viewer.world.getItemCount() - 1).getFullyLoaded()",
            timeout=1000 * seconds,
        )

    def fair(self) -> None:
        """Nothing on the console, and nobody asked but this machine."""
        assert not self.faults, self.faults
        assert self.hosts <= {"127.0.0.1"}, self.hosts


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips, saying what to install, where there is none or no viewer to show in it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    if not has_viewer():
        pytest.skip("needs OpenSeadragon: python setup.py build_viewer")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=["--no-sandbox"])  # CI is root in a container
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser: Any, url: str, *, width: int = 900, height: int = 700, **context: Any) -> Iterator[Seen]:
    """A new visitor's page at a URL."""
    own = browser.new_context(viewport={"width": width, "height": height}, **context)
    page = own.new_page()
    seen = Seen(page)
    page.on("console", lambda line: seen.faults.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.faults.append(str(error)))
    page.on("request", lambda request: _note(seen, request.url))
    try:
        page.goto(url)
        yield seen
    finally:
        own.close()


def _note(seen: Seen, url: str) -> None:
    if urlsplit(url).scheme not in ("data", "blob"):
        seen.hosts.add(urlsplit(url).hostname or "")


def colour(folder: Path, seen: Seen, x: int, y: int) -> tuple[int, int, int]:
    """What the page shows at a point."""
    from PIL import Image

    seen.page.screenshot(path=folder / "point.png")
    return Image.open(folder / "point.png").convert("RGB").getpixel((x, y))
