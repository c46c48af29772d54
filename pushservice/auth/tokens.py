"""JSON Web Tokens (RFC 7519): verified with keys from files, signed, and decoded.

Must not know: connections, what the client of a token does, or which options named the files.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec
from twisted.logger import Logger

from pushservice.auth.identity import Claims, Done, Identity, Refused, check_time, time_of
from pushservice.auth.token_keys import ALGORITHMS, Key, check_algorithms, key_in, keys_in
from pushservice.fanout.interfaces import Clock

#: characters of a token; a longer one is refused
MAX_TOKEN: Final = 8192
#: seconds between two checks whether the file of a key set has changed
REREAD_EVERY: Final = 10.0
# Base64url without padding, whose unused bits are 0 (RFC 4648, 3.5): four of them where two letters
# are left at the end, two where three are.
_PART: Final = (
    r"(?=[^.])(?:[A-Za-z0-9_-]{4})*"
    r"(?:[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])?"
)
_FORM: Final = re.compile(rf"{_PART}\.{_PART}\.{_PART}")
_read_header: Final = msgspec.json.Decoder(dict[str, Any]).decode
#: The library checks the signature only. It would use the system's clock for times, and which
#: claims it checks depends on its version.
_SIGNATURE_ALONE: Final[Any] = {
    f"verify_{name}": False for name in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")
} | {"verify_signature": True}


class TokenAuthenticator:
    """Verifies tokens by a key from `key_file`, by those of a JWK Set in `jwks_file`, or by both.

    The keys determine the algorithms; `algorithms`, if given, restricts them. A token can only
    select one of these keys. The claims `aud` and `iss` have to match `audience` and `issuer`;
    without an audience, tokens for one are refused (RFC 7519, 4.1.3). `exp`, `nbf` and `iat` may be
    off by `leeway` seconds. Raises ValueError, naming the file, where there is no key or one can't
    be used.
    """

    log = Logger()

    def __init__(
        self,
        clock: Clock,
        key_file: Path | None = None,
        jwks_file: Path | None = None,
        algorithms: Sequence[str] = (),
        audience: str | None = None,
        issuer: str | None = None,
        leeway: float = 5.0,
        *,
        require_expiry: bool = True,
    ) -> None:
        check_algorithms(algorithms)
        self._clock = clock
        self._key_file = key_file
        self._jwks_file = jwks_file
        self._algorithms = tuple(algorithms)
        self._audience = audience
        self._issuer = issuer
        self._leeway = leeway
        self._require_expiry = require_expiry
        self._keys: list[Key] = []
        # When the files were last read, when the key set's file was last checked for a change, and
        # its stamp then.
        self._read_at = self._looked_at = 0.0
        self._stamp: object = None
        self.reload()

    def reload(self) -> None:
        """Read the files again. Raises ValueError, and keeps the keys there were, if they are bad.

        Blocks for as long as that takes.
        """
        self._read_at = self._looked_at = self._clock.seconds()
        # Before reading, so that the next check sees what is written meanwhile.
        self._stamp = self._stamp_now()
        keys = []
        if self._key_file is not None:
            keys.append(key_in(self._key_file, self._algorithms))
        if self._jwks_file is not None:
            keys += keys_in(self._jwks_file, self._algorithms)
        if not keys:
            raise ValueError("tokens need a file with a key, or one with a set of keys")
        self._keys = keys

    def verify(self, token: str, done: Done) -> None:
        """See Authenticator; `done` is called before this returns."""
        outcome: Identity | Refused
        try:
            outcome = self._identify(token)
        except Refused as refusal:
            outcome = refusal
        except Exception as error:  # noqa: BLE001 - no fault may let a client in
            self.log.error(
                "a token was refused because it can't be verified: {kind}",
                kind=type(error).__name__,
            )
            outcome = Refused("the token can't be verified")
        done(outcome)

    def _identify(self, token: str) -> Identity:
        check_form(token)
        key = self._key_for(_header_of(token))
        claims = _claims_of(token, key)
        self._check(claims)
        return Identity.from_claims(claims, user="sub", token_id="jti")  # noqa: S106 - a claim's name

    # -- keys ------------------------------------------------------------------------------------

    def _key_for(self, header: dict[str, Any]) -> Key:
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header:
            # RFC 7515, 4.1.11: a token whose critical extensions are not all understood is refused.
            raise Refused("the token's header has crit, and nothing critical is understood")
        if algorithm not in ALGORITHMS:
            raise Refused(f"the token's alg is none of {self._known()}")
        if kid is not None and not isinstance(kid, str):
            raise Refused("the token's kid is no text")
        self._check_file()
        key = self._choose(algorithm, kid)
        if key is None and kid is not None and self._due(self._read_at) and self._reread():
            key = self._choose(algorithm, kid)
        if key is not None:
            return key
        if not any(key.algorithm == algorithm for key in self._keys):
            raise Refused(f"the token's alg is {algorithm}, and not one of {self._known()}")
        if kid is None:
            raise Refused(f"the token names no key (kid), and there are several for {algorithm}")
        raise Refused(f"the token names a key (kid) that is not known for {algorithm}")

    def _choose(self, algorithm: str, kid: str | None) -> Key | None:
        """The key with that kid; else the only key of the algorithm that can be meant."""
        keys = [key for key in self._keys if key.algorithm == algorithm]
        for key in keys:
            if kid is not None and key.kid == kid:
                return key
        if kid is not None:
            keys = [key for key in keys if key.kid is None]
        return keys[0] if len(keys) == 1 else None

    def _known(self) -> str:
        return ", ".join(sorted({key.algorithm for key in self._keys}))

    def _check_file(self) -> None:
        """Read the key set again if its file changed: a removed key must not be used."""
        if self._due(self._looked_at):
            self._looked_at = self._clock.seconds()
            if self._stamp_now() != self._stamp:
                self._reread()

    def _due(self, at: float) -> bool:
        """Whether REREAD_EVERY seconds have passed since `at`: requests can't cause more reads."""
        # A clock may be set back.
        return not 0 <= self._clock.seconds() - at < REREAD_EVERY

    def _stamp_now(self) -> object:
        """A value that differs once the file of the key set was written or replaced."""
        if self._jwks_file is None:
            return None
        try:
            found = self._jwks_file.stat()
        except OSError as error:
            return error.errno
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def _reread(self) -> bool:
        """Use what the files hold now; False where that is unusable."""
        if self._jwks_file is None:
            return False
        try:
            self.reload()
        except ValueError as error:
            self.log.warn(
                "new keys for tokens can't be used, and the old ones are kept: {reason}",
                reason=str(error),
            )
            return False
        return True

    # -- claims ----------------------------------------------------------------------------------

    def _check(self, claims: Claims) -> None:
        expires = time_of(claims, "exp")
        if expires is None and self._require_expiry:
            raise Refused("the token has no exp, and one without an end is not accepted")
        begins = time_of(claims, "nbf"), time_of(claims, "iat")
        check_time(self._clock.seconds(), self._leeway, expires=expires, begins=begins)
        self._check_audience(claims)
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise Refused("the token is of another issuer, or does not say of which (iss)")

    def _check_audience(self, claims: Claims) -> None:
        if "aud" not in claims:
            if self._audience is not None:
                raise Refused("the token does not say for which audience it is (aud)")
            return
        named = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if not all(isinstance(each, str) for each in named):
            raise Refused("the claim aud is no text and no list of texts")
        if self._audience not in named:
            raise Refused("the token is for another audience (aud)")


# -- decoding -------------------------------------------------------------------------------------


def check_form(token: str) -> None:
    """Raises Refused unless `token` has the form of a signed token (RFC 7515, 7.1).

    Each part has to be in its only canonical encoding; otherwise a revoked token could come back in
    other letters.
    """
    if len(token) > MAX_TOKEN:
        raise Refused(f"the token has {len(token)} characters; {MAX_TOKEN} may be")
    if _FORM.fullmatch(token) is None:
        raise Refused("the token is none: it has three parts in base64url, with dots between")


def _header_of(token: str) -> dict[str, Any]:
    """The header, unverified; the library checks it with the signature."""
    part = token[: token.index(".")]
    try:
        # The library would decode the whole token for it, which costs as much as verifying HS256.
        return _read_header(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError):
        raise Refused("the token's header is not understood") from None


def _claims_of(token: str, key: Key) -> dict[str, Any]:
    """The claims, once the signature matches."""
    try:
        return jwt.decode(token, key.material, algorithms=[key.algorithm], options=_SIGNATURE_ALONE)
    except jwt.InvalidSignatureError:
        raise Refused("the token's signature does not match") from None
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise Refused("the token's claims can't be read") from None


def unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The header and the claims, unverified. Raises Refused."""
    check_form(token)
    header = _header_of(token)
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise Refused("the token's claims can't be read") from None
    return header, claims


def sign(claims: Claims, key: Key) -> str:
    """A token with `claims`, signed by a key of `signing_key_in`."""
    return jwt.encode(dict(claims), key.material, algorithm=key.algorithm)
