"""A Chromium of this machine, and pages in it that may ask nobody for anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import REFERENCE, WIDE, Seen

from peftbench.report import assemble, site

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no Chromium here: none of {', '.join(NAMES)} is on the path")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of a committed result set, written once."""
    folder, written = tmp_path_factory.mktemp("pages"), dict[str, Path]()

    def of(name: str) -> Path:
        if name not in written:
            written[name] = site.write_page(REFERENCE / name, folder / f"{name}.html").path
        return written[name]

    return of


@pytest.fixture(scope="session")
def loaded() -> Callable[[str], assemble.ReportData]:
    """The tables of a committed result set, read once."""
    read = dict[str, assemble.ReportData]()

    def of(name: str) -> assemble.ReportData:
        if name not in read:
            read[name] = assemble.load(REFERENCE / name)
        return read[name]

    return of


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file as `page(path, address, **context)`; after the test, the page must have been quiet."""
    contexts, pages = [], []

    def page(path: Path, address: str = "", viewport: dict[str, int] = WIDE, **given: Any) -> Any:
        context = browser.new_context(viewport=viewport, **given)
        contexts.append(context)
        made, seen = context.new_page(), Seen()
        pages.append(seen)
        made.route("**/*", lambda route: _local(route, path, seen))
        made.on("console", lambda m: seen.errors.append(m.text) if m.type in ("error", "warning") else None)
        made.on("pageerror", lambda e: seen.errors.append(str(e)))
        made.on("dialog", lambda d: (seen.dialogs.append(d.message), d.dismiss()))
        made.goto(f"{path.as_uri()}{address}")
        if given.get("java_script_enabled", True):
            made.wait_for_selector("html[data-ready]")
        return made

    yield page
    for context in contexts:
        context.close()
    assert [seen for seen in pages if seen != Seen()] == []


def _local(route: Any, path: Path, seen: Seen) -> None:
    url = route.request.url.partition("#")[0]
    if url == path.as_uri() or url.startswith(("data:", "blob:")):
        route.continue_()
    else:
        seen.asked.append(url)
        route.abort()
