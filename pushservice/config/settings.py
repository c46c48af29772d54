"""What every option is set to, and by whom: command line over environment over file over defaults.

Must not know: how files are read, or what any option is good for. It is given all texts and a
function that reads the files which hold secrets, and reports every error at once, without a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from pushservice.config.config import Config, Contradiction, Contradictory
from pushservice.config.from_options import config_from_options
from pushservice.config.layers import COMMAND_LINE, Given, Layer, Layers, Typed, is_address
from pushservice.config.option import Option
from pushservice.config.options import OPTIONS
from pushservice.redis.url import EMBEDDED, RedisAddress

#: the origin of what nobody set
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
    """A coerced secret without what is secret in it: an address has a form without password."""
    if value is None:
        return EMBEDDED
    return str(value) if isinstance(value, RedisAddress) else "***"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every option as it is set, in the order of OPTIONS, and all that is wrong.

    `errors` and `warnings` are lines for people, each of which names where to look. `in_part` is
    the Config of what is right, whatever else is wrong; None where options contradict each other.
    """

    settings: tuple[Setting, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    in_part: Config | None = field(repr=False)

    def __getitem__(self, name: str) -> Setting:
        return next(setting for setting in self.settings if setting.option.name == name)

    @property
    def config(self) -> Config:
        """The Config they make; raises ValueError with a line for each error."""
        if self.errors or self.in_part is None:
            raise ValueError("\n".join(self.errors))
        return self.in_part

    def with_origins(self, text: str, options: Sequence[str]) -> str:
        """What is wrong with `options`, and where those of them were given that nobody typed."""
        elsewhere = [
            f"--{setting.option.name}: {setting.origin}"
            for setting in self.settings
            if setting.option.name in options and setting.origin not in (DEFAULT, COMMAND_LINE)
        ]
        return f"{text} ({'; '.join(elsewhere)})" if elsewhere else text

    def texts(self) -> dict[str, str | list[str] | bool]:
        """What `config_from_texts` makes the same Config of, wherever it is called.

        By option name: what is not default, and paths, which are absolute. Secrets are in it, also
        those that were read from files: it may be shown to nobody.
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
    """The Config of what `Settings.texts` returned, as it was or from JSON.

    Raises ValueError with a line for each error.
    """
    typed: dict[str, Sequence[str] | bool] = {
        name: [value] if isinstance(value, str) else value for name, value in texts.items()
    }
    return settle(typed, {}, read=_read_nothing).config


def _read_nothing(path: Path) -> str:
    raise ValueError(f"{path} is not read here")


def settle(
    typed: Typed,
    environment: Mapping[str, str],
    table: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    directory: Path = Path(),
    read: Read,
    errors: Iterable[str] = (),
) -> Settings:
    """Settle every option: `typed` over `environment` over the parsed `table` of `file`.

    An option given on one layer replaces all that lower layers have of it. All layers are checked,
    also what is replaced. Relative paths of the file are relative to its directory, others to
    `directory`. `read` gets the files of secrets that count. `errors` are those already found: they
    come first, and with any of them nothing is said of options that contradict each other, as it
    may follow from them.
    """
    reading = Layers(directory)
    layers = (
        reading.of_command_line(typed),
        reading.of_environment(environment),
        {} if table is None else reading.of_file(table, file or Path("the file")),
    )
    settling = _Settling(layers, reading, read)
    settings = tuple(settling.setting(option) for option in OPTIONS)
    config, contradictions = _config_of(settings)
    early = tuple(errors)
    found = Settings(settings, (*early, *reading.errors), tuple(reading.warnings), config)
    contradicting = (
        []
        if early
        else [
            found.with_origins(each.text, each.options)
            for each in contradictions
            if reading.wrong.isdisjoint(each.options)
        ]
    )
    return replace(found, errors=tuple(dict.fromkeys((*found.errors, *contradicting))))


def _config_of(settings: Sequence[Setting]) -> tuple[Config | None, Sequence[Contradiction]]:
    # A value that is none yet, as that of the wrong ones is, counts as not given.
    values = {
        setting.option.name: setting.value
        for setting in settings
        if setting.texts or setting.option.flag
    }
    try:
        return config_from_options(values), ()
    except Contradictory as error:
        return None, error.found


class _Settling:
    """Finds for each option the layer that counts, and reads the files of secrets."""

    def __init__(self, layers: Sequence[Layer], reading: Layers, read: Read) -> None:
        self._layers = layers
        self._reading = reading
        self._read = read

    def setting(self, option: Option) -> Setting:
        """The setting of `option` by the first layer that has it or its file, or by default."""
        by_file = f"{option.name}-file" if option.secret else None
        for layer in self._layers:
            if option.content_of in layer:
                # The value itself is given, and its file of this or a lower layer does not count.
                break
            if option.name in layer:
                return self._given(option, layer[option.name])
            if by_file in layer:
                return self._of_secret_file(option, layer[by_file])
        default = () if option.default is None else (option.default,)
        texts = self._reading.placed(option, default)
        return self._given(option, Given(f"--{option.name}", DEFAULT, texts, on=False))

    def _given(self, option: Option, given: Given) -> Setting:
        if option.flag:
            return Setting(option, (), given.on, given.origin)
        try:
            values = [option.coerce(text) for text in given.texts]
        except ValueError:
            # It was said when the layer was read.
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
            wrong = f"has {len(numbered)} lines with values" if numbered else "has no value in it"
            right = "one line or several are" if option.repeatable else "one line is"
            self._reading.refuse(option.name, given.where, f"{path} {wrong}, but {right} right")
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
