"""What the tests of the log share."""

from __future__ import annotations

import pytest
from log_doubles import CapturedLogger


@pytest.fixture
def captured() -> CapturedLogger:
    return CapturedLogger()
