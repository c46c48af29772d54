"""What the tests of the manager and its workers share."""

from __future__ import annotations

import random
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import defer
from twisted.logger import globalLogPublisher
from worker_doubles import LoggedLines, Managed


@pytest.fixture
def logged():
    observer = LoggedLines()
    globalLogPublisher.addObserver(observer)
    yield observer
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def mean_jitter(monkeypatch):
    """Every jitter is its mean."""
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


@pytest.fixture
def make(mean_jitter):
    """make(**config): a manager that is stopped at the end, and must leave nothing behind."""
    made: list[Managed] = []

    def one(**values: Any) -> Managed:
        made.append(Managed(**values))
        return made[-1]

    yield one
    for managed in made:
        pytest_twisted.blockon(defer.ensureDeferred(managed.end()))
