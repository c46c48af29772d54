"""Reads the layers of the configuration: the command line, the environment, the configuration file.

All errors of a layer are collected; each names the place, what is wrong, and what would be right.
Must not know: which layer overrides which, or how a file is read. Own code: pydantic-settings
checks only the value that wins, and its errors do not name the variable or the key that set it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from pushservice.config.coercers import toml_types_of
from pushservice.config.option import VARIABLES, Option
from pushservice.config.options import CONFIG_FILE, OPTIONS
from pushservice.redis.url import EMBEDDED

#: What was typed, by option name: the texts of each occurrence, or True for a flag.
Typed: TypeAlias = Mapping[str, Sequence[str] | bool]

BY_NAME: Final = {option.name: option for option in OPTIONS}
SECTIONS: Final = tuple(dict.fromkeys(option.section for option in OPTIONS))

#: the origin of what was typed
COMMAND_LINE: Final = "command line"
YES: Final = ("1", "true", "yes", "on")
NO: Final = ("0", "false", "no", "off")

#: variables with the prefix of options that other code reads
_OTHER_VARIABLES: Final = {
    CONFIG_FILE.variable,
    "QUOTEPUSH_OUTLET",
    "QUOTEPUSH_PYTHON",
    "QUOTEPUSH_SOAK",
    "QUOTEPUSH_TOKEN",
}


@dataclass(frozen=True, slots=True)
class Given:
    """What one layer says of one option.

    `where` begins the errors about it, `origin` says who set it. `texts` are its values as they
    would be typed, with paths made absolute; of a flag there are none, and `on` is its value.
    """

    where: str
    origin: str
    texts: tuple[str, ...] = field(default=(), repr=False)
    on: bool = True


#: by option name
Layer: TypeAlias = dict[str, Given]


class Layers:
    """Reads layers, and collects their errors.

    `errors` and `warnings` are lines for people. `wrong` has the names of options with an error,
    and of those that an unknown name may have meant. A relative path is made absolute with
    `directory`, that of a file with the file's directory.
    """

    def __init__(self, directory: Path) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.wrong: set[str] = set()
        self._directory = directory

    # -- layers ----------------------------------------------------------------------------------

    def of_command_line(self, typed: Typed) -> Layer:
        """What was typed; a name that is not an option's is an error here too."""
        layer: Layer = {}
        for name, given in typed.items():
            where = f"--{name}"
            option = BY_NAME.get(name)
            if option is None:
                self.errors.append(f"{where} is not an option{suggest_option(name)}")
            elif isinstance(given, bool) is not option.flag:
                self.refuse(name, where, f"takes {'no value' if option.flag else 'a value'}")
            elif isinstance(given, bool):
                if given:
                    layer[name] = Given(where, COMMAND_LINE)
            elif given:
                texts = tuple(given) if option.repeatable else (given[-1],)
                layer[name] = Given(where, COMMAND_LINE, self.absolute(option, texts))
        return self._checked(layer)

    def of_environment(self, environment: Mapping[str, str]) -> Layer:
        """What the environment says; variables that are no option's are warned of."""
        layer: Layer = {}
        for option in OPTIONS:
            text = environment.get(option.variable, "")
            where = f"{option.variable} in the environment"
            if option.flag:
                word = text.strip().lower()
                if word in (*YES, *NO):
                    layer[option.name] = Given(where, where, on=word in YES)
                elif word:
                    self.refuse(
                        option.name, where, f"{text!r} is none of: {', '.join((*YES, *NO))}"
                    )
                continue
            words = tuple(text.split()) if option.repeatable else (text,) if text else ()
            if option.secret and len(words) > 1 and not all(map(is_address, words)):
                # Any of them may be a part of a password.
                self.refuse(
                    option.name,
                    where,
                    f"not each of the {len(words)} words is a URL; write a space within one as %20",
                )
            elif words:
                layer[option.name] = Given(where, where, self.absolute(option, words))
        variables = {option.variable: option for option in OPTIONS}
        for name in sorted(environment):
            if name.startswith(VARIABLES) and name not in {*variables, *_OTHER_VARIABLES}:
                bare = {variable.removeprefix(VARIABLES) for variable in variables}
                near = suggest(name.removeprefix(VARIABLES), sorted(bare), VARIABLES)
                self.warnings.append(
                    f"{name} in the environment is not the variable of an option{near}"
                )
        return self._checked(layer)

    def of_file(self, table: Mapping[str, Any], file: Path) -> Layer:
        """What the file says; every key must be an option's, in its section."""
        layer: Layer = {}
        for name, value in table.items():
            if name in SECTIONS and name:
                if not isinstance(value, Mapping):
                    self.errors.append(
                        f"{file}: {name} is a section: write [{name}] above its keys"
                    )
                    continue
                for key, within in value.items():
                    self._of_key(layer, file, name, key, within)
            elif isinstance(value, Mapping) and name not in BY_NAME:
                near = suggest(name, SECTIONS, "[", "]") or f"; the sections are {_sections()}"
                self.errors.append(f"{file}: unknown section [{name}]{near}")
            else:
                self._of_key(layer, file, "", name, value)
        return self._checked(layer)

    def _of_key(self, layer: Layer, file: Path, section: str, key: str, value: Any) -> None:
        where = f"{file}: [{section}] {key}" if section else f"{file}: {key}"
        option = BY_NAME.get(key)
        if option is None:
            self.errors.append(f"{where} is not an option{self._near_key(key, section)}")
        elif option.section != section:
            self.refuse(key, where, f"it belongs {_place(option)}")
        elif option.flag:
            if not isinstance(value, bool):
                self.refuse(key, where, f"{_kind(value)}, but true or false is expected")
            elif value:
                layer[key] = Given(where, where)
        elif isinstance(value, list) and option.repeatable:
            wrong = [each for each in value if not _fits(option, each)]
            if wrong:
                right = f"an array of {_expected(option, many=True)} is expected"
                self.refuse(key, where, f"an array with {_kind(wrong[0])}, but {right}")
            elif value:
                texts = tuple(map(_as_typed, value))
                layer[key] = Given(where, where, self.absolute(option, texts, file.parent))
        elif not _fits(option, value):
            right = _expected(option) + (", or an array of them," if option.repeatable else "")
            self.refuse(key, where, f"{_kind(value)}, but {right} is expected")
        else:
            texts = (_as_typed(value),)
            layer[key] = Given(where, where, self.absolute(option, texts, file.parent))

    def _near_key(self, key: str, section: str) -> str:
        (near,) = _nearest(key.replace("_", "-"), BY_NAME) or (None,)
        if near is None:
            return ""
        self.wrong.add(near)
        option = BY_NAME[near]
        return f"; did you mean {near}" + (
            f", {_place(option)}?" if option.section != section else "?"
        )

    # -- checks ----------------------------------------------------------------------------------

    def _checked(self, layer: Layer) -> Layer:
        """`layer`, once its values are coerced and no secret is given in two ways."""
        for name, given in layer.items():
            option = BY_NAME[name]
            for text in given.texts:
                # Others can see what is typed anyway, and an error that quotes it is clearer.
                hidden = option.secret and given.origin != COMMAND_LINE and not is_address(text)
                self.coerced(option, text, given.where, hidden=hidden)
            if option.content_of in layer:
                other = layer[option.content_of]
                self.errors.append(f"{other.where} and {given.where} exclude each other: give one")
                self.wrong |= {name, option.content_of}
        return layer

    def coerced(self, option: Option, text: str, where: str, *, hidden: bool) -> Any:
        """The value of `text`; None, and an error, where the option's coercer refuses it.

        The error does not quote a `hidden` text.
        """
        try:
            return option.coerce(text)
        except ValueError as error:
            said = str(error)
            self.refuse(option.name, where, said.replace(repr(text), "it") if hidden else said)
            return None

    def refuse(self, name: str, where: str, why: str) -> None:
        """Add an error about the option `name`."""
        self.errors.append(f"{where}: {why}")
        self.wrong.add(name)

    def absolute(
        self, option: Option, texts: tuple[str, ...], directory: Path | None = None
    ) -> tuple[str, ...]:
        """`texts` with paths made absolute; an empty one stays, and the coercer refuses it."""
        if not option.path:
            return texts
        base = self._directory if directory is None else directory
        return tuple(str(base / text) if text else "" for text in texts)


def is_address(word: str) -> bool:
    """Whether a word of a secret looks like an address, in which errors mask the password."""
    return "://" in word or word == EMBEDDED


# -- types of the file -----------------------------------------------------------------------------


def _fits(option: Option, value: Any) -> bool:
    """Whether `value` has a TOML type that the option may have; a bool is not an int here."""
    return type(value) in toml_types_of(option.coerce)


def _as_typed(value: Any) -> str:
    """The text that would be typed for a value of the file, such as 30 for 30.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


_KINDS: Final = {
    bool: ("a boolean", "booleans"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    list: ("an array", "arrays"),
}


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return _KINDS.get(type(value), ("a date or a time", ""))[0]


def _expected(option: Option, *, many: bool = False) -> str:
    """TOML's types for a value of the option, in words; int or float is `a number`."""
    types = toml_types_of(option.coerce)
    if float in types:
        return _KINDS[float][many]
    return " or ".join(_KINDS[each][many] for each in types)


def _place(option: Option) -> str:
    return f"in [{option.section}]" if option.section else "at the top, before the first section"


def _sections() -> str:
    return ", ".join(f"[{section}]" for section in SECTIONS if section)


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, [each for each in known if each], 1)


def suggest(name: str, known: Iterable[str], before: str, after: str = "") -> str:
    """The end of an error, which suggests the nearest of `known`; empty where none is near."""
    near = _nearest(name, known)
    return f"; did you mean {before}{near[0]}{after}?" if near else ""


def suggest_option(name: str) -> str:
    """The end of an error about a typed option that is none; `name` is without dashes."""
    return suggest(name, [*BY_NAME, CONFIG_FILE.name], "--")
