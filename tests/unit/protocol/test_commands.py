"""The commands: every form that is read, and every refusal with its words and its id."""

from __future__ import annotations

import pytest

from pushservice.protocol import commands, events
from pushservice.protocol.close_codes import ErrorCode
from pushservice.protocol.codecs import RAW
from pushservice.protocol.commands import (
    Authenticate,
    BadCommand,
    ListSymbols,
    Ping,
    Subscribe,
    Unsubscribe,
    parse_bare_symbols,
    parse_command,
)


def test_subscribe_is_read_with_its_defaults():
    assert parse_command(b'{"op":"subscribe","symbols":["A","B"]}') == Subscribe(
        None, ["A", "B"], snapshot=True
    )


def test_subscribe_takes_what_is_available_and_ignores_unknown_keys():
    text = (
        b'{"op":"subscribe","id":"x","symbols":[],"mode":"auto","interval":0,'
        b'"snapshot":false,"z":1}'
    )
    assert parse_command(text) == Subscribe(b'"x"', [], snapshot=False)


@pytest.mark.parametrize(
    ("keys", "raw", "interval_ms"),
    [
        (b'"mode":"raw"', True, 0),
        (b'"mode":"raw","interval":0', True, 0),
        (b'"mode":"auto"', False, 0),
        (b'"interval":1', False, 1),
        (b'"mode":"auto","interval":250', False, 250),
        (b'"interval":60000', False, 60_000),
    ],
)
def test_subscribe_is_read_with_its_mode_and_its_interval(keys, raw, interval_ms):
    text = b'{"op":"subscribe","symbols":["A"],%b}' % keys
    assert parse_command(text) == Subscribe(None, ["A"], raw=raw, interval_ms=interval_ms)


@pytest.mark.parametrize("op", [b"unsubscribe", b"list", b"ping"])
def test_mode_and_interval_mean_nothing_to_other_commands(op):
    bare = parse_command(b'{"op":"%b"}' % op)
    assert parse_command(b'{"op":"%b","mode":"x","interval":-1}' % op) == bare


def test_unsubscribe_without_symbols_means_all_and_with_an_empty_list_none():
    assert parse_command(b'{"op":"unsubscribe","id":3}') == Unsubscribe(b"3", None)
    assert parse_command(b'{"op":"unsubscribe","symbols":[]}') == Unsubscribe(None, [])


@pytest.mark.parametrize(
    "id",
    ["1", "-1", "0", "1.10", "1e3", "123456789012345678901234567890", '"a b"', '"\\u00e9"', '""'],
)
def test_an_id_goes_back_byte_for_byte(id):
    command = parse_command(b'{"op":"ping","id":%b}' % id.encode())
    assert command == Ping(id.encode())
    assert events.pong(command.id) == b'{"ev":"pong","id":%b}' % id.encode()


@pytest.mark.parametrize(
    ("text", "words", "id"),
    [
        (b"", "not JSON", None),
        (b"hello", "not JSON", None),
        (b'{"op":"ping"', "not JSON", None),
        (b'{"op":NaN}', "not JSON", None),
        (b'{"op":' + b"[" * 5000, "not JSON", None),
        (b"\xff\xfe", "not UTF-8", None),
        (b"[]", "one JSON object", None),
        (b'"ping"', "one JSON object", None),
        (b"null", "one JSON object", None),
        (b"{}", "op is missing", None),
        (b'{"id":1}', "op is missing", b"1"),
        (b'{"op":"buy","id":1}', 'unknown op "buy"; known are subscribe', b"1"),
        (b'{"op":7}', "unknown op 7", None),
        (b'{"op":"%b"}' % (b"x" * 500), "…", None),
        (b'{"op":"ping","id":null}', "id is a number or a string", None),
        (b'{"op":"ping","id":true}', "id is a number or a string", None),
        (b'{"op":"ping","id":{}}', "id is a number or a string", None),
        (b'{"op":"subscribe","id":9}', "subscribe needs symbols", b"9"),
        (b'{"op":"subscribe","symbols":"AAPL"}', "symbols is a list", None),
        (b'{"op":"subscribe","symbols":{"a":1}}', "symbols is a list", None),
        (b'{"op":"unsubscribe","symbols":null}', "symbols is a list", None),
        (b'{"op":"subscribe","symbols":[],"snapshot":1}', "snapshot is true or false", None),
        (
            b'{"op":"subscribe","symbols":[],"mode":"raw","interval":1,"id":4}',
            "interval goes with mode auto; raw brings every update at once",
            b"4",
        ),
        (b'{"op":"subscribe","symbols":[],"mode":"fast"}', 'mode is "auto" or "raw"', None),
        (b'{"op":"subscribe","symbols":[],"mode":null}', 'mode is "auto" or "raw"', None),
        (b'{"op":"subscribe","symbols":[],"mode":"Raw"}', 'not "Raw"', None),
        (b'{"op":"subscribe","symbols":[],"mode":["raw"]}', 'mode is "auto" or "raw"', None),
        (b'{"op":"subscribe","mode":"fast"}', 'mode is "auto" or "raw"', None),
        (b'{"op":"subscribe","symbols":[],"interval":"250"}', "whole number", None),
        (b'{"op":"subscribe","symbols":[],"interval":null}', "whole number", None),
        (b'{"op":"subscribe","symbols":[],"interval":250.0}', "whole number", None),
        (b'{"op":"subscribe","symbols":[],"interval":true}', "not true", None),
        (b'{"op":"subscribe","symbols":[],"interval":%b}' % (b"9" * 30), "0 to 60000", None),
        (b'{"op":"subscribe","symbols":[],"interval":-1}', "0 to 60000, not -1", None),
        (b'{"op":"subscribe","symbols":[],"interval":60001}', "0 to 60000", None),
        (b'{"op":"subscribe","symbols":[],"interval":0.0}', "whole number", None),
        (b'{"op":"subscribe","symbols":[],"interval":false}', "whole number", None),
        (b'{"op":"auth","id":6}', "auth needs a token, such as", b"6"),
        (b'{"op":"auth","token":"","id":6}', "auth needs a token", b"6"),
        (b'{"op":"auth","token":5}', "auth needs a token", None),
        (b'{"op":"auth","token":null}', "auth needs a token", None),
    ],
)
def test_a_bad_message_is_told_what_is_wrong_and_keeps_its_id(text, words, id):
    with pytest.raises(BadCommand) as caught:
        parse_command(text)
    assert words in str(caught.value)
    assert caught.value.id == id
    assert caught.value.code == ErrorCode.MALFORMED
    assert len(str(caught.value)) < 200


def test_a_token_is_read_as_it_is_sent():
    assert parse_command(b'{"op":"auth","token":"s e\\u00e9","id":1}') == Authenticate(
        b"1", "s e\u00e9"
    )


@pytest.mark.parametrize(
    "text",
    [
        b'{"op":"auth","token":["secret"]}',
        b'{"op":"auth","token":"secret"',
        b'{"op":"auth","token":"secret","id":[]}',
        b'{"op":"aut","token":"secret"}',
        b'{"token":"secret"}',
    ],
)
def test_a_token_is_not_repeated_in_what_is_said_against_its_command(text):
    with pytest.raises(BadCommand) as caught:
        parse_command(text)
    assert "secret" not in str(caught.value)


def test_a_token_is_not_shown_where_its_command_is():
    assert "secret" not in repr(Authenticate(None, "secret"))


def test_the_other_commands_are_read():
    assert parse_command(b'{"op":"list","id":4}') == ListSymbols(b"4")
    assert parse_command(b'{"op":"ping"}') == Ping(None)


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        (b"AAPL", ["AAPL"]),
        (b" AAPL , 600519.SH,", ["AAPL", "600519.SH"]),
        (b"a b,c", ["a b", "c"]),
        (b"", []),
        ("茅台".encode(), ["茅台"]),
    ],
)
def test_bare_symbols_are_separated_by_commas(text, symbols):
    assert parse_bare_symbols(text) == Subscribe(None, symbols)
    assert RAW.parse(text) == Subscribe(None, symbols)


def test_the_raw_codec_reads_commands_too_and_refuses_what_is_not_utf8():
    assert RAW.parse(b' {"op":"ping"}') == Ping(None)
    with pytest.raises(BadCommand, match="not UTF-8"):
        RAW.parse(b"\xff")


def test_a_value_is_shortened_for_quoting():
    assert commands.shortened("x" * 100) == '"' + "x" * 38 + "…"
    assert commands.shortened(["a", 1.5, None]) == '["a",1.5,null]'
