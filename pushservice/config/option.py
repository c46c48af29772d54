"""One option of the daemon: its name, help, default, the coercer of its values, its other names.

Must not know: which options there are, or where values come from. Own code: one declaration serves
twistd's parser, click, the environment, TOML and the documents; a parser's own type serves itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pushservice.config.coercers import Coercer, nonempty_text

#: the prefix of all environment variables of quotepush
VARIABLES: Final = "QUOTEPUSH_"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of `twistd quotepush`.

    `default` is text, as it would be typed; None means that the option has no value unless given.
    `coerce` turns a text into a value, or raises ValueError. `unit` says what a number counts.
    `section` is the option's section of the configuration file, empty for the top. A `flag` takes
    no value. A `secret` is shown to nobody, and may be given in a file that the option `NAME-file`
    names, whose `content_of` is NAME. The values of a `path` are files or directories.
    """

    name: str
    help: str
    default: str | None = None
    coerce: Coercer = nonempty_text
    unit: str | None = None
    placeholder: str = "VALUE"
    repeatable: bool = False
    flag: bool = False
    section: str = ""
    secret: bool = False
    path: bool = False
    content_of: str | None = None

    @property
    def variable(self) -> str:
        """The environment variable that sets the option."""
        return f"{VARIABLES}{self.name.upper().replace('-', '_')}"

    @property
    def key(self) -> str:
        """Its key in the configuration file: `[section] name`, or `name` at the top."""
        return f"[{self.section}] {self.name}" if self.section else self.name

    @property
    def description(self) -> str:
        """The help with the unit, the variable, whether it may be repeated, and the default."""
        notes = [f"in {self.unit}"] if self.unit else []
        notes.append(f"environment: {self.variable}")
        if self.repeatable:
            notes.append("may be given more than once")
        if self.default is not None:
            notes.append(f"default: {self.default}")
        return f"{self.help} ({'; '.join(notes)})"

    @property
    def file_option(self) -> Option:
        """The option that names a file with the value of this one, which is a secret."""
        what = "the values" if self.repeatable else "the value"
        lines = ", one a line" if self.repeatable else ""
        return Option(
            f"{self.name}-file",
            f"file with {what} of --{self.name}{lines}; empty lines and lines that"
            " begin with # are skipped",
            placeholder="FILE",
            section=self.section,
            path=True,
            content_of=self.name,
        )
