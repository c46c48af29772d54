"""script/environment: what is interrupted while it is made is not taken for whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from system_harness import poll

ENVIRONMENT = Path(__file__).parents[2] / "script" / "environment"
USABLE = '"$PWD/.venv/bin/python" -m pip --version'


@pytest.fixture
def start(tmp_path):
    """Starts bash in a checkout that has script/environment and nothing to install."""
    (tmp_path / "script").mkdir()
    shutil.copy(ENVIRONMENT, tmp_path / "script")
    (tmp_path / "setup.py").write_text("raise SystemExit('this one can not be installed')\n")

    def start(command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", "-c", f"set -euo pipefail; . script/environment; {command}"],
            cwd=tmp_path,
            env=os.environ | {"QUOTEPUSH_PYTHON": sys.executable},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.fixture
def run(start):
    """Runs bash there to its end: its status, and what it said."""

    def run(command: str) -> tuple[int, str]:
        process = start(command)
        _, said = process.communicate(timeout=120)
        return process.returncode, said

    return run


def test_one_whose_making_was_interrupted_is_made_anew_and_then_taken(start, run, tmp_path):
    making = start("make_venv .venv")
    poll((tmp_path / ".venv" / "bin" / "python").exists, "the first of its files")
    os.killpg(making.pid, signal.SIGINT)
    making.communicate(timeout=60)
    assert making.returncode != 0
    status, said = run(f"make_venv .venv; {USABLE}")
    assert status == 0, said
    assert ".venv was left unfinished: making it anew" in said
    assert "making .venv with Python 3." in said
    assert run("make_venv .venv") == (0, "")


def test_one_without_pip_that_an_older_script_left_is_made_anew(run):
    status, said = run(f"'{sys.executable}' -m venv --without-pip .venv; make_venv .venv; {USABLE}")
    assert status == 0, said
    assert ".venv was left unfinished: making it anew" in said


def test_an_environment_that_somebody_made_is_taken(run, tmp_path):
    theirs = Path(sys.executable).parents[1]
    (tmp_path / ".venv").symlink_to(theirs)
    assert run("make_venv .venv") == (0, "")
    assert (tmp_path / ".venv").resolve() == theirs.resolve()


def test_an_installation_that_fails_is_said_and_leaves_the_environment_unfinished(run, tmp_path):
    status, said = run("environment")
    assert status == 1
    assert "this one can not be installed" in said
    assert "pip failed, see above" in said
    assert (tmp_path / ".venv" / "unfinished").exists()


def test_what_is_installed_is_known_only_once_it_is_whole(run):
    status, said = run(
        "begin there; has there it && exit 3; finish there it; has there it || exit 4;"
        "has there other && exit 5; begin there; has there it && exit 6; exit 0"
    )
    assert status == 0, said


def test_a_package_that_is_missing_is_named_with_what_it_is_for_and_what_to_type(run):
    status, said = run(
        "id() { echo 1000; }; needs 'command -v true' coreutils 'all'; needs false nosuch 'tests';"
        "needs false nothing 'more tests'; install_needed"
    )
    assert status == 1
    assert "missing: nosuch (tests)" in said
    assert "Install what is missing: apt-get install nosuch nothing" in said
    assert "coreutils" not in said
