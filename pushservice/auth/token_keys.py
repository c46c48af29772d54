"""Keys for tokens: read from files, each for one algorithm and no other, and generated.

Must not know: tokens, claims, or clients. Every refusal is a ValueError whose text names the file
and what is wrong with it, and never its content.

Own code: PyJWK's errors may show the secret, and it skips characters that are not base64url.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
#: those that `make_key` generates keys for
MADE: Final = ("HS256", "EdDSA")
#: the least bytes of a secret (RFC 7518, 3.2), and bits of an RSA key (3.3)
LEAST_SECRET: Final = 32
LEAST_RSA_BITS: Final = 2048
_MOST_BYTES: Final = 1024 * 1024
_KINDS: Final = {
    "HS256": "a secret",
    "RS256": "an RSA key",
    "ES256": "an elliptic-curve key (P-256)",
    "EdDSA": "an Ed25519 key",
}


@dataclass(frozen=True, slots=True)
class Key:
    """What verifies tokens of one algorithm: a secret in bytes or a public key, maybe with a name.

    `kid` is the name that tokens call it by (RFC 7515, 4.1.4).
    """

    algorithm: str
    material: Any = field(repr=False)
    kid: str | None = None


class _Unsuitable(ValueError):
    """A key that fits none of the algorithms; the text says what it is."""


def check_algorithms(algorithms: Sequence[str]) -> None:
    """Raises ValueError for one that is not among ALGORITHMS."""
    for name in algorithms:
        if name not in ALGORITHMS:
            raise ValueError(f"{name!r} is no algorithm for tokens; use {', '.join(ALGORITHMS)}")


def key_in(path: Path, algorithms: Sequence[str] = ()) -> Key:
    """The key of a file: PEM with a public or private key or a certificate, or else a secret.

    From a private key or a certificate the public key is taken; a certificate may have expired. A
    secret is all the file's bytes but the newline at its end. Raises ValueError where the file
    holds neither, or a key that serves none of `algorithms`, if any are named.
    """
    check_algorithms(algorithms)
    data = _read(path)
    material: Any
    try:
        if b"-----BEGIN " in data:
            material = _public(_from_pem(data))
            algorithm = _algorithm_of(material)
        else:
            material, algorithm = _secret(data), "HS256"
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if algorithms and algorithm not in algorithms:
        raise ValueError(
            f"{path} holds {_KINDS[algorithm]}, which serves {algorithm}"
            f" and not {' or '.join(algorithms)}"
        )
    return Key(algorithm, material)


def signing_key_in(path: Path, algorithm: str | None = None) -> Key:
    """The secret or the private key of a file, to sign with; `material` is that.

    Raises ValueError as `key_in` does, and where the file holds a public key alone.
    """
    public = key_in(path, () if algorithm is None else (algorithm,))
    if public.algorithm == "HS256":
        return public
    data = _read(path)
    if b"PRIVATE KEY-----" not in data:
        raise ValueError(f"{path} holds a public key, which verifies; to sign give the private one")
    return Key(public.algorithm, _from_pem(data))


def keys_in(path: Path, algorithms: Sequence[str] = ()) -> list[Key]:
    """The keys of a JWK Set (RFC 7517, 5) that serve any of `algorithms`, or of ALGORITHMS.

    Others are left out, as the RFC has it. Raises ValueError where none is left, for a key that is
    broken, and for two of one name and one algorithm.
    """
    check_algorithms(algorithms)
    try:
        document = msgspec.json.decode(_read(path))
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ValueError(f"{path} is no JSON") from None
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise ValueError(f'{path} is no set of keys: an object with a list named "keys"')
    try:
        keys = [key for key in _keys_of(found) if key.algorithm in (algorithms or ALGORITHMS)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not keys:
        wanted = ", ".join(algorithms or ALGORITHMS)
        raise ValueError(f"{path} holds no key for any of {wanted}")
    named = [(key.algorithm, key.kid) for key in keys if key.kid is not None]
    if len(set(named)) < len(named):
        raise ValueError(f"{path} holds two keys with one kid")
    return keys


def make_key(path: Path, algorithm: str) -> str | None:
    """Make a key in a new file that its owner alone can read; returns the public key as PEM.

    HS256 has none: None. Raises ValueError where there is a file already, or none can be made.
    """
    if algorithm not in MADE:
        raise ValueError(f"keys are made for {' and '.join(MADE)}, not for {algorithm!r}")
    public = None
    if algorithm == "HS256":
        data = secrets.token_urlsafe(LEAST_SECRET).encode() + b"\n"
    else:
        private = ed25519.Ed25519PrivateKey.generate()
        pem = serialization.Encoding.PEM
        data = private.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = (
            private.public_key()
            .public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
            .decode()
        )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
    except FileExistsError:
        raise ValueError(f"{path} is there already; it is not overwritten") from None
    except OSError as error:
        raise ValueError(f"{path} can't be made: {error.strerror}") from None
    return public


# -- files ----------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{path} is larger than {_MOST_BYTES} bytes, which no key is")
    return data


def _from_pem(data: bytes) -> Any:
    """The key in a PEM file: the private one where there is any."""
    try:
        if b"PRIVATE KEY-----" in data:
            return serialization.load_pem_private_key(data, password=None)
        if b"-----BEGIN CERTIFICATE-----" in data:
            return x509.load_pem_x509_certificate(data).public_key()
        return serialization.load_pem_public_key(data)
    except TypeError:
        raise ValueError("the private key is encrypted; give it without a password") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it is PEM, and no key or certificate in it can be read") from None


def _public(key: Any) -> Any:
    """The public part of a key that may be private."""
    return key.public_key() if hasattr(key, "public_key") else key


def _algorithm_of(key: object) -> str:
    """The one algorithm that a public key serves; raises _Unsuitable where there is none."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < LEAST_RSA_BITS:
            raise _Unsuitable(f"an RSA key of {key.key_size} bits; {LEAST_RSA_BITS} are the least")
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, ec.SECP256R1):
            raise _Unsuitable(f"a key on the curve {key.curve.name}; ES256 has P-256")
        return "ES256"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "EdDSA"
    raise _Unsuitable(f"a key of a kind that serves none of {', '.join(ALGORITHMS)}")


def _secret(data: bytes) -> bytes:
    """A file's bytes as a secret, unless they are a public key in another form.

    If a public key were taken for a secret, everybody who knows it could sign tokens.
    """
    secret = data.removesuffix(b"\n").removesuffix(b"\r")
    if data.lstrip()[:1] == b"{":
        raise ValueError("it is a JSON object and no secret; a set of keys is named as such")
    # UTF-16 PEM and the format of RFC 4716 contain this too.
    marked = b"-- BEGIN " in data or b"-BEGIN " in data.replace(b"\0", b"")
    if marked or data.startswith((b"ssh-", b"ecdsa-", b"sk-")):
        raise ValueError("it is a key, but not in PEM")
    if _is_der(data) or _is_der(_from_base64(data)):
        raise ValueError("it is a key, but not in PEM")
    if len(secret) < LEAST_SECRET:
        raise ValueError(f"a secret of {len(secret)} bytes; {LEAST_SECRET} are the least")
    return secret


def _from_base64(data: bytes) -> bytes:
    """`data` decoded, where it is the base64 of a PEM file without its first and last line."""
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error:
        return b""


def _is_der(data: bytes) -> bool:
    # Every key and certificate in DER is a SEQUENCE (ITU-T X.690, 8.9).
    if not data.startswith(b"\x30"):
        return False
    for load in (
        serialization.load_der_public_key,
        x509.load_der_x509_certificate,
        lambda data: serialization.load_der_private_key(data, None),
    ):
        try:
            load(data)
        except (ValueError, UnsupportedAlgorithm):
            continue
        except TypeError:
            return True
        return True
    return False


# -- sets of keys ---------------------------------------------------------------------------------


def _keys_of(found: list[Any]) -> Iterator[Key]:
    for place, each in enumerate(found, 1):
        if not isinstance(each, dict):
            raise ValueError(f"key {place} is no object")
        # RFC 7517, 4.2, 4.3 and 5: keys for encryption, or of an unknown kind, are skipped.
        if each.get("use", "sig") != "sig" or not _signs(each.get("key_ops")):
            continue
        kid = each.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise ValueError(f"key {place} has a kid that is no text")
        try:
            material = _from_jwk(each)
            algorithm = "HS256" if isinstance(material, bytes) else _algorithm_of(material)
        except _Unsuitable:
            continue
        except (ValueError, KeyError, TypeError, binascii.Error, OverflowError):
            raise ValueError(f"key {place} is broken") from None
        if each.get("alg", algorithm) == algorithm:
            yield Key(algorithm, material, kid)


def _signs(purposes: object) -> bool:
    """Whether a JWK's key_ops, if it has any, include signatures."""
    return not isinstance(purposes, list) or "verify" in purposes or "sign" in purposes


def _from_jwk(jwk: Mapping[str, Any]) -> Any:
    """The public key or the secret of one JWK (RFC 7518, 6, and RFC 8037, 2)."""
    match jwk.get("kty"), jwk.get("crv"):
        case "RSA", _:
            return rsa.RSAPublicNumbers(_number(jwk["e"]), _number(jwk["n"])).public_key()
        case "EC", "P-256":
            point = b"\x04" + _bytes(jwk["x"], 32) + _bytes(jwk["y"], 32)
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        case "OKP", "Ed25519":
            return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(jwk["x"], 32))
        case "oct", _:
            secret = _bytes(jwk["k"])
            if len(secret) < LEAST_SECRET:
                raise ValueError("the secret is too short")
            return secret
    raise _Unsuitable("a key of a kind that is not known")


def _number(text: str) -> int:
    return int.from_bytes(_bytes(text), "big")


def _bytes(text: str, size: int | None = None) -> bytes:
    """What base64url without padding stands for (RFC 7515, 2)."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if size is not None and len(data) != size:
        raise ValueError("a coordinate has another length")
    return data
