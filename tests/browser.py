"""A real Chromium for tests, and what every page in it must keep to."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from waiting import PATIENCE, pauses

expect.set_options(timeout=1000 * PATIENCE)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str:
    """The browser named by STREAMKM_TEST_CHROMIUM, else that of the system. There is no run without."""
    named = os.environ.get("STREAMKM_TEST_CHROMIUM", "")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail("There is no Chromium: make servers installs Debian's, or name one: STREAMKM_TEST_CHROMIUM=/path")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without a window."""
    with sync_playwright() as playwright:
        # Its sandbox needs rights that a container does not give; it meets our own pages only.
        patience = 1000 * PATIENCE
        browser = playwright.chromium.launch(executable_path=executable(), timeout=patience, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, *, width: int = 1400, height: int = 1000, scheme: str = "light"
) -> Iterator[Page]:
    """The page at `url`. In the end: it had no error, wrote none to the console, and asked no other host."""
    wrong: list[str] = []
    host = urlsplit(url).netloc
    options: dict[str, Any] = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
    with contextlib.closing(browser.new_context(**options)) as context:
        context.set_default_timeout(1000 * PATIENCE)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console: {m.text}") if m.type in {"error", "warning"} else None)
        page.on("pageerror", lambda e: wrong.append(f"error: {e}"))
        page.on("request", lambda r: wrong.append(f"asked {r.url}") if urlsplit(r.url).netloc != host else None)
        page.goto(url)
        yield page
        assert wrong == []


def until(page: Page, expression: str, arg: object = None) -> None:
    """Wait for a condition of JavaScript. Playwright's own way needs ``eval``, which our pages forbid."""
    deadline = time.monotonic() + PATIENCE
    for pause in pauses():
        if page.evaluate(expression, arg):
            return
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {expression} of {arg}"
        page.wait_for_timeout(1000 * pause)


def says(page: Page, selector: str, text: str | re.Pattern[str]) -> None:
    """Wait until the text of an element contains `text`: each panel is drawn when its own answer comes, some twice."""
    expect(page.locator(selector).first).to_contain_text(text)


def serious(page: Page) -> list[str]:
    """What axe finds that keeps people out."""
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:120]}"
        for v in found
        if v["impact"] in {"serious", "critical"}
    ]
