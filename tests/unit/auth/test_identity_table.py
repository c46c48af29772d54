"""The table: each way of saying who one is, against each way of cheating.

Ways are the columns, cases the rows. A cell is a verdict, or why it makes no sense.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from core_doubles import FixedClock, make_hub
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_client import RedisClient
from token_makers import (
    GOOD,
    NOW,
    forged,
    jwk,
    key_file,
    private_key,
    public_pem,
    signed,
    write_jwks,
)
from twisted.internet import defer, reactor
from waiting import until

from pushservice.auth.identity import Authenticator, Identity, Refused
from pushservice.auth.revocations import Revocations
from pushservice.auth.tickets import TicketAuthenticator, ticket_key
from pushservice.auth.tokens import TokenAuthenticator
from pushservice.redis.url import redis_address
from pushservice.session.authentication import AccessControl

PREFIX = "test_auth_table:"
JWTS = ["HS256", "RS256", "ES256", "EdDSA", "JWKS"]
TICKETS = ["ticket one-time", "ticket lasting"]
WAYS = [*JWTS, *TICKETS]

#: why a case makes no sense for a way
NO_NBF = "a ticket is written when it begins: it has no nbf"
NO_AUDIENCE = "a ticket is for whoever reads that Redis: it names no audience"
NO_ISSUER = "who may write to that Redis is the issuer: a ticket names none"
NO_KEY = "a ticket is not signed: there is no key"
NO_PUBLIC_KEY = "HS256 has no public key that could be taken for its secret"
NOT_ONCE = "a token, or a lasting ticket, is meant to be used again"
NO_BITS = "a ticket is no encoding of anything: any other one is just unknown"


class Desk:
    """One way with its authenticator, which knows revocations, and a maker of its tokens."""

    def __init__(self, way: str, directory: Path, redis: RedisClient, url: str) -> None:
        self.way = way
        self.clock = FixedClock(NOW)
        self.redis = redis
        self.revocations = Revocations(self.clock)
        self.algorithm = "RS256" if way == "JWKS" else way
        self.tickets: TicketAuthenticator | None = None
        self._made = 0
        if way in TICKETS:
            address = redis_address(url)
            assert address is not None
            self.tickets = TicketAuthenticator(reactor, address, clock=self.clock, prefix=PREFIX)
            self.tickets.start()
            self.door = self._door(self.tickets)
            return
        files: tuple[Path | None, Path | None] = (key_file(directory, self.algorithm), None)
        if way == "JWKS":
            keys = [jwk("RS256", kid="a"), jwk("EdDSA", kid="b"), jwk("ES256", kid="c")]
            files = (None, write_jwks(directory / "jwks", *keys))
        tokens = TokenAuthenticator(self.clock, *files, (), "quotes", "shop", 0.0)
        self.door = self._door(tokens)

    def _door(self, authenticator: Authenticator) -> AccessControl:
        hub = make_hub()
        return AccessControl(
            self.clock, authenticator, self.revocations, 10.0, 0.0, lambda _late: hub
        )

    def make(self, which: int = 0, **claims: Any) -> str:
        """A token or ticket that is good but for `claims`; None takes one out."""
        if self.way in JWTS:
            header = {"kid": "a"} if self.way == "JWKS" else None
            return signed(self.algorithm, which, header, **claims)
        self._made += 1
        ticket = f"{self.way.replace(' ', '-')}-{self._made:020}"
        value = {"user": GOOD["sub"], "id": GOOD["jti"], "iat": GOOD["iat"], "exp": GOOD["exp"]}
        value |= claims | {"once": self.way == "ticket one-time"}
        self.redis.ask("SET", ticket_key(ticket, PREFIX), json.dumps(value))
        return ticket

    async def verdicts(self, *texts: str) -> list[Identity | Refused]:
        """What is said to each, once."""
        if self.tickets is not None:
            await until(lambda: self.tickets.up, "the link")
        found: list[list[Identity | Refused]] = [[] for _ in texts]
        for text, answers in zip(texts, found, strict=True):
            self.door.verify(text, answers.append)
        await until(lambda: all(found), "the verdicts")
        assert all(len(answers) == 1 for answers in found)
        return [answers[0] for answers in found]


@pytest.fixture
def desk(request, tmp_path, redis_server):
    with RedisClient(redis_server.path, PREFIX) as redis:
        made = Desk(request.param, tmp_path, redis, redis_server.url)
        yield made
        if made.tickets is not None:
            pytest_twisted.blockon(defer.ensureDeferred(made.tickets.stop()))
        redis.ask("DEL", PREFIX, *map(PREFIX.__add__, redis.keys()))


each_way = pytest.mark.parametrize("desk", WAYS, indirect=True)


# -- the cases: each gives texts that are to be refused --------------------------------------------


def expired(desk: Desk) -> list[str]:
    return [desk.make(exp=NOW - 1), desk.make(exp=NOW), desk.make(exp=0)]


def not_yet_valid(desk: Desk) -> list[str]:
    return [desk.make(nbf=NOW + 1), desk.make(iat=NOW + 1)]


def wrong_audience(desk: Desk) -> list[str]:
    return [desk.make(aud="other"), desk.make(aud=None), desk.make(aud=["a", "b"])]


def wrong_issuer(desk: Desk) -> list[str]:
    return [desk.make(iss="other"), desk.make(iss=None)]


def wrong_key(desk: Desk) -> list[str]:
    return [desk.make(which=1)]


def alg_none(desk: Desk) -> list[str]:
    spellings = ["none", "None", "NONE", "", None]
    tokens = [forged({"alg": each, "typ": "JWT", "kid": "a"}) for each in spellings]
    return [*tokens, *(token.rpartition(".")[0] + "." for token in tokens)]


def key_confusion(desk: Desk) -> list[str]:
    pem = public_pem(private_key(desk.algorithm))
    members = jwk(desk.algorithm)
    secrets = [pem, pem.strip(), json.dumps(members).encode()]
    secrets += [str(members[name]).encode() for name in ("n", "x") if name in members]
    headers = [{"alg": "HS256"}, {"alg": "HS256", "kid": "a"}, {"alg": desk.algorithm}]
    return [forged(header, GOOD, secret) for header in headers for secret in secrets]


def truncated(desk: Desk) -> list[str]:
    text = desk.make()
    return [text[:at] for at in range(0, len(text), 10)] + [text[:-1]]


def one_bit_flipped(desk: Desk) -> list[str]:
    text = desk.make()
    # Each bit of each character: those of the last one too, which stand for nothing.
    return [
        text[:at] + chr(ord(text[at]) ^ (1 << bit)) + text[at + 1 :]
        for at in range(len(text))
        for bit in range(7)
    ]


def a_megabyte(desk: Desk) -> list[str]:
    text = desk.make()
    return ["x" * 1_000_000, text + "A" * 1_000_000, ".".join(["A" * 333_333] * 3)]


def empty(desk: Desk) -> list[str]:
    return ["", ".", "..", " ", "\n", "\0"]


def not_ascii(desk: Desk) -> list[str]:
    text = desk.make()
    return ["é" * 50, "\ud800" * 50, text + "\u0660", text.replace("e", "\u0435"), "行情" * 20]


def revoked_token(desk: Desk) -> list[str]:
    desk.revocations.revoke("token", GOOD["jti"])
    return [desk.make(), desk.make(iat=NOW)]


def revoked_user(desk: Desk) -> list[str]:
    desk.revocations.revoke("user", GOOD["sub"])
    return [desk.make(), desk.make(**{"jti" if desk.way in JWTS else "id": "8"})]


#: the rows: what makes the texts, what a refusal says, and the ways for which there is none and why
ROWS: list[tuple[Callable[[Desk], list[str]], str, dict[str, str]]] = [
    (expired, "expired", {}),
    (not_yet_valid, "not valid for another", dict.fromkeys(TICKETS, NO_NBF)),
    (wrong_audience, "audience", dict.fromkeys(TICKETS, NO_AUDIENCE)),
    (wrong_issuer, "issuer", dict.fromkeys(TICKETS, NO_ISSUER)),
    (wrong_key, "signature does not match", dict.fromkeys(TICKETS, NO_KEY)),
    (alg_none, "", {}),
    (key_confusion, "", {"HS256": NO_PUBLIC_KEY} | dict.fromkeys(TICKETS, NO_KEY)),
    (truncated, "", {}),
    (one_bit_flipped, "", dict.fromkeys(TICKETS, NO_BITS)),
    (a_megabyte, "", {}),
    (empty, "is none", {}),
    (not_ascii, "", {}),
    (revoked_token, "was revoked", {}),
    (revoked_user, "was revoked", {}),
]


@each_way
@pytest_twisted.ensureDeferred
async def test_a_good_one_is_let_in(desk):
    [found] = await desk.verdicts(desk.make())
    assert isinstance(found, Identity)
    assert (found.user, found.token_id) == ("ann", "7")


CELLS = [
    pytest.param(way, make, why, id=f"{make.__name__}-{way}")
    for make, why, without in ROWS
    for way in WAYS
    if way not in without
]


@pytest.mark.parametrize(("desk", "case", "why"), CELLS, indirect=["desk"])
@pytest_twisted.ensureDeferred
async def test_a_bad_one_is_refused(desk, case, why):
    texts = case(desk)
    assert len(texts) >= 1
    for text, found in zip(texts, await desk.verdicts(*texts), strict=True):
        assert isinstance(found, Refused), text
        assert why in str(found)
        assert not found.temporary
        assert len(str(found)) < 200
        assert len(text) < 10 or text not in str(found)


@each_way
@pytest_twisted.ensureDeferred
async def test_what_is_used_again_is_refused_only_where_it_was_for_one_use(desk):
    text = desk.make()
    first, *more = await desk.verdicts(text, text, text)
    assert isinstance(first, Identity)
    kind = Refused if desk.way == "ticket one-time" else Identity
    assert all(isinstance(again, kind) for again in more), NOT_ONCE


@each_way
@pytest_twisted.ensureDeferred
async def test_what_was_issued_after_its_user_was_revoked_is_let_in(desk):
    desk.revocations.revoke("user", "ann")
    desk.clock.advance(10)
    found = await desk.verdicts(desk.make(iat=NOW + 1), desk.make(iat=NOW))
    assert [type(each) for each in found] == [Identity, Refused]


@each_way
@pytest_twisted.ensureDeferred
async def test_any_text_is_refused(desk):
    texts: list[str] = []

    @settings(
        max_examples=100,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(st.text() | st.text(st.characters(codec="ascii"), min_size=10, max_size=600))
    def take(text: str) -> None:
        texts.append(text)

    take()
    assert len(texts) >= 50
    assert all(isinstance(found, Refused) for found in await desk.verdicts(*texts))
