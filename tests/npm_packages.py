"""Packages for Node that tests use: which versions, and how they are installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

#: The folder of our own package.
CLIENT: Final = Path(__file__).parents[1] / "pushservice" / "web" / "client"
#: npm's own cache, safe for several processes; what it has is not downloaded again by a later run.
CACHE: Final = Path(__file__).parents[1] / ".cache" / "npm"
PINNED: Final = {
    "@types/node": "20.19.24",
    "@types/react": "19.2.2",
    "@types/react-dom": "19.2.2",
    "@types/ws": "8.18.1",
    "esbuild": "0.25.12",
    "react": "19.2.0",
    "react-dom": "19.2.0",
    "typescript": "5.9.3",
    "ws": "8.18.3",
}


def run_npm(*words: str | Path, directory: Path) -> str:
    """Run npm, without asking or telling anybody what need not be; returns its output."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: install Node.js 20 or later with npm (nodejs.org)")
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel", "error"]
    command = ["npm", *map(str, words), *quiet]
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | {"npm_config_cache": str(CACHE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    if done.returncode:
        pytest.fail(
            f"{' '.join(command)} ended with {done.returncode}: {done.stdout + done.stderr}"
        )
    return done.stdout


def npm_project(directory: Path, *packages: str | Path) -> Path:
    """Make `directory` a project with these packages, by pinned name or path, in node_modules."""
    project = {"private": True, "type": "module"}
    (directory / "package.json").write_text(json.dumps(project))
    wanted = [f"{name}@{PINNED[name]}" if isinstance(name, str) else name for name in packages]
    run_npm("install", "--no-save", *wanted, directory=directory)
    return directory


def project_with(directory: Path, made: Path) -> Path:
    """Make `directory` a project of its own with the packages of the project `made`."""
    shutil.copy(made / "package.json", directory)
    (directory / "node_modules").symlink_to(made / "node_modules")
    return directory


def packed_client(directory: Path) -> Path:
    """Our package as npm would publish it: a file in `directory`."""
    packed = run_npm("pack", "--json", "--pack-destination", directory, CLIENT, directory=directory)
    [made] = json.loads(packed)
    return directory / str(made["filename"])


def node_with_websocket() -> list[str]:
    """The command of a Node that has a WebSocket of its own: Node 20 has it only when asked to."""
    version = subprocess.check_output(["node", "--version"], text=True)
    return ["node", "--experimental-websocket"] if version.startswith("v20.") else ["node"]
