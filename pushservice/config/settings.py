"""What every option is set to, and by whom: command line over environment over file over defaults.

It is given all texts and a function that reads the files of secrets; it reports every error at once
and no secret. Must not know: how files are read, or what any option is good for. Own code:
libraries that merge layers check only the value that wins, and do not tell who set it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from pushservice.config.config import Config, Conflict, ConflictingOptions
from pushservice.config.from_options import config_from_options
from pushservice.config.layers import COMMAND_LINE, Given, Layer, Layers, Typed, is_address
from pushservice.config.option import Option
from pushservice.config.options import OPTIONS
from pushservice.redis.url import EMBEDDED, RedisAddress

#: the origin of an option that nobody set
DEFAULT: Final = "default"

#: Gives the text of a file; raises ValueError that names it and says why it can't.
Read: TypeAlias = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Setting:
    """One option as it is set.

    `texts` is what would be typed for it, paths absolute; a flag has none. `value` is what the
    option's coercer made of them: a list where the option may be repeated, a bool for a flag, None
    where nothing was given or the texts are wrong. `origin` says who set it: `default`,
    `command line`, `QUOTEPUSH_X in the environment`, `FILE: [section] key`, or for a secret the
    file that holds it.
    """

    option: Option
    texts: tuple[str, ...] = field(repr=False)
    value: Any = field(repr=False)
    origin: str

    def shown(self) -> str:
        """The value for people, without what is secret; empty where there is none."""
        if self.option.flag:
            return "yes" if self.value else ""
        if not self.option.secret:
            return " ".join(self.texts)
        values = self.value if isinstance(self.value, list) else [self.value]
        return " ".join(map(_masked, values)) if self.texts else ""


def _masked(value: Any) -> str:
    """A coerced secret for people: an address without its password, anything else as ***."""
    if value is None:
        return EMBEDDED
    return str(value) if isinstance(value, RedisAddress) else "***"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every option as it is set, in the order of OPTIONS, and all errors.

    `errors` and `warnings` are lines for people, each of which names where to look.
    `partial_config` is the Config without the options that have errors; None where options
    contradict each other.
    """

    settings: tuple[Setting, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    partial_config: Config | None = field(repr=False)

    def __getitem__(self, name: str) -> Setting:
        return next(setting for setting in self.settings if setting.option.name == name)

    @property
    def config(self) -> Config:
        """The Config of all options; raises ValueError with a line for each error."""
        if self.errors or self.partial_config is None:
            raise ValueError("\n".join(self.errors))
        return self.partial_config

    def with_origins(self, text: str, options: Sequence[str]) -> str:
        """`text`, an error about `options`, with where those of them were set that nobody typed."""
        elsewhere = [
            f"--{setting.option.name}: {setting.origin}"
            for setting in self.settings
            if setting.option.name in options and setting.origin not in (DEFAULT, COMMAND_LINE)
        ]
        return f"{text} ({'; '.join(elsewhere)})" if elsewhere else text

    def texts(self) -> dict[str, str | list[str] | bool]:
        """The texts, by option name, of which `config_from_texts` makes the same Config elsewhere.

        They are those of all options that are not default, and of paths, which are absolute.
        Secrets are among them, also those that were read from files: show them to nobody.
        """
        texts: dict[str, str | list[str] | bool] = {}
        for setting in self.settings:
            option = setting.option
            if option.content_of or (setting.origin == DEFAULT and not option.path):
                continue
            if option.flag:
                if setting.value:
                    texts[option.name] = True
            elif setting.texts:
                several = list(setting.texts)
                texts[option.name] = several if option.repeatable else several[-1]
        return texts


def config_from_texts(texts: Mapping[str, str | list[str] | bool]) -> Config:
    """The Config of what `Settings.texts` returned, also after a round trip through JSON.

    Raises ValueError with a line for each error.
    """
    typed: dict[str, Sequence[str] | bool] = {
        name: [value] if isinstance(value, str) else value for name, value in texts.items()
    }
    return resolve(typed, {}, read=_read_nothing).config


def _read_nothing(path: Path) -> str:
    raise ValueError(f"{path} is not read here")


def resolve(
    typed: Typed,
    environment: Mapping[str, str],
    table: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    directory: Path = Path(),
    read: Read,
    errors: Iterable[str] = (),
) -> Settings:
    """Resolve every option: `typed` over `environment` over the parsed `table` of `file`.

    A layer replaces all values that lower layers have of an option. All layers are checked, also
    the values that are replaced. Relative paths of the file are relative to its directory, others
    to `directory`. `read` is called for the files of secrets that are used. `errors` are those
    already found: they come first, and with any of them no contradictions are reported, because
    they may follow from them.
    """
    reading = Layers(directory)
    layers = (
        reading.of_command_line(typed),
        reading.of_environment(environment),
        {} if table is None else reading.of_file(table, file or Path("the file")),
    )
    resolver = _Resolver(layers, reading, read)
    settings = tuple(resolver.setting(option) for option in OPTIONS)
    config, conflicts = _config_of(settings)
    early = tuple(errors)
    found = Settings(settings, (*early, *reading.errors), tuple(reading.warnings), config)
    conflicting = (
        []
        if early
        else [
            found.with_origins(each.text, each.options)
            for each in conflicts
            if reading.wrong.isdisjoint(each.options)
        ]
    )
    return replace(found, errors=tuple(dict.fromkeys((*found.errors, *conflicting))))


def _config_of(settings: Sequence[Setting]) -> tuple[Config | None, Sequence[Conflict]]:
    # An option with an error has no value, and counts as not given.
    values = {
        setting.option.name: setting.value
        for setting in settings
        if setting.texts or setting.option.flag
    }
    try:
        return config_from_options(values), ()
    except ConflictingOptions as error:
        return None, error.found


class _Resolver:
    """Finds for each option the highest layer that sets it, and reads the files of secrets."""

    def __init__(self, layers: Sequence[Layer], reading: Layers, read: Read) -> None:
        self._layers = layers
        self._reading = reading
        self._read = read

    def setting(self, option: Option) -> Setting:
        """The setting of `option` by the first layer that has it or its file, else by default."""
        by_file = f"{option.name}-file" if option.secret else None
        for layer in self._layers:
            if option.content_of in layer:
                # This layer sets the value itself: the file of this or a lower layer is not used.
                break
            if option.name in layer:
                return self._given(option, layer[option.name])
            if by_file in layer:
                return self._of_secret_file(option, layer[by_file])
        default = () if option.default is None else (option.default,)
        texts = self._reading.absolute(option, default)
        return self._given(option, Given(f"--{option.name}", DEFAULT, texts, on=False))

    def _given(self, option: Option, given: Given) -> Setting:
        if option.flag:
            return Setting(option, (), given.on, given.origin)
        try:
            values = [option.coerce(text) for text in given.texts]
        except ValueError:
            # The error was added when the layer was read.
            return Setting(option, (), None, given.origin)
        return Setting(option, given.texts, _value(option, values), given.origin)

    def _of_secret_file(self, option: Option, given: Given) -> Setting:
        path = Path(given.texts[-1])
        nothing = Setting(option, (), None, f"{path}, which {given.where} names")
        if not given.texts[-1]:
            self._reading.wrong.add(option.name)
            return nothing
        try:
            lines = self._read(path).split("\n")
        except ValueError as error:
            self._reading.refuse(option.name, given.where, str(error))
            return nothing
        numbered = [
            (number, line.removesuffix("\r"))
            for number, line in enumerate(lines, 1)
            if line.strip() and not line.startswith("#")
        ]
        if not numbered or (len(numbered) > 1 and not option.repeatable):
            wrong = f"has {len(numbered)} lines with values" if numbered else "has no value"
            right = "one or more lines are" if option.repeatable else "one line is"
            self._reading.refuse(option.name, given.where, f"{path} {wrong}, but {right} expected")
            return nothing
        values = []
        for number, text in numbered:
            where = f"{given.where}: {path}, line {number}"
            hidden = not is_address(text)
            values.append(self._reading.coerced(option, text, where, hidden=hidden))
        if option.name in self._reading.wrong:
            return nothing
        texts = tuple(text for _, text in numbered)
        return replace(nothing, texts=texts, value=_value(option, values))


def _value(option: Option, values: list[Any]) -> Any:
    if option.repeatable:
        return values
    return values[-1] if values else None
