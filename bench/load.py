"""Compiles the load generator (load.c), starts it and sends it commands."""

from __future__ import annotations

import hashlib
import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any

from processes import LOAD_CORE, pinned, stop

SOURCE = Path(__file__).with_name("load.c")
#: Seconds to wait for an answer; the program itself gives up well before.
_ANSWER_TIMEOUT = 180


class LoadFailed(Exception):
    """The load generator ended, or could not be built; the text says why."""


def build(directory: Path) -> Path:
    """Compile load.c into `directory` unless this version is there already."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = directory / f"load-{digest}"
    if not program.exists():
        directory.mkdir(parents=True, exist_ok=True)
        command = ["cc", "-O2", "-std=c11", "-o", program, SOURCE, "-lssl", "-lcrypto"]
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if result.returncode:
            raise LoadFailed(f"{SOURCE.name} does not compile:\n{result.stderr}")
    return program


class Load:
    """The running load generator: one request, one answer."""

    def __init__(
        self,
        program: Path,
        port: int,
        redis: Path,
        style: str,
        *,
        tls: bool,
        token: str | None = None,
    ) -> None:
        """Every client sends `token`, if given, in its handshake."""
        command = [program, str(port), redis, style, "tls" if tls else "plain"]
        variables = {} if token is None else {"LOAD_TOKEN": token}
        with pinned(LOAD_CORE):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **variables},
            )

    def ask(self, *words: object) -> dict[str, Any]:
        """Send a command and wait for its result."""
        assert self._process.stdin is not None, "opened as a pipe"
        assert self._process.stdout is not None, "opened as a pipe"
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
            answered, _, _ = select.select([self._process.stdout], [], [], _ANSWER_TIMEOUT)
            line = self._process.stdout.readline() if answered else ""
        except BrokenPipeError:
            line = ""
        if not line:
            raise LoadFailed(f"the load generator ended at: {' '.join(map(str, words))}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        stop(self._process)
