"""What the tests of a daemon share."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import globalLogPublisher


class LoggedLines:
    """Everything that is logged, as text."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: dict[str, Any]) -> None:
        if event.get("log_format"):
            self.lines.append(event["log_format"].format_map(event))

    def __contains__(self, text: str) -> bool:
        return any(text in line for line in self.lines)


@pytest.fixture
def logged():
    observer = LoggedLines()
    globalLogPublisher.addObserver(observer)
    yield observer
    globalLogPublisher.removeObserver(observer)
