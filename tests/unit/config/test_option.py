"""One option: its variable, its key in the file, its description, the file of a secret one."""

from __future__ import annotations

from pushservice.config.options import CONFIG_FILE, OPTIONS

BY_NAME = {option.name: option for option in OPTIONS}


def test_an_option_is_a_variable_and_a_key_of_its_section_too():
    assert BY_NAME["max-symbols"].variable == "QUOTEPUSH_MAX_SYMBOLS"
    assert BY_NAME["max-symbols"].key == "[limits] max-symbols"
    assert BY_NAME["port"].key == "port"
    assert len({option.variable for option in (CONFIG_FILE, *OPTIONS)}) == len(OPTIONS) + 1


def test_each_secret_has_an_option_that_names_its_file_and_nothing_else_has():
    secret = [option for option in OPTIONS if option.secret]
    assert {option.name for option in secret} == {"redis", "registry"}
    for option in OPTIONS:
        assert (option.content_of is not None) is option.name.endswith("-file")
    for option in secret:
        by_file = BY_NAME[f"{option.name}-file"]
        assert by_file.content_of == option.name
        assert by_file.section == option.section
        assert (by_file.path, by_file.secret, by_file.repeatable) == (True, False, False)
        assert f"--{option.name}" in by_file.help


def test_the_description_has_unit_variable_repetition_and_default():
    assert BY_NAME["heartbeat"].description == (
        "time between heartbeats on a connection"
        " (in milliseconds; environment: QUOTEPUSH_HEARTBEAT; default: 5000)"
    )
    assert BY_NAME["channels"].description.endswith(
        "(environment: QUOTEPUSH_CHANNELS; may be given more than once; default: quote.*)"
    )
