"""What a start or a reload runs: a configuration, its options, and warnings about it.

Must not know: processes, or where options come from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pushservice.config.coercers import AUTO
from pushservice.config.config import Config


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration, and the options that it was made of, for worker processes.

    `warnings` tell operators what in it may not be meant.
    """

    config: Config
    texts: Mapping[str, Any]
    warnings: Sequence[str] = ()


def worker_count(config: Config) -> int:
    """How many workers `config` asks for; `auto` is one for each core that may be used."""
    if config.workers == AUTO:
        return len(os.sched_getaffinity(0))
    return int(config.workers)
