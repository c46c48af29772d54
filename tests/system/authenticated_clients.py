"""What the tests of who may connect share: who issues tokens, clients that show them, and the CLI.

Everything that waits has a deadline.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import jwt
from system_clients import Client
from system_harness import DEADLINE, Address, Daemon, environment
from token_makers import key_file, private_key
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

#: How a token is sent: in the handshake's head, its subprotocols or its URL, or by the op.
TokenPlace = Literal["header", "subprotocol", "url", "op"]
TOKEN_PLACES: Final[tuple[TokenPlace, ...]] = ("header", "subprotocol", "url", "op")
JSON: Final = "quotepush.v1.json"

_ids = itertools.count(1)


class Issuer:
    """Signs tokens, and remembers them all."""

    def __init__(self, directory: Path, algorithm: str = "HS256", which: int = 0) -> None:
        self.algorithm = algorithm
        self._key = private_key(algorithm, which)
        self.options = (
            "--auth",
            "token",
            "--token-key",
            str(key_file(directory, algorithm, which)),
        )
        self.made: list[str] = []

    def token(self, user: str | None = "ann", life: float = 3600.0, **claims: Any) -> str:
        """A token that lives so many seconds; None among `claims` takes one out."""
        now = time.time()
        every = {"sub": user, "jti": f"t{next(_ids)}", "iat": int(now), "exp": now + life} | claims
        every = {name: value for name, value in every.items() if value is not None}
        self.made.append(jwt.encode(every, self._key, self.algorithm))
        return self.made[-1]


def connect_with_token(
    daemon: Address,
    token: str | None = None,
    way: TokenPlace = "header",
    subprotocol: str | None = JSON,
    **options: Any,
) -> connect:
    """A `websockets` client that shows `token` in its handshake, unless by the op."""
    subprotocols = [] if subprotocol is None else [subprotocol]
    headers = {}
    url = daemon.url
    if token is not None and way == "header":
        headers["Authorization"] = f"Bearer {token}"
    elif token is not None and way == "subprotocol":
        subprotocols.append(f"quotepush.auth.{token}")
    elif token is not None and way == "url":
        url += f"?token={quote(token)}"
    settings: dict[str, Any] = {
        "ssl": daemon.ssl_context,
        "subprotocols": [Subprotocol(name) for name in subprotocols] or None,
        "additional_headers": headers,
        "compression": None,
        "max_size": None,
        "ping_interval": None,
        "open_timeout": DEADLINE,
        "proxy": None,
    }
    return connect(url, **(settings | options))


class AuthenticatedClient(Client):
    """A client that may show tokens."""

    welcome: dict[str, Any]
    #: what came of the token it came with
    known: dict[str, Any]

    async def authenticate(self, token: str, **more: Any) -> dict[str, Any]:
        """Show a token; returns what comes back."""
        await self.send({"op": "auth", "token": token} | more)
        return await self.expect("authenticated", "error")

    async def expect_token_ended(self) -> dict[str, Any]:
        """What it is told when it is shut out: error 401, then bye, then a close with 4001."""
        error = await self.expect("error")
        assert error["code"] == 401, error
        assert (await self.expect("bye"))["code"] == 4001
        assert await self.closed() == 4001
        return error


@asynccontextmanager
async def authenticated_client(
    daemon: Address, token: str, *symbols: str, way: TokenPlace = "header", **more: Any
) -> AsyncIterator[AuthenticatedClient]:
    """A connected client that is let in by `token` and has subscribed `symbols`."""
    async with connect_with_token(daemon, token, way) as connection:
        client = await welcomed(connection)
        if way == "op":
            assert client.welcome["auth"] == "required", client.welcome
            client.known = await client.authenticate(token)
        else:
            assert client.welcome["auth"] == "done", client.welcome
            client.known = await client.expect("authenticated")
        assert client.known["ev"] == "authenticated", client.known
        if symbols:
            await client.subscribe(*symbols, **more)
        yield client


async def welcomed(connection: ClientConnection) -> AuthenticatedClient:
    """A client on a connection that was just opened."""
    client = AuthenticatedClient(connection)
    client.welcome = await client.expect("welcome")
    return client


async def refused(
    daemon: Address, token: str | None, way: TokenPlace = "header", **options: Any
) -> tuple[int, str]:
    """The status and the words with which a handshake is refused."""
    try:
        async with asyncio.timeout(DEADLINE), connect_with_token(daemon, token, way, **options):
            raise AssertionError("the handshake was not refused")
    except InvalidStatus as refusal:
        return refusal.response.status_code, (refusal.response.body or b"").decode().strip()


def quotepush(*words: str, env: dict[str, str] | None = None) -> str:
    """What the command `quotepush` prints; a failure of it is one of the test."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("quotepush")), *words],
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


#: Letters of a secret that no log may have in a row.
_PIECE: Final = 12


def check_not_logged(output: str, secrets: Sequence[str], daemon: Daemon | None = None) -> None:
    """Fails where `output`, and that of `daemon`, holds any piece of a secret.

    A token's first part says which algorithm it is, and is no secret.
    """
    if daemon is not None:
        output += daemon.output()
    assert secrets
    for secret in secrets:
        hidden = secret.partition(".")[2] or secret
        assert len(hidden) >= _PIECE
        for at in range(len(hidden) - _PIECE + 1):
            piece = hidden[at : at + _PIECE]
            assert piece not in output, f"{piece!r} of {secret!r} is said"
