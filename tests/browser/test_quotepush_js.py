"""The browser client quotepush.js, tested under Node with a fake socket, clock and random."""

import shutil
import subprocess
from pathlib import Path

import pytest

TEST_FILE = Path(__file__).with_name("quotepush.test.mjs")
TIMEOUT = 60.0


def test_the_javascript_client_passes_its_own_tests() -> None:
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.fail("node is missing: install it (Debian: apt-get install nodejs)")
    try:
        run = subprocess.run(
            [node, "--test", str(TEST_FILE)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"node --test did not end in {TIMEOUT:g} s:\n{error.stdout!r}")
    if run.returncode != 0:
        pytest.fail(f"node --test ended with {run.returncode}:\n{run.stdout}")
    # A run that found no tests also ends with 0.
    assert "fail 0" in run.stdout, run.stdout
    assert "pass 0" not in run.stdout, run.stdout
