"""`quotepush token`: what it makes is what the daemon takes, and errors are one line."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import stat
from pathlib import Path

import pytest
import pytest_twisted
from click.testing import CliRunner
from core_doubles import FixedClock
from free_ports import free_port
from redis_client import RedisClient
from token_makers import NOW, forged, jwk, key_file, private_key, private_pem, signed, write_jwks
from twisted.internet import defer, reactor
from waiting import until

from pushservice.auth import identity, revocations, tickets, token_keys, tokens
from pushservice.auth.identity import Identity, Refused, Rights
from pushservice.auth.revocation_feed import RevocationFeed, revoke_channel, revoked_hash
from pushservice.auth.revocations import Revocations
from pushservice.auth.tickets import TicketAuthenticator, ticket_key
from pushservice.auth.tokens import TokenAuthenticator
from pushservice.cli import token as token_module
from pushservice.cli.token import token
from pushservice.protocol import commands
from pushservice.redis.url import redis_address

PREFIX = "test_token_cli:"
RIGHTS = ["--symbols", "*.SH", "--symbols", "!600*", "--max-symbols", "5"]
RIGHTS += ["--min-interval", "250", "--delay", "1.5"]
RIGHTS_MEANT = Rights(("*.SH", "!600*"), 5, 250, 1.5)


@pytest.fixture(autouse=True)
def time_stands_still(monkeypatch):
    monkeypatch.setattr(token_module.time, "time", lambda: NOW)


def run(*words: object, stdin: str | None = None, environment: dict[str, str] | None = None):
    return CliRunner().invoke(token, [str(word) for word in words], stdin, environment)


def said(*words: object, **values: object) -> str:
    """What a command that succeeds prints."""
    done = run(*words, **values)
    assert done.exit_code == 0, done.output
    return done.stdout


def fault(*words: object, **values: object) -> str:
    """The one line of a command that fails."""
    done = run(*words, **values)
    assert done.exit_code != 0
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def verified(key, text: str, **options: object) -> Identity | Refused:
    found: list[Identity | Refused] = []
    TokenAuthenticator(FixedClock(NOW), key, **options).verify(text.strip(), found.append)
    return found[0]


# -- keys and tokens -------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA"])
def test_a_token_of_a_key_that_was_made_is_what_the_daemon_takes(tmp_path, algorithm):
    key, public = tmp_path / "key", tmp_path / "public"
    printed = said("key", "--algorithm", algorithm, key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    public.write_text(printed)
    words = ["make", "--key", key, "--user", "ann", "--id", "7", "--expires", "15m", *RIGHTS]
    text = said(*words, "--audience", "quotes", "--issuer", "shop")
    daemon_has = key if algorithm == "HS256" else public
    found = verified(daemon_has, text, audience="quotes", issuer="shop", algorithms=[algorithm])
    assert found == Identity("ann", "7", int(NOW) + 900, int(NOW), RIGHTS_MEANT)
    assert isinstance(verified(daemon_has, text, audience="other"), Refused)


def test_a_token_has_an_end_and_an_id_of_its_own_unless_told_otherwise(tmp_path):
    key = key_file(tmp_path, "HS256")
    one, other = (verified(key, said("make", "--key", key)) for _ in range(2))
    assert isinstance(one, Identity)
    assert isinstance(other, Identity)
    assert (one.user, one.expires_at, one.rights) == (None, int(NOW) + 3600, Rights())
    assert one.token_id is not None
    assert one.token_id != other.token_id


@pytest.mark.parametrize(
    ("expires", "length"), [("1s", 1), ("90s", 90), ("2m", 120), ("1h", 3600), ("7d", 604_800)]
)
def test_a_life_is_a_number_and_a_unit(tmp_path, expires, length):
    key = key_file(tmp_path, "HS256")
    found = verified(key, said("make", "--key", key, "--expires", expires))
    assert isinstance(found, Identity)
    assert found.expires_at == int(NOW) + length


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--expires", "1"], "--expires: '1' is not a duration such as 90s"),
        (["--expires", "0s"], "--expires: '0s' is not a duration"),
        (["--expires", "99999d"], "up to ten years"),
        (["--expires", "-1h"], "--expires: '-1h' is not a duration"),
        (["--symbols", "600?19"], "--symbols: '600?19' matches no symbol: a symbol has no white"),
        (["--symbols", "A", "--symbols", "B C"], "--symbols: 'B C' matches no symbol"),
        (["--symbols", ""], "--symbols: '' matches no symbol: it is empty"),
        (["--symbols", "!"], "--symbols: '!' matches no symbol: it is empty"),
        (["--user", "a\x07"], "--user: 'a\\x07' is not 1 to 128 printable characters"),
        (["--id", ""], "--id: '' is not 1 to 128"),
        (["--delay", "nan"], "--delay: nan is not a number of seconds"),
        (["--algorithm", "EdDSA"], "HS256-0 holds a secret, which serves HS256 and not EdDSA"),
        ([f"--symbols={at:064}" for at in range(100)], "characters; at most 8192 are allowed"),
    ],
)
def test_a_token_that_would_be_wrong_is_refused_in_one_line(tmp_path, words, why):
    assert why in fault("make", "--key", key_file(tmp_path, "HS256"), *words)


def test_what_is_no_key_to_sign_with_is_refused_in_one_line(tmp_path):
    assert "nothing can't be read" in fault("make", "--key", tmp_path / "nothing")
    assert "holds a public key" in fault("make", "--key", key_file(tmp_path, "EdDSA"))
    rsa = tmp_path / "rsa"
    rsa.write_bytes(private_pem(private_key("RS256")))
    assert "a key for RS256; tokens are made with HS256 and EdDSA" in fault("make", "--key", rsa)
    assert "rsa is there already" in fault("key", rsa)


@pytest.mark.parametrize("words", [["--max-symbols", "-1"], ["--min-interval", "60001"]])
def test_numbers_out_of_their_bounds_are_refused(tmp_path, words):
    done = run("make", "--key", key_file(tmp_path, "HS256"), *words)
    assert done.exit_code == 2
    assert words[0] in done.stderr


# -- shown -----------------------------------------------------------------------------------------


def test_a_token_is_shown_with_its_times_in_words(tmp_path):
    key = key_file(tmp_path, "HS256")
    shown = said("show", signed("HS256", nbf=NOW - 7200, aud=None), "--key", key)
    assert shown.splitlines() == [
        "header:",
        '  "alg": "HS256"',
        '  "typ": "JWT"',
        "claims:",
        '  "sub": "ann"',
        '  "jti": "7"',
        '  "iat": 1763799940 (2025-11-22 08:25:40 UTC, 60 seconds ago)',
        '  "exp": 1763800060 (2025-11-22 08:27:40 UTC, in 60 seconds)',
        '  "iss": "shop"',
        '  "nbf": 1763792800.25 (2025-11-22 06:26:40 UTC, 2 hours ago)',
        "verifies: yes",
    ]


def test_a_token_is_read_from_the_standard_input_where_none_is_given(tmp_path):
    text = signed("HS256")
    for words in (["show"], ["show", "-"]):
        shown = said(*words, stdin=f" {text}\n")
        assert '"sub": "ann"' in shown
        assert shown.endswith("verifies: not checked, without a key\n")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (signed("HS256", 1), "signature does not match"),
        (signed("HS256"), "for another audience"),
        (signed("HS256", aud=None, exp=NOW - 300), "expired 300 s ago"),
        (signed("EdDSA", aud=None), "alg is EdDSA, and not one of HS256"),
        (forged({"alg": "none"}), "alg is none of HS256"),
    ],
)
def test_a_token_that_does_not_verify_is_shown_and_the_status_is_1(tmp_path, text, why):
    done = run("show", text, "--key", key_file(tmp_path, "HS256"))
    assert done.exit_code == 1
    assert '"sub": "ann"' in done.stdout
    assert re.search(f"^verifies: no: .*{why}", done.stdout, re.MULTILINE)


def test_a_token_is_verified_by_a_set_of_keys_audience_and_issuer(tmp_path):
    keys = write_jwks(tmp_path / "jwks", jwk("ES256", kid="a"))
    text = signed("ES256", header={"kid": "a"})
    words = ["show", text, "--jwks", keys, "--audience", "quotes"]
    assert "verifies: yes" in said(*words, "--issuer", "shop")
    assert "another issuer" in run(*words, "--issuer", "other").stdout
    assert "no key for any of EdDSA" in fault(*words, "--algorithm", "EdDSA")


def test_a_token_can_not_send_control_characters_to_the_terminal():
    shown = said("show", forged({"alg": "x\x1b[2J"}, {"a\u202e": "\x1b]0;x\x07", "exp": "now"}))
    assert shown.isascii()
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert '"exp": "now" (no time)' in shown


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "x" * 10_000])
def test_what_is_no_token_is_refused_in_one_line_that_does_not_repeat_it(text):
    line = fault("show", stdin=text)
    assert "the token" in line
    assert len(line) < 200


# -- tickets ---------------------------------------------------------------------------------------


@pytest.fixture
def redis(redis_server):
    with RedisClient(redis_server.path, PREFIX) as client:
        yield client
        client.ask("DEL", PREFIX, *map(PREFIX.__add__, client.keys()))


async def looked_up(url: str, ticket: str, times: int = 1) -> list[Identity | Refused]:
    address = redis_address(url)
    assert address is not None
    clock = FixedClock(NOW)
    authenticator = TicketAuthenticator(reactor, address, clock=clock, prefix=PREFIX)
    authenticator.start()
    await until(lambda: authenticator.up, "the link")
    found: list[Identity | Refused] = []
    for _ in range(times):
        authenticator.verify(ticket, found.append)
    await until(lambda: len(found) == times, "the answers")
    await authenticator.stop()
    return found


@pytest_twisted.ensureDeferred
async def test_a_ticket_is_what_the_daemon_takes_once(redis_server, redis):
    words = ["--redis", redis_server.url, "--prefix", PREFIX, "--user", "ann", "--id", "7"]
    ticket = said("ticket", *words, "--expires", "2m", *RIGHTS).strip()
    assert 110 <= redis.ask("TTL", ticket_key(ticket, PREFIX)) <= 120
    assert ticket not in str(redis.ask("KEYS", "*"))
    first, second = await looked_up(redis_server.url, ticket, 2)
    assert first == Identity("ann", "7", int(NOW) + 120, int(NOW), RIGHTS_MEANT)
    assert isinstance(second, Refused)


@pytest_twisted.ensureDeferred
async def test_a_lasting_ticket_is_taken_again_and_the_url_may_come_from_the_environment(
    redis_server, redis
):
    environment = {"QUOTEPUSH_REDIS": redis_server.socket_url}
    printed = said("ticket", "--prefix", PREFIX, "--lasting", environment=environment)
    found = await looked_up(redis_server.url, printed.strip(), 3)
    assert all(isinstance(each, Identity) for each in found)
    [key] = redis.ask("KEYS", f"{PREFIX}*")
    value = json.loads(redis.ask("GET", key))
    assert value == {"id": value["id"], "iat": int(NOW), "exp": int(NOW) + 60, "once": False}


def test_faults_of_redis_are_one_line_without_a_password(own_redis, tmp_path):
    port = free_port()
    for command in (["ticket"], ["revoke", "--user", "ann"]):
        line = fault(*command, "--redis", f"redis://:geheim@127.0.0.1:{port}")
        assert "refused" in line
        assert "geheim" not in line
    assert "is not understood" in fault("ticket", "--redis", "http://x")
    assert "embedded is the daemon's own" in fault("ticket", "--redis", "embedded")
    words = ["ticket", "--redis", f"rediss://127.0.0.1:{port}", "--redis-ca", tmp_path / "nothing"]
    assert "nothing" in fault(*words)
    words = ["ticket", "--redis", f"rediss://127.0.0.1:{port}", "--redis-key", tmp_path / "nothing"]
    assert "needs its certificate too" in fault(*words)


# -- revocations -----------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_revocation_is_published_and_stored(redis_server, redis, monkeypatch):
    monkeypatch.setattr(token_module.time, "time", reactor.seconds)
    address = redis_address(redis_server.url)
    assert address is not None

    async def watch() -> tuple[RevocationFeed, list[tuple[str, str]]]:
        told: list[tuple[str, str]] = []
        feed = RevocationFeed(
            reactor,
            address,
            Revocations(reactor),
            lambda kind, name, _just_now: told.append((kind, name)),
            prefix=PREFIX,
        )
        feed.start()
        await until(lambda: feed.current, "the feed")
        return feed, told

    feed, told = await watch()
    assert told == []
    words = ["revoke", "--redis", redis_server.url, "--prefix", PREFIX]
    assert said(*words, "--user", 'a"nn') == 'revoked: user a"nn\n'
    assert said(*words, "--id", "7") == "revoked: token 7\n"
    await until(lambda: len(told) == 2, "the messages")
    assert told == [("user", 'a"nn'), ("token", "7")]
    later, told = await watch()
    assert sorted(told) == [("token", "7"), ("user", 'a"nn')]
    await defer.gatherResults([defer.ensureDeferred(each.stop()) for each in (feed, later)])


def test_a_revocation_names_a_user_or_an_id_and_not_both(redis_server):
    words = ["revoke", "--redis", redis_server.url]
    assert "either --user, for all tokens of a user" in fault(*words)
    assert "either --user, for all tokens of a user" in fault(*words, "--user", "a", "--id", "b")


def test_a_key_of_another_type_fails_the_revocation(redis_server, redis):
    redis.ask("SET", f"{PREFIX}revoked", "no hash")
    words = ["revoke", "--redis", redis_server.url, "--prefix", PREFIX]
    assert "WRONGTYPE" in fault(*words, "--user", "ann")


# -- the document ----------------------------------------------------------------------------------

SECURITY = (Path(__file__).parents[3] / "docs" / "security.rst").read_text("utf-8")


@pytest.mark.parametrize("line", re.findall("^    quotepush token (.*)$", SECURITY, re.MULTILINE))
def test_a_command_of_the_document_is_one(line):
    name, *words = shlex.split(line.partition(" > ")[0].partition(" < ")[0])
    command = token.commands[name]
    if name in ("ticket", "revoke"):
        words += ["--redis", "redis://localhost"]
    assert command.make_context(name, words).args == []


def test_the_document_names_the_limits_of_the_code():
    text = re.sub(r"\s+", " ", SECURITY)
    for words in (
        f"at most once in {tokens.REREAD_EVERY:.0f} seconds",
        f"at most {tokens.MAX_TOKEN} characters",
        f"at least {token_keys.LEAST_SECRET} bytes",
        f"at least {token_keys.LEAST_RSA_BITS} bits",
        f"up to {identity.MAX_PATTERNS:,} of {identity.MAX_TEXT} characters",
        f"0 to {identity.MAX_SYMBOLS:,}",
        f"0 to {commands.MAX_INTERVAL_MS:,}",
        f"0 to {identity.MAX_DELAY_S:,}",
        f"{tickets.LEAST_TICKET} to {tickets.MOST_TICKET} visible ASCII",
        f"at most {tickets.MOST_VALUE:,} bytes",
        f"does not answer within {tickets.PATIENCE:.0f} seconds",
        f"the latest {revocations.MAX_ENTRIES:,} revocations",
        f"each for {revocations.KEPT_FOR // 86_400} days",
        ticket_key("x").removesuffix(hashlib.sha256(b"x").hexdigest()),
        revoked_hash(),
        revoke_channel(),
    ):
        assert words in text, words
    for name in (*identity.RIGHTS_CLAIMS, *tickets.FIELDS, *token_keys.ALGORITHMS):
        assert f"``{name}``" in text
