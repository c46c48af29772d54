"""Reads the configuration, as often as it is asked to: TOML, files of secrets, the environment.

Every error is a ValueError whose text names the file and says what is wrong with it. Must not know:
which options there are, or who reads the configuration.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pushservice.config.layers import Typed
from pushservice.config.options import CONFIG_FILE
from pushservice.config.settings import Settings, resolve


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, a byte order mark at its beginning left out."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start + 1} is invalid") from None
    except OSError as error:
        raise ValueError(f"can't read {path}: {error.strerror}") from None


def read_table(path: Path) -> dict[str, Any]:
    """The table of a file in TOML 1.0, tables of tables for its sections."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None


class Sources:
    """Where options come from: remembers what was typed, so that all can be read again.

    `typed` is the command line by option name, `config` what was typed for --config, if it was; the
    environment names a file where that is None. `environment` is that of the process, and relative
    paths are relative to the directory that is current now, unless others are given.
    """

    def __init__(
        self,
        typed: Typed,
        config: str | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._typed = typed
        self._environment = os.environ if environment is None else environment
        self._directory = Path.cwd() if directory is None else directory
        where = f"--{CONFIG_FILE.name}"
        if config is None:
            where = f"{CONFIG_FILE.variable} in the environment"
            config = self._environment.get(CONFIG_FILE.variable) or None
        self._where = where
        #: the configuration file, if there is one; absolute
        self.file = self._directory / config if config else None
        self._name_is_empty = config == ""

    def load(self) -> Settings:
        """Read everything as it is now. The Settings have all errors."""
        table, errors = None, []
        if self._name_is_empty:
            errors.append(f"{self._where}: the value is empty")
        elif self.file is not None:
            try:
                table = read_table(self.file)
            except ValueError as error:
                errors.append(f"{self._where}: {error}")
        return resolve(
            self._typed,
            self._environment,
            table,
            file=self.file,
            directory=self._directory,
            read=read_text,
            errors=errors,
        )
