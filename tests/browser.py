"""A headless Chromium for tests of pages: one for each test process, and a fresh profile for each test.

Without a Chromium the tests are skipped; with ``HSD_BROWSER=required`` in the environment, as in CI, they fail.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def launched() -> Iterator:
    """A browser of playwright's synchronous interface."""
    program = shutil.which("chromium")
    if program is None:
        message = "there is no program chromium (Debian's package has it)"
        if os.environ.get("HSD_BROWSER") == "required":
            raise RuntimeError(f"HSD_BROWSER is required, and {message}")
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def browser_page(browser, **options) -> Iterator:
    """A page in a fresh profile. Leaving it fails if a script failed, or anything but files was asked for.

    Parameters
    ----------
    options
        Of playwright's ``new_context``: ``color_scheme``, ``viewport``...
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.set_default_timeout(60_000)  # other tests use the processors too
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # An image that is still on its way when the page leaves it is aborted, and nothing is wrong.
    page.on("requestfailed", lambda r: r.failure == "net::ERR_ABORTED" or wrong.append(f"{r.url}: {r.failure}"))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or wrong.append(request.url))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    try:
        yield page
    finally:
        context.close()
    assert wrong == []
