"""A real browser for tests: Debian's Chromium, headless, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from playwright.sync_api import Browser, Playwright

#: How long a page has for whatever is awaited of it.
TIMEOUT_MS: Final = 20_000
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS: Final = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # Pages of another origin come from this machine only in tests.
    "--disable-features=LocalNetworkAccessChecks",
]


@contextmanager
def chromium(playwright: Playwright, *not_by_default: str) -> Iterator[Browser]:
    """A running browser, without some of the arguments that Playwright gives by default.

    Fails where none is installed.
    """
    found = next((path for path in map(shutil.which, _NAMES) if path), None)
    if found is None:
        pytest.fail("no Chromium is installed (Debian: apt-get install chromium)")
    # Chromium's own sandbox does not work for root.
    arguments = [*_ARGUMENTS, "--no-sandbox"] if os.geteuid() == 0 else _ARGUMENTS
    started = playwright.chromium.launch(
        executable_path=found,
        headless=True,
        args=arguments,
        ignore_default_args=list(not_by_default),
    )
    yield started
    started.close()
