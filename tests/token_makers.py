"""Keys, and tokens signed with them in every way, good or forged: for the tests of tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from functools import cache
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

NOW = 1_763_800_000.25
SECRET = b"0123456789abcdef0123456789abcdef"
PEM = serialization.Encoding.PEM
#: a token's claims where nothing else is said
GOOD = {
    "sub": "ann",
    "jti": "7",
    "iat": 1_763_800_000 - 60,
    "exp": 1_763_800_000 + 60,
    "aud": "quotes",
    "iss": "shop",
}


def private_key(algorithm: str, which: int = 0) -> Any:
    """A key to sign with; another for each `which`."""
    return _made(algorithm, which)


@cache
def _made(algorithm: str, which: int) -> Any:
    if algorithm == "HS256":
        return SECRET if which == 0 else bytes([which]) * 32
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, 2048)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def private_pem(key: Any) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_pem(key: Any) -> bytes:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_file(directory: Path, algorithm: str, which: int = 0) -> Path:
    """What the daemon is given: the secret, or the public key in PEM."""
    path = directory / f"{algorithm}-{which}"
    key = private_key(algorithm, which)
    path.write_bytes(key + b"\n" if algorithm == "HS256" else public_pem(key))
    return path


def jwk(algorithm: str, which: int = 0, **more: Any) -> dict[str, Any]:
    """A JWK, made by the library's own hand; None among `more` takes a member out."""
    key = private_key(algorithm, which)
    public = key if algorithm == "HS256" else key.public_key()
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    made.pop("key_ops", None)
    return made | more


def write_jwks(path: Path, *keys: Any) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


def signed(algorithm: str, which: int = 0, header: dict[str, Any] | None = None, **claims: Any):
    """A token with GOOD claims and others; None among `claims` takes one out."""
    every = {name: value for name, value in (GOOD | claims).items() if value is not None}
    return jwt.encode(every, private_key(algorithm, which), algorithm, headers=header)


def part(value: Any) -> str:
    """One part of a token, of bytes or of what becomes JSON."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: Any, claims: Any = GOOD, secret: bytes | None = None) -> str:
    """A token of any header and claims; signed with HMAC by `secret`, or by 64 bytes of nothing."""
    text = f"{part(header)}.{part(claims)}"
    if secret is None:
        return f"{text}.{part(bytes(64))}"
    return f"{text}.{part(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def verdict(authenticator: Any, token: str) -> Any:
    """What `verify` says, which it says once and at once."""
    found: list[Any] = []
    authenticator.verify(token, found.append)
    assert len(found) == 1
    return found[0]
