"""Tokens: whose signature counts, which claims, by which clock, and how keys change."""

from __future__ import annotations

import base64
import json
import string

import jwt
import pytest
from core_doubles import FixedClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from token_makers import (
    GOOD,
    NOW,
    SECRET,
    forged,
    jwk,
    key_file,
    part,
    private_key,
    signed,
    verdict,
    write_jwks,
)
from twisted.logger import capturedLogs, formatEvent

from pushservice.auth.identity import Identity, Refused, Rights
from pushservice.auth.token_keys import ALGORITHMS, signing_key_in
from pushservice.auth.tokens import MAX_TOKEN, TokenAuthenticator, check_form, sign, unverified

BASE64URL = string.ascii_letters + string.digits + "-_"


@pytest.fixture
def clock():
    return FixedClock(NOW)


@pytest.fixture
def with_key(tmp_path, clock):
    """with_key(algorithm="HS256", **options): verifies GOOD's audience and issuer by one key."""

    def make(algorithm: str = "HS256", **options: object) -> TokenAuthenticator:
        values = {"audience": "quotes", "issuer": "shop", "leeway": 0.0, **options}
        return TokenAuthenticator(clock, key_file(tmp_path, algorithm), **values)

    return make


@pytest.fixture
def with_set(tmp_path, clock):
    """with_set(*jwks, ...): the same by a set of keys, in the file `jwks`."""

    def make(*keys: object, **options: object) -> TokenAuthenticator:
        path = write_jwks(tmp_path / "jwks", *keys)
        values = {"audience": "quotes", "issuer": "shop", "leeway": 0.0, **options}
        return TokenAuthenticator(clock, None, path, **values)

    return make


def reason(found: Identity | Refused) -> str:
    assert isinstance(found, Refused), found
    assert not found.temporary
    return str(found)


# -- good ones -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_says_who_it_is_and_what_may_be_seen(with_key, algorithm):
    token = signed(algorithm, symbols=["*.SH"], quotepush={"max_symbols": 5})
    assert verdict(with_key(algorithm), token) == Identity(
        "ann", "7", GOOD["exp"], GOOD["iat"], Rights(("*.SH",), max_symbols=5)
    )


def test_a_token_may_have_any_name_for_a_key_that_has_none(with_key):
    assert isinstance(verdict(with_key(), signed("HS256", header={"kid": "x"})), Identity)


def test_a_key_file_and_a_set_of_keys_serve_beside_each_other(tmp_path, clock):
    both = TokenAuthenticator(
        clock,
        key_file(tmp_path, "HS256"),
        write_jwks(tmp_path / "jwks", jwk("EdDSA", kid="a")),
        audience="quotes",
    )
    assert isinstance(verdict(both, signed("HS256")), Identity)
    assert isinstance(verdict(both, signed("EdDSA", header={"kid": "a"})), Identity)


# -- claims ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": NOW - 12}, "the token expired 12 s ago"),
        ({"exp": NOW}, "the token expired 0 s ago"),
        ({"exp": None}, "has no exp"),
        ({"exp": True}, "the claim exp is no time"),
        ({"exp": "9999999999"}, "the claim exp is no time"),
        ({"exp": 1e300}, "the claim exp is no time"),
        ({"nbf": NOW + 5}, "not valid for another 5 s"),
        ({"nbf": False}, "the claim nbf is no time"),
        ({"iat": NOW + 5}, "not valid for another 5 s"),
        ({"iat": [1]}, "the claim iat is no time"),
        ({"aud": None}, "does not say for which audience"),
        ({"aud": "other"}, "for another audience"),
        ({"aud": ["other", "quotes2"]}, "for another audience"),
        ({"aud": []}, "for another audience"),
        ({"aud": ["quotes", 5]}, "the claim aud is no text"),
        ({"aud": {"quotes": 1}}, "the claim aud is no text"),
        ({"symbols": "A"}, "the claim symbols is no list"),
        ({"quotepush": {"delay": -1}}, "the claim delay is no number"),
        ({"jti": 7}, "the claim jti is no text"),
        ({"iss": None}, "of another issuer"),
        ({"iss": "other"}, "of another issuer"),
        ({"sub": "a\nb"}, "the claim sub is no text"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused_with_the_reason(with_key, claims, why):
    # The library refuses to sign some of these.
    every = {name: value for name, value in (GOOD | claims).items() if value is not None}
    token = forged({"alg": "HS256"}, every, SECRET)
    assert why in reason(verdict(with_key(), token))


def test_one_of_several_audiences_is_enough(with_key):
    assert isinstance(verdict(with_key(), signed("HS256", aud=["x", "quotes"])), Identity)


def test_without_an_audience_of_its_own_the_server_takes_no_token_for_one(with_key):
    free = with_key(audience=None, issuer=None)
    assert "for another audience" in reason(verdict(free, signed("HS256")))
    assert isinstance(verdict(free, signed("HS256", aud=None, iss="any")), Identity)


def test_leeway_stretches_all_times(with_key):
    lenient = with_key(leeway=5.0)
    assert isinstance(verdict(lenient, signed("HS256", exp=NOW - 4.9)), Identity)
    assert isinstance(verdict(lenient, signed("HS256", nbf=NOW + 5, iat=NOW + 4)), Identity)
    assert "expired 5 s ago" in reason(verdict(lenient, signed("HS256", exp=NOW - 5)))
    assert "not valid" in reason(verdict(lenient, signed("HS256", nbf=NOW + 5.1)))


def test_the_time_is_that_of_the_clock_given(with_key, clock):
    verifier = with_key()
    assert isinstance(verdict(verifier, signed("HS256")), Identity)
    clock.advance(60)
    assert "expired" in reason(verdict(verifier, signed("HS256")))


def test_a_token_without_an_end_is_taken_where_that_is_allowed(with_key):
    found = verdict(with_key(require_expiry=False), signed("HS256", exp=None))
    assert isinstance(found, Identity)
    assert found.expires_at is None


# -- keys and algorithms ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": jwk("EdDSA", 1)},
        {"x5c": ["AAAA"]},
    ],
)
def test_a_header_that_brings_its_own_key_changes_nothing(with_key, header):
    verifier = with_key("EdDSA")
    assert isinstance(verdict(verifier, signed("EdDSA", header=header)), Identity)
    token = signed("EdDSA", 1, header=header)
    assert reason(verdict(verifier, token)) == "the token's signature does not match"


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], None, "exp"])
def test_a_header_with_crit_is_refused(with_key, crit):
    token = forged({"alg": "HS256", "crit": crit, "exp": 1}, secret=SECRET)
    assert "header" in reason(verdict(with_key(), token))
    token = forged({"alg": "HS256", "crit": crit, "b64": True}, secret=SECRET)
    assert "header" in reason(verdict(with_key(), token))


@pytest.mark.parametrize(
    "header", [[], 5, "x", None, {}, {"alg": 5}, {"alg": None}, {"alg": "none"}, {"alg": "hs256"}]
)
def test_a_header_that_names_no_algorithm_is_refused(with_key, header):
    assert reason(verdict(with_key(), forged(header, secret=SECRET)))


@pytest.mark.parametrize("kid", [5, None, [], {"a": 1}])
def test_a_kid_that_is_no_text_is_no_way_in(with_set, kid):
    token = forged({"alg": "HS256", "kid": kid}, secret=SECRET)
    found = verdict(with_set(jwk("HS256", kid="a"), jwk("HS256", 1, kid="b")), token)
    assert reason(found)


def test_a_payload_that_is_not_encoded_is_refused(with_key):
    token = forged({"alg": "HS256", "b64": False}, secret=SECRET)
    assert reason(verdict(with_key(), token))


@pytest.mark.parametrize("claims", [[], 5, None, b"x", b"\xff", b"[" * 3000, b'{"exp":' * 600])
def test_claims_that_are_no_object_are_refused(with_key, claims):
    assert reason(verdict(with_key(), forged({"alg": "HS256"}, claims, SECRET)))


def test_a_header_of_great_depth_is_refused(with_key):
    token = f"{part(b'[' * 5000)}.{part(GOOD)}.{part(bytes(32))}"
    assert reason(verdict(with_key(), token)) == "the token's header is not understood"


def test_only_the_algorithms_that_are_named_are_accepted(with_set):
    keys = jwk("EdDSA", kid="a"), jwk("ES256", kid="b")
    verifier = with_set(*keys, algorithms=["EdDSA"])
    assert isinstance(verdict(verifier, signed("EdDSA", header={"kid": "a"})), Identity)
    refused = verdict(verifier, signed("ES256", header={"kid": "b"}))
    assert "alg is ES256, and not one of EdDSA" in reason(refused)


def test_without_a_good_key_there_is_no_authenticator(tmp_path, clock):
    with pytest.raises(ValueError, match="tokens need a file with a key"):
        TokenAuthenticator(clock)
    with pytest.raises(ValueError, match="HS256-0 holds a secret, which serves HS256 and not RS"):
        TokenAuthenticator(clock, key_file(tmp_path, "HS256"), algorithms=["RS256"])
    with pytest.raises(ValueError, match="'none' is no algorithm"):
        TokenAuthenticator(clock, key_file(tmp_path, "HS256"), algorithms=["none"])


# -- sets of keys ----------------------------------------------------------------------------------


def test_the_key_is_the_one_that_the_token_names_and_no_other(with_set):
    verifier = with_set(jwk("EdDSA", 0, kid="a"), jwk("EdDSA", 1, kid="b"))
    for which, kid in ((0, "a"), (1, "b")):
        token = signed("EdDSA", which, header={"kid": kid})
        assert isinstance(verdict(verifier, token), Identity)
        token = signed("EdDSA", 1 - which, header={"kid": kid})
        assert "signature" in reason(verdict(verifier, token))
    assert "names no key" in reason(verdict(verifier, signed("EdDSA")))
    assert "not known" in reason(verdict(verifier, signed("EdDSA", header={"kid": "c"})))
    assert "not known" in reason(verdict(verifier, signed("EdDSA", header={"kid": ""})))


def test_a_key_without_a_name_serves_where_it_is_the_only_one_that_can(with_set):
    verifier = with_set(jwk("EdDSA"), jwk("ES256"), jwk("EdDSA", 1, kid="b"))
    assert isinstance(verdict(verifier, signed("EdDSA", header={"kid": "x"})), Identity)
    assert isinstance(verdict(verifier, signed("ES256")), Identity)
    assert "names no key" in reason(verdict(verifier, signed("EdDSA")))


def test_the_only_key_of_an_algorithm_needs_no_naming(with_set):
    assert isinstance(verdict(with_set(jwk("EdDSA", kid="a")), signed("EdDSA")), Identity)


def test_an_unknown_name_has_the_file_read_again_and_at_most_once_in_ten_seconds(
    with_set, tmp_path, clock
):
    verifier = with_set(jwk("EdDSA", kid="a"))
    write_jwks(tmp_path / "jwks", jwk("EdDSA", 1, kid="b"))
    new, old = signed("EdDSA", 1, header={"kid": "b"}), signed("EdDSA", header={"kid": "a"})
    clock.advance(9.9)
    assert "not known" in reason(verdict(verifier, new))
    assert isinstance(verdict(verifier, old), Identity)
    clock.advance(0.1)
    assert isinstance(verdict(verifier, new), Identity)
    assert "not known" in reason(verdict(verifier, old))
    write_jwks(tmp_path / "jwks", jwk("EdDSA", kid="a"))
    assert "not known" in reason(verdict(verifier, old))
    clock.advance(10)
    assert isinstance(verdict(verifier, old), Identity)


def test_a_key_that_was_taken_out_serves_no_longer_than_ten_seconds(with_set, tmp_path, clock):
    verifier = with_set(jwk("EdDSA", kid="a"), jwk("EdDSA", 1, kid="b"))
    stolen, sound = signed("EdDSA", header={"kid": "a"}), signed("EdDSA", 1, header={"kid": "b"})
    clock.advance(20)
    assert isinstance(verdict(verifier, stolen), Identity)
    write_jwks(tmp_path / "jwks", jwk("EdDSA", 1, kid="b"))
    clock.advance(9.9)
    assert isinstance(verdict(verifier, stolen), Identity)
    clock.advance(0.1)
    assert "not known" in reason(verdict(verifier, stolen))
    assert isinstance(verdict(verifier, sound), Identity)


@pytest.mark.parametrize("kid", [None, "a"])
def test_another_key_of_the_same_name_or_of_none_takes_its_place(with_set, tmp_path, clock, kid):
    named = {} if kid is None else {"kid": kid}
    verifier = with_set(jwk("EdDSA", **named))
    before, after = (signed("EdDSA", which, header=named) for which in (0, 1))
    write_jwks(tmp_path / "beside", jwk("EdDSA", 1, **named)).replace(tmp_path / "jwks")
    clock.advance(10)
    assert isinstance(verdict(verifier, after), Identity)
    assert "signature" in reason(verdict(verifier, before))


def test_a_clock_that_was_set_back_keeps_no_new_key_out(with_set, tmp_path, clock):
    verifier = with_set(jwk("EdDSA", kid="a"))
    verifier.reload()
    clock.rightNow -= 60
    write_jwks(tmp_path / "jwks", jwk("EdDSA", 1, kid="b"))
    new = signed("EdDSA", 1, header={"kid": "b"})
    assert isinstance(verdict(verifier, new), Identity)


def test_a_file_that_is_gone_keeps_the_old_keys_and_is_said_once(with_set, tmp_path, clock):
    verifier = with_set(jwk("EdDSA", kid="a"))
    (tmp_path / "jwks").unlink()
    with capturedLogs() as events:
        for _ in range(3):
            clock.advance(10)
            assert isinstance(verdict(verifier, signed("EdDSA", header={"kid": "a"})), Identity)
    [line] = [formatEvent(event) for event in events]
    assert "can't be read: No such file" in line


def test_a_broken_new_file_keeps_the_old_keys_and_is_said(with_set, tmp_path, clock):
    verifier = with_set(jwk("EdDSA", kid="a"))
    (tmp_path / "jwks").write_text('{"keys": [5]}')
    clock.advance(20)
    with capturedLogs() as events:
        unknown = signed("EdDSA", header={"kid": "b"})
        assert "not known" in reason(verdict(verifier, unknown))
        assert "not known" in reason(verdict(verifier, unknown))
    [line] = [formatEvent(event) for event in events]
    assert "jwks: key 1 is no object" in line
    assert isinstance(verdict(verifier, signed("EdDSA", header={"kid": "a"})), Identity)
    with pytest.raises(ValueError, match="key 1 is no object"):
        verifier.reload()


def test_a_reload_takes_the_new_keys(tmp_path, with_key):
    verifier = with_key()
    (tmp_path / "HS256-0").write_bytes(private_key("HS256", 1))
    assert isinstance(verdict(verifier, signed("HS256")), Identity)
    verifier.reload()
    assert "signature" in reason(verdict(verifier, signed("HS256")))
    assert isinstance(verdict(verifier, signed("HS256", 1)), Identity)


# -- the form --------------------------------------------------------------------------------------


def test_a_token_of_8192_characters_is_read_and_a_longer_one_is_not(with_key):
    def of(size: int) -> str:
        return forged({"alg": "HS256", "pad": "x" * size}, secret=SECRET)

    fits = next(token for n in range(9000, 0, -1) if len(token := of(n)) <= MAX_TOKEN)
    assert len(fits) >= MAX_TOKEN - 2
    assert isinstance(verdict(with_key(), fits), Identity)
    over = fits + "A" * (MAX_TOKEN + 1 - len(fits))
    assert "8193 characters; 8192 may be" in reason(verdict(with_key(), over))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token.replace(".", "..", 1),
        lambda token: token + ".",
        lambda token: token[:10] + "\u00e9" + token[10:],
        lambda token: token[:-5] + "*" + token[-5:],
        lambda token: token[:-5] + "+" + token[-4:],
        lambda token: token.replace("e", "\uff45", 1),
    ],
)
def test_what_a_lenient_reader_would_pass_over_is_refused(with_key, spoil):
    assert "the token is none" in reason(verdict(with_key(), spoil(signed("HS256"))))


def test_no_refusal_tells_the_token(with_key):
    verifier = with_key()
    token = signed("HS256", exp=1)
    for bad in (token, token[:-1], token + "x", signed("HS256", 1), "x" * 9000, "secret.of.mine"):
        said = reason(verdict(verifier, bad))
        assert bad not in said
        assert not any(piece in said for piece in bad.split(".") if len(piece) > 6)


def test_what_goes_wrong_unforeseen_refuses_and_is_said_without_the_token(with_key, monkeypatch):
    verifier = with_key()
    token = signed("HS256")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(f"no way with {token}")

    monkeypatch.setattr(jwt, "decode", fail)
    with capturedLogs() as events:
        assert reason(verdict(verifier, token)) == "the token can't be verified"
    [line] = [formatEvent(event) for event in events]
    assert "RuntimeError" in line
    assert token not in line


# -- fuzz ------------------------------------------------------------------------------------------

LETTERS = st.text("AQabcexyJhbGciOi_-09.", max_size=200)
FORGERIES = st.builds(
    forged,
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "zip", "enc"]),
        st.sampled_from([*ALGORITHMS, "none", "", 5, None, True, [], {}, "b64"]),
    ),
    st.dictionaries(st.sampled_from([*GOOD, "nbf"]), st.integers() | st.text() | st.none()),
    st.sampled_from([None, b"", bytes([1]) * 32]),
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.text(max_size=300), LETTERS, FORGERIES))
def test_any_text_is_refused_and_raises_nothing(with_set, text):
    verifier = with_set(*(jwk(algorithm, kid="a") for algorithm in ALGORITHMS))
    with capturedLogs() as events:
        assert reason(verdict(verifier, text))
    assert events == []


# -- signed here -----------------------------------------------------------------------------------


def test_a_token_signed_here_is_verified_here_and_can_be_looked_at(tmp_path, with_key):
    token = sign(GOOD, signing_key_in(key_file(tmp_path, "HS256")))
    assert isinstance(verdict(with_key(), token), Identity)
    assert unverified(token) == ({"alg": "HS256", "typ": "JWT"}, GOOD)
    assert unverified(forged({"alg": "none"}, {"a": 1})) == ({"alg": "none"}, {"a": 1})
    for bad in ("x", forged(5), forged({"alg": "HS256"}, b"x")):
        with pytest.raises(Refused):
            unverified(bad)
    assert json.dumps(GOOD)


@pytest.mark.parametrize("size", range(1, 7))
@pytest.mark.parametrize("last", BASE64URL)
def test_a_part_is_taken_only_as_base64url_writes_it(size, last):
    written = base64.urlsafe_b64encode(bytes(range(size))).rstrip(b"=").decode()
    for text in ("", written, written[:-1] + last, written + last, last):
        padded = text + "=" * (-len(text) % 4)
        try:
            again = base64.urlsafe_b64encode(base64.urlsafe_b64decode(padded))
        except ValueError:
            again = b""
        good = text and again.rstrip(b"=").decode() == text
        for token in (f"{text}.e30.e30", f"e30.{text}.e30", f"e30.e30.{text}"):
            if good:
                check_form(token)
            else:
                with pytest.raises(Refused, match="three parts in base64url"):
                    check_form(token)
