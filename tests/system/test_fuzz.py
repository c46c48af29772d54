"""Whatever a client sends, before and after it has authenticated, costs nobody else anything.

What is sent is made by chance, and by a seed that a failure names; QUOTEPUSH_FUZZ_SEED repeats it.
A minute in all, or as many seconds as are asked for:

    QUOTEPUSH_SOAK=1800 script/test tests/system/test_fuzz.py -s
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import psutil
import pytest
from authenticated_clients import (
    TOKEN_PLACES,
    AuthenticatedClient,
    Issuer,
    authenticated_client,
    check_not_logged,
    connect_with_token,
    welcomed,
)
from system_clients import UPGRADE, BareSocket, bare_socket, frame
from system_harness import Daemon, Publisher, RedisServer, StartDaemon, poll
from token_makers import SECRET, forged, part

pytestmark = pytest.mark.alone

SECONDS: Final = float(os.environ.get("QUOTEPUSH_SOAK", "60")) / 2
SEED: Final = os.environ.get("QUOTEPUSH_FUZZ_SEED", "20251122")
AT_ONCE: Final = 8
#: KiB by which memory may have grown since the first quarter of the time, as allocators do.
ALLOWED: Final = 6 * 1024
DELAYS: Final = (0.2, 0.7)
#: Close codes that a client may get; a fault of the daemon's own is none of them.
CODES: Final = {1000, 1001, 1002, 1003, 1007, 1009, 1012, 4001, 4004, 4008, 4029}
KINDS: Final = {
    *("welcome", "authenticated", "expiring", "subscribed", "unsubscribed", "list", "pong"),
    *("error", "bye", "quote", "snapshot", "gap", "feed", "heartbeat", "stale", "fresh"),
}

_TEXTS: Final = (
    *("", " ", "A", "CALM", "*", "S1", "S2", "!", "\x00", "\ud800", "\ufeff", "\u202e", "茅" * 22),
    *(
        "x" * 64,
        "x" * 65,
        "x" * 5000,
        "null",
        "true",
        "-1",
        "auto",
        "raw",
        "__proto__",
        "%s%n",
        "{}",
    ),
    *(
        "../../etc/passwd",
        "\r\nSet-Cookie: a=b",
        "quotepush:revoked",
        "user:ann",
        "'; DROP",
        "\\u0000",
    ),
)
_NUMBERS: Final = (
    *(0, -1, 1, 250, 60_000, 60_001, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400),
    *(0.1, -0.0, 1e308, float("inf"), float("nan")),
)
_OPS: Final = ("subscribe", "unsubscribe", "list", "ping", "auth")
_KEYS: Final = ("op", "id", "symbols", "mode", "interval", "snapshot", "token", "x")


# -- what is sent ----------------------------------------------------------------------------------


@dataclass
class Chance:
    """Makes hostile things of one seed."""

    random: random.Random
    issuer: Issuer

    def bytes(self, most: int = 200) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def mutated(self, data: bytes) -> bytes:
        """`data` with some bytes changed, taken out, put in, or doubled."""
        made = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 8))):
            at = self.random.randrange(len(made) + 1)
            kind = self.random.randrange(5)
            if kind == 0 and at < len(made):
                made[at] ^= 1 << self.random.randrange(8)
            elif kind == 1:
                del made[at : at + self.random.choice((1, 2, 50))]
            elif kind == 2:
                made[at:at] = self.bytes(20)
            elif kind == 3:
                made[at:at] = made[max(0, at - 30) : at]
            else:
                del made[at:]
        return bytes(made)

    def value(self, depth: int = 3) -> Any:
        """Any JSON value, seldom a sensible one."""
        kind = self.random.randrange(9 if depth else 6)
        if kind < 2:
            return self.random.choice(_TEXTS)
        if kind < 4:
            return self.random.choice(_NUMBERS)
        if kind < 6:
            return self.random.choice((None, True, False))
        if kind == 6:
            return {self.random.choice(_TEXTS): self.value(depth - 1) for _ in range(3)}
        return [self.value(depth - 1) for _ in range(self.random.choice((0, 1, 3, 40)))]

    def symbols(self) -> Any:
        if self.random.random() < 0.2:
            return self.value()
        return [self.random.choice(("S1", "S2", "CALM", *_TEXTS)) for _ in range(5)]

    def command(self) -> dict[str, Any]:
        """One whose parts are right more often than not."""
        made: dict[str, Any] = {"op": self.random.choice(_OPS), "id": self.random.randrange(9)}
        if made["op"] in ("subscribe", "unsubscribe"):
            made["symbols"] = self.symbols()
        if made["op"] == "auth":
            made["token"] = self.token()
        if self.random.random() < 0.3:
            made["mode"] = self.random.choice(("auto", "raw"))
        for _ in range(self.random.choice((0, 0, 0, 1, 2))):
            made[self.random.choice(_KEYS)] = self.value()
        return made

    def message(self) -> bytes:
        """A text message, JSON or nearly."""
        kind = self.random.randrange(10)
        if kind == 0:
            return self.random.choice((b"[" * 9000, b'{"op":' * 900, b'"', b"1e999", b"S1,S2,\x00"))
        text = json.dumps(self.command()).encode()
        return self.mutated(text) if kind < 3 else text

    def frame(self) -> bytes:
        """One frame, or what might be."""
        kind = self.random.randrange(12)
        if kind < 7:
            made = frame(1, self.message())
        elif kind < 9:
            final = self.random.random() < 0.5
            made = frame(self.random.randrange(16), self.bytes(130), final=final)
        elif kind == 9:
            made = frame(1, self.message(), masked=False)
        elif kind == 10:
            made = bytes([0x81, 0xFF]) + self.random.randbytes(8)
        else:
            made = frame(self.random.choice((8, 9, 10)), self.bytes(140))
        return self.mutated(made) if self.random.random() < 0.15 else made

    # -- tokens ----------------------------------------------------------------------------------

    def good(self, user: str = "ann") -> str:
        """A token that is right, and that may say any right there is."""
        choose = self.random.choice
        rights = {
            "delay": choose((None, 0, 0.2, 0.5)),
            "max_symbols": choose((None, 0, 3, 1000)),
            "min_interval": choose((None, 0, 10)),
            "symbols": choose((None, [], ["S*"], ["*", "!S1"], ["*1*", "**", "!"])),
        }
        if rights["symbols"] and rights["symbols"][-1] == "!":
            rights["symbols"].pop()
        return self.issuer.token(user, choose((0.3, 3600)), **rights)

    def token(self) -> Any:
        """Anything that might be taken for a token, and at times is one."""
        kind = self.random.randrange(9)
        if kind < 3:
            return self.good(self.random.choice(("ann", "ann", "bob")))
        if kind == 3:
            return self.mutated(self.good().encode()).decode("latin-1")
        if kind == 4:
            claims = {"sub": "ann", "exp": 2e9, self.random.choice(_CLAIMS): self.value()}
            return forged({"alg": "HS256"}, claims, SECRET)
        if kind == 5:
            header = {"alg": self.random.choice(_ALGORITHMS), "kid": self.value(), "crit": []}
            return forged(header, self.value())
        if kind == 6:
            head = part({"alg": "HS256"})
            deep = part(b"[" * self.random.choice((10, 5000)))
            return f"{head}.{deep}.{part(bytes(32))}"
        if kind == 7:
            return ".".join(part(self.bytes(60)) for _ in range(self.random.randrange(6)))
        return self.value()

    # -- heads -----------------------------------------------------------------------------------

    def head(self) -> bytes:
        """The head of a request that is wrong somewhere, or carries a token."""
        token = str(self.token()).encode("utf-8", "replace").replace(b"\n", b"")[:20_000]
        quoted = base64.urlsafe_b64encode(self.bytes(60))
        lines = [
            *(line.encode() for line in UPGRADE.split("\r\n")[:-1]),
            self.random.choice(
                (
                    *(b"Authorization: Bearer " + token, b"Authorization: " + quoted),
                    *(b"Authorization:", b"Authorization: Basic " + quoted),
                    b"Sec-WebSocket-Protocol: quotepush.v1.json, quotepush.auth." + token,
                    *(b"Sec-WebSocket-Protocol: quotepush.auth.", b"Sec-WebSocket-Protocol: ,,,"),
                    *(b"Origin: null", b"Origin: https://[", b"Origin: " + self.bytes(40)),
                    *(b"Sec-WebSocket-Extensions: permessage-deflate", b"X: " + b"y" * 20_000),
                    *(b"Content-Length: 99999", b"Transfer-Encoding: chunked", b"Cookie: a=b"),
                    *(
                        b"Host: other",
                        b"Upgrade: h2c",
                        b": ",
                        b"\x00: \x00",
                        b"Expect: 100-continue",
                    ),
                )
            ),
        ]
        if self.random.random() < 0.3:
            where = self.random.choice((b"/?token=" + token, b"/?token=%FF%00&token=a", b"/../%2e"))
            lines[0] = b"GET " + where.replace(b" ", b"+") + b" HTTP/1.1"
        if self.random.random() < 0.3:
            self.random.shuffle(lines)
        if self.random.random() < 0.2:
            lines.append(self.random.choice(lines))
        made = b"\r\n".join(lines) + b"\r\n\r\n"
        return self.mutated(made) if self.random.random() < 0.3 else made


_CLAIMS: Final = (
    *("sub", "jti", "exp", "iat", "nbf", "aud", "iss"),
    *("symbols", "max_symbols", "min_interval", "delay", "quotepush", "once"),
)
_ALGORITHMS: Final = ("HS256", "none", "None", "RS256", "EdDSA", "", None, 7, ["HS256"], {})


# -- who sends it --------------------------------------------------------------------------------


@dataclass
class Attack:
    """Visitors of one daemon, one after the other, for as long as it lasts."""

    daemon: Daemon
    chance: Chance
    until: float
    visits: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    let_in: int = 0

    async def run(self) -> None:
        ways: Sequence[Callable[[], Awaitable[None]]] = (
            self.at_the_socket,
            self.at_the_handshake,
            self.as_a_stranger,
            self.as_a_stranger,
            self.as_a_guest,
            self.as_a_guest,
            self.with_many_tokens,
        )
        while time.monotonic() < self.until:
            way = self.chance.random.choice(ways)
            self.visits[way.__name__] += 1
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await way()

    async def at_the_socket(self) -> None:
        """Any bytes, where TLS or HTTP is expected."""
        under_tls = self.chance.random.random() < 0.5 and not self.daemon.plain
        async with bare_socket(self.daemon, tls=under_tls) as connection:
            kind = self.chance.random.randrange(4)
            data = self.chance.bytes(3000)
            if kind == 0:
                data = b"\x16\x03\x01" + data
            elif kind == 1:
                data = self.chance.random.choice((b"GET ", b"PRI * HTTP/2.0\r\n\r\n")) + data
            elif kind == 2:
                data = self.chance.mutated(UPGRADE.encode() + b"\r\n")
            await connection.send(data)
            await self.leave(connection)

    async def at_the_handshake(self) -> None:
        async with bare_socket(self.daemon) as connection:
            head = self.chance.head()
            at = self.chance.random.randrange(len(head) + 1)
            await connection.send(head[:at])
            await connection.send(head[at:])
            for _ in range(self.chance.random.randrange(4)):
                await connection.send(self.chance.frame())
            await self.leave(connection)

    async def as_a_stranger(self) -> None:
        async with bare_socket(self.daemon) as connection:
            await connection.upgrade(*self._protocol())
            await self.talk(connection)

    async def as_a_guest(self) -> None:
        async with bare_socket(self.daemon) as connection:
            token = self.chance.good()
            head = await connection.upgrade(f"Authorization: Bearer {token}", *self._protocol())
            # A token of one symbol less than none, or that ends now, is refused.
            self.let_in += b" 101 " in head
            subscribe = {"op": "subscribe", "symbols": ["S1", "S2"]}
            await connection.send(frame(1, json.dumps(subscribe).encode()))
            await self.talk(connection)

    async def with_many_tokens(self) -> None:
        """From token to token, and so between delays, with subscriptions of every kind."""
        async with bare_socket(self.daemon) as connection:
            await connection.upgrade()
            for number in range(self.chance.random.randrange(2, 12)):
                token = self.chance.good() if number < 6 else self.chance.token()
                show = json.dumps({"op": "auth", "token": token}).encode()
                mode = self.chance.random.choice(("auto", "raw"))
                ask = {"op": "subscribe", "symbols": ["S1", "S2", f"S{number}"], "mode": mode}
                await connection.send(frame(1, show) + frame(1, json.dumps(ask).encode()))
            await self.leave(connection)

    def _protocol(self) -> list[str]:
        name = self.chance.random.choice((None, None, "quotepush.raw", "quotepush.v1.json"))
        return [] if name is None else [f"Sec-WebSocket-Protocol: {name}"]

    async def talk(self, connection: BareSocket) -> None:
        data = b"".join(self.chance.frame() for _ in range(self.chance.random.randrange(1, 12)))
        # In pieces of any size.
        for _ in range(3):
            at = self.chance.random.randrange(len(data) + 1)
            await connection.send(data[:at])
            data = data[at:]
        await connection.send(data)
        await self.leave(connection)

    async def leave(self, connection: BareSocket) -> None:
        """End it in one of the ways there are; what was answered has to be right."""
        kind = self.chance.random.randrange(4)
        if kind == 0:
            connection.writer.transport.abort()
            return
        if kind == 1 and self.daemon.plain:
            connection.writer.write_eof()
        elif kind < 3:
            await connection.send(frame(8, (1000).to_bytes(2)))
        # The time in which it may say what it has to say; what it sends for longer is its own.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await self.check(connection)

    async def check(self, connection: BareSocket) -> None:
        peeked = await connection.reader.read(1)
        if not peeked or peeked in b"H\x15":
            # A refusal by HTTP, or by TLS.
            return
        opcode = peeked[0] & 0x0F
        while True:
            (size,) = await connection.reader.readexactly(1)
            length = size & 0x7F
            if length > 125:
                length = int.from_bytes(
                    await connection.reader.readexactly(2 if length == 126 else 8)
                )
            payload = await connection.reader.readexactly(length)
            if opcode == 8:
                self.codes[int.from_bytes(payload[:2])] += 1
                return
            if opcode == 1 and payload.startswith(b"[{"):
                kinds = {event["ev"] for event in json.loads(payload)}
                assert kinds <= KINDS, payload
                assert b'"code":500' not in payload, payload
            (first,) = await connection.reader.readexactly(1)
            opcode = first & 0x0F


# -- who is beside -------------------------------------------------------------------------------


class Calm:
    """A client in real time and one that is late; both are to get each quote, once, in order."""

    def __init__(self, publisher: Publisher, daemon: Daemon, issuer: Issuer) -> None:
        self._publisher = publisher
        self._daemon = daemon
        self._issuer = issuer
        self.published = 0

    async def run(self, attack: Awaitable[list[Attack]]) -> list[Attack]:
        now, late = self._issuer.token("calm"), self._issuer.token("calm", delay=DELAYS[0])
        async with (
            authenticated_client(self._daemon, now, "CALM") as first,
            authenticated_client(self._daemon, late, "CALM", way="op", mode="raw") as second,
        ):
            receiving = asyncio.gather(self._receive(first), self._receive(second))
            stop = asyncio.Event()
            quoting = asyncio.create_task(self._quote(stop))
            try:
                every = await attack
            finally:
                stop.set()
                await quoting
            for got in await receiving:
                assert got == [(n, n) for n in range(1, self.published + 1)]
        return every

    async def _quote(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.published += 1
            number = str(self.published)
            quotes = [("fuzz.CALM", number), ("fuzz.S1", number), ("fuzz.S2", '"x"')]
            await asyncio.to_thread(self._publisher.publish, quotes)
            # The pace of the quotes; nothing is waited for here.
            await asyncio.sleep(0.01)
        self._publisher.publish([("fuzz.CALM", '"end"')])

    async def _receive(self, client: AuthenticatedClient) -> list[tuple[int, Any]]:
        got: list[tuple[int, Any]] = []
        while (event := await client.expect("quote", "gap")).get("d") != "end":
            if event["ev"] == "quote":
                got.append((event["n"], event["d"]))
            else:
                # Told to the late one, which was there when the daemon's life began.
                assert got == [], event
        return got


@pytest.mark.parametrize("security", ["plain", "tls"])
def test_whatever_is_sent_nobody_else_notices_and_nothing_is_left(
    daemon: StartDaemon,
    publisher: Publisher,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    security: str,
) -> None:
    issuer = Issuer(tmp_path_factory.mktemp("keys"))
    # The limits of all visitors together would refuse most of them, who come from one address.
    options = ["--max-per-address", "0", "--connect-rate", "0", "--message-rate", "0"]
    options += ["--byte-rate", "0", "--auth-timeout", "2", "--token-leeway", "0"]
    options += ["--token-in-url", "--log-level", "debug", "--channels", "fuzz.*"]
    for delay in DELAYS:
        options += ["--delays", str(delay)]
    options += ["--plain"] if security == "plain" else []
    served = daemon(*issuer.options, *options)
    # Before its descriptors are counted, all that it opens for itself is open.
    for purpose in ("the registry", "the revocation hash", "the revocation messages"):
        served.wait_for(f"connected for {purpose}")
    process = served.serving()
    files: list[int] = []
    memory: list[int] = []

    async def attack() -> list[Attack]:
        files.append(process.num_fds())
        began = time.monotonic()
        every = []
        for share in (0.25, 1.0):
            until = began + share * SECONDS
            some = [
                Attack(served, Chance(random.Random(f"{SEED} {share} {each}"), issuer), until)
                for each in range(AT_ONCE)
            ]
            await asyncio.gather(*(each.run() for each in some))
            every += some
            memory.append(process.memory_info().rss // 1024)
        await asyncio.to_thread(
            poll, lambda: process.num_fds() <= files[0], "the end of all its connections"
        )
        return every

    async def run() -> list[Attack]:
        every = await Calm(publisher, served, issuer).run(attack())
        # It serves newcomers as before, in every way.
        for way in TOKEN_PLACES:
            async with authenticated_client(served, issuer.token(), "S1", way=way):
                pass
        async with connect_with_token(served) as connection:
            await welcomed(connection)
        return every

    every = asyncio.run(run())
    codes = sum((each.codes for each in every), Counter())
    visits = sum((each.visits for each in every), Counter())
    print(  # noqa: T201 - the figures, for who asks for them with -s
        f"\n{security}: {visits.total()} visits in {SECONDS:.0f} s {dict(visits)}, close codes"
        f" {dict(sorted(codes.items()))}; KiB {memory}, seed {SEED}"
    )
    assert set(codes) <= CODES, f"seed {SEED}"
    assert sum(each.let_in for each in every) > 0
    assert memory[-1] - memory[0] <= ALLOWED, f"{memory} KiB; seed {SEED}"
    assert psutil.pid_exists(process.pid)
    served.stop()
    output = served.output()
    for word in ("Traceback", "#error]", "#critical]", "incident", "Unhandled"):
        assert word not in output, f"seed {SEED}: {output[output.index(word) - 500 :][:3000]}"
    check_not_logged(output, issuer.made[:10] + issuer.made[-10:])
