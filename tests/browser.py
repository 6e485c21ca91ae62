"""Debian's Chromium without a window, to see what a page looks like."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
IS_IDLE = "window.Bokeh && Bokeh.documents.length > 0 && Bokeh.documents.every(document => document.is_idle)"


class Opened(NamedTuple):
    """A page that is drawn, and all that went wrong on the way: errors, warnings, and requests of anything else."""

    page: Any
    problems: list[str]


@contextlib.contextmanager
def opened(path: Path, width: int, height: int = 900, scale: int = 1) -> Iterator[Opened]:
    """Yield a file in a window of so many pixels, when its charts are drawn."""
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        size: Any = {"width": width, "height": height}
        page = browser.new_page(viewport=size, device_scale_factor=scale)
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"a dialog says {dialog.message}"))
        page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        page.wait_for_function(IS_IDLE)
        page.wait_for_timeout(200)  # the last frame
        yield Opened(page, problems)
        browser.close()
