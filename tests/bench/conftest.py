"""A Chromium for the pages of this folder, or the reason why there is none."""

import importlib.util
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from page import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser():
    """Skipped where there is none, with what to install; closed before tests that want a loop of their own."""
    missing = [] if importlib.util.find_spec("playwright") else ["playwright"]
    missing += [] if CHROMIUM else ["Chromium (apt-get install chromium)"]
    if missing:
        pytest.skip(f"no browser test without {', '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def plain_page(browser):
    """An empty page with storage of its own, and the errors of its scripts."""
    page, errors = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("**/*", lambda route: route.fulfill(body="<html lang=en><body></body></html>", content_type="text/html"))
    page.goto("http://label.test/")
    return page, errors


@pytest.fixture
def open_label(plain_page, request):
    """`open_label(rows=6, suggestions={0: ["17"]}, choices=[…])` → its `Page`; an error of the script fails."""
    page, errors = plain_page
    errors.clear()
    yield partial(Page, page)
    if folder := os.environ.get("IVLKIT_SCREENSHOTS"):
        page.screenshot(path=Path(folder, f"{request.node.name}.png"))
    assert errors == []
