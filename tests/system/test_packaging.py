"""The wheel and the editable install, each in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from free_ports import free_port
from system_harness import Daemon, environment

ROOT: Final = Path(__file__).parents[2]
#: what is no source: made by tools, or by running and building
NOT_COPIED: Final = shutil.ignore_patterns(
    *(".*", "__pycache__", "*.egg-info", "build", "dist", "node_modules", "dropin.cache")
)
#: twistd without its script, which an environment made of links does not have
RUN_TWISTD: Final = ["-c", "import sys; from twisted.scripts.twistd import run; run()"]

ASK_PLUGINS: Final = """
import json
from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
makers = [maker for maker in getPlugins(IServiceMaker) if maker.tapname == "quotepush"]
import pushservice, twisted.plugins.quotepush_plugin as plugin
print(json.dumps([len(makers), makers[0].module, pushservice.__file__, plugin.__file__]))
"""


def run(*command: str | Path, directory: Path) -> str:
    """Run a command with nothing of our own environment on Python's path; returns its output."""
    env = environment()
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python: Path | str, *arguments: str | Path, directory: Path) -> None:
    """Run pip without the network."""
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--no-input"]
    run(python, "-m", "pip", *arguments, *options, directory=directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree: building writes into it."""
    copy = tmp_path_factory.mktemp("source") / "quotepush"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as `pip wheel` builds it."""
    made = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-build-isolation", "-w", made, source, directory=made)
    (path,) = made.glob("*.whl")
    return path


@dataclass
class Environment:
    """A virtual environment that has all but quotepush, and a directory elsewhere."""

    python: Path
    packages: Path
    elsewhere: Path


@pytest.fixture
def fresh(tmp_path: Path) -> Environment:
    """An environment with links to our dependencies; Twisted is a copy, as plugins go into it."""
    directory, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    venv.create(directory, symlinks=True, with_pip=False)
    elsewhere.mkdir()
    (packages,) = directory.glob("lib/python*/site-packages")
    ours = Path(sysconfig.get_path("purelib"))
    for there in ours.iterdir():
        name = there.name
        if name == "twisted":
            leave_out = shutil.ignore_patterns("test", "__pycache__", "dropin.cache", "quotepush*")
            shutil.copytree(there, packages / name, ignore=leave_out)
        elif "quotepush" not in name and name not in ("pushservice", "__pycache__"):
            (packages / name).symlink_to(there)
    return Environment(directory / "bin" / "python", packages, elsewhere)


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Ends the daemons that a test puts in."""
    started: list[Daemon] = []
    yield started
    for daemon in started:
        daemon.stop()
        assert "Traceback" not in daemon.output()


def serves_its_page(place: Environment, daemons: list[Daemon]) -> None:
    """Start the daemon of `place` and fetch what it serves from its package data."""
    port = free_port()
    listen = ["--interface", "127.0.0.1", "--port", str(port), "--plain", "--admin", "off"]
    command = [str(place.python), *RUN_TWISTD, "-n", "--pidfile=", "quotepush", *listen]
    command += ["--redis", "redis://127.0.0.1:1"]
    daemons.append(
        Daemon(command, port=port, directory=place.elsewhere, certs=place.elsewhere, plain=True)
    )
    daemons[0].wait_for("is served")
    for name in ("", "quotepush.js"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=20) as answer:
            assert answer.status == 200
            assert answer.read()


def test_the_wheel_holds_the_package_its_data_and_the_plugin_and_nothing_of_twisted_s(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(entry).decode()
    web = ROOT / "pushservice" / "web"
    data = {f"pushservice/web/{path.name}" for path in web.glob("*.*") if path.suffix != ".py"}
    data |= {f"pushservice/web/client/{path.name}" for path in (web / "client").iterdir()}
    data |= {"pushservice/py.typed"}
    assert {"pushservice/web/client/quotepush.js", "pushservice/web/console.html"} <= data
    assert data <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "pushservice").rglob("*.py")}
    assert modules <= names
    assert {name for name in names if name.startswith("twisted/")} == {
        "twisted/plugins/quotepush_plugin.py"
    }
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "pushservice",
        "twisted",
    }
    assert not [name for name in names if name.endswith((".pyc", ".key", ".crt", "dropin.cache"))]
    assert "\nName: quotepush\n" in metadata
    assert "\nRequires-Dist: twisted" in metadata


def test_an_installed_wheel_is_found_and_served_by_twistd_from_any_directory(
    wheel: Path, fresh: Environment, daemons: list[Daemon]
) -> None:
    before = run(fresh.python, *RUN_TWISTD, "--help", directory=fresh.elsewhere)
    assert "quotepush" not in before
    pip(fresh.python, "install", wheel, directory=fresh.elsewhere)
    found = json.loads(run(fresh.python, "-c", ASK_PLUGINS, directory=fresh.elsewhere))
    count, module, package_file, plugin_file = found
    assert (count, module) == (1, "pushservice.tap")
    assert Path(package_file) == fresh.packages / "pushservice" / "__init__.py"
    assert Path(plugin_file) == fresh.packages / "twisted" / "plugins" / "quotepush_plugin.py"
    listed = run(fresh.python, *RUN_TWISTD, "--help", directory=fresh.elsewhere)
    (line,) = [line for line in listed.splitlines() if line.split()[:1] == ["quotepush"]]
    assert "Push live market quotes" in line
    version = run(fresh.python, *RUN_TWISTD, "quotepush", "--version", directory=fresh.elsewhere)
    assert version.split()[1] in wheel.name
    serves_its_page(fresh, daemons)


def test_an_uninstall_leaves_twisted_s_plugins_as_they_were(
    wheel: Path, fresh: Environment
) -> None:
    plugins = fresh.packages / "twisted" / "plugins"
    before = {path.name for path in plugins.glob("*.py")}
    pip(fresh.python, "install", wheel, directory=fresh.elsewhere)
    run(fresh.python, "-m", "pip", "uninstall", "--yes", "quotepush", directory=fresh.elsewhere)
    assert {path.name for path in plugins.glob("*.py")} == before
    assert "quotepush" not in run(fresh.python, *RUN_TWISTD, "--help", directory=fresh.elsewhere)


def test_an_editable_install_is_found_and_served_by_twistd_from_any_directory(
    source: Path, fresh: Environment, daemons: list[Daemon]
) -> None:
    pip(
        fresh.python,
        *("install", "--no-build-isolation", "--editable", source),
        directory=fresh.elsewhere,
    )
    found = json.loads(run(fresh.python, "-c", ASK_PLUGINS, directory=fresh.elsewhere))
    count, module, package_file, plugin_file = found
    assert (count, module) == (1, "pushservice.tap")
    assert Path(package_file) == source / "pushservice" / "__init__.py"
    assert Path(plugin_file) == source / "twisted" / "plugins" / "quotepush_plugin.py"
    assert "quotepush" in run(fresh.python, *RUN_TWISTD, "--help", directory=fresh.elsewhere)
    serves_its_page(fresh, daemons)
