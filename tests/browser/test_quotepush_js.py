"""Scripts of the pages, tested under Node: the client with a fake socket, clock and random."""

import shutil
import subprocess
from pathlib import Path

import pytest

TEST_FILES = ("quotepush.test.mjs", "figures.test.mjs")
TIMEOUT = 60.0


@pytest.mark.parametrize("name", TEST_FILES)
def test_a_script_passes_its_own_tests(name: str) -> None:
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.fail("node is missing: install it (Debian: apt-get install nodejs)")
    try:
        run = subprocess.run(
            [node, "--test", str(Path(__file__).with_name(name))],
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
