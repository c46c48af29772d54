"""Files with keys: each serves one algorithm, and what can't serve is refused by name."""

from __future__ import annotations

import base64
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa
from redis_process import Authority
from token_makers import (
    PEM,
    SECRET,
    jwk,
    key_file,
    private_key,
    private_pem,
    public_pem,
    write_jwks,
)

from pushservice.auth.token_keys import ALGORITHMS, key_in, keys_in, make_key, signing_key_in


@pytest.fixture
def write(tmp_path):
    def write(data: bytes, name: str = "key"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


# -- one key ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_keys_kind_says_which_algorithm_it_serves(tmp_path, algorithm):
    path = key_file(tmp_path, algorithm)
    assert key_in(path).algorithm == algorithm
    assert key_in(path, ALGORITHMS).algorithm == algorithm
    others = [name for name in ALGORITHMS if name != algorithm]
    with pytest.raises(
        ValueError, match=rf"{path} holds .* serves {algorithm} and not {others[0]}"
    ):
        key_in(path, others)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_of_a_private_key_the_public_one_is_taken(write, algorithm):
    key = private_key(algorithm)
    found = key_in(write(private_pem(key)))
    assert found.material == key.public_key()


def test_a_certificates_key_is_taken(tmp_path):
    files = Authority(tmp_path).issue("issuer")
    assert key_in(files.cert).algorithm == "ES256"
    assert key_in(files.cert).material == key_in(files.key).material


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_secret_is_the_files_bytes_without_the_newline_at_its_end(write, end):
    assert key_in(write(SECRET + end)).material == SECRET


def test_only_one_newline_is_no_part_of_a_secret(write):
    assert key_in(write(SECRET + b"\n\n")).material == SECRET + b"\n"


def test_a_secret_is_not_shown(write):
    assert "0123" not in repr(key_in(write(SECRET)))


def der(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def ssh(key) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes; 32"),
        (SECRET[:31] + b"\n", "31 bytes; 32"),
        (b"x" * 1_048_577, "larger than 1048576 bytes"),
        (b'{"keys": [{"kty": "RSA", "n": "..."}]}', "JSON"),
        (der(private_key("RS256")), "not in PEM"),
        (der(private_key("EdDSA")), "not in PEM"),
        (base64.b64encode(der(private_key("RS256"))), "not in PEM"),
        (base64.encodebytes(der(private_key("EdDSA"))), "not in PEM"),
        (public_pem(private_key("ES256")).decode().encode("utf-16"), "not in PEM"),
        (b"---- BEGIN SSH2 PUBLIC KEY ----\n" + b"A" * 64, "not in PEM"),
        (ssh(private_key("RS256")), "not in PEM"),
        (ssh(private_key("ES256")), "not in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "can be read"),
        (b"note\n-----BEGIN NOTHING-----\n" + b"A" * 64, "can be read"),
        (public_pem(ec.generate_private_key(ec.SECP384R1())), "secp384r1; ES256 has P-256"),
        (public_pem(ed448.Ed448PrivateKey.generate()), "serves none of"),
        (public_pem(rsa.generate_private_key(65537, 1024)), "1024 bits; 2048"),
        (
            private_key("EdDSA").private_bytes(
                PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"pw"),
            ),
            "encrypted",
        ),
    ],
)
def test_what_is_no_good_key_is_refused_with_the_files_name_and_a_reason(write, data, why):
    path = write(data)
    with pytest.raises(ValueError, match=f"{path}.*{why}"):
        key_in(path)


def test_a_file_that_can_not_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing can't be read: No such file"):
        key_in(tmp_path / "nothing")


def test_an_algorithm_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'none' is no algorithm for tokens; use HS256"):
        key_in(key_file(tmp_path, "HS256"), ["none"])


# -- to sign with ----------------------------------------------------------------------------------


def test_a_private_key_or_a_secret_signs_and_a_public_key_does_not(write, tmp_path):
    key = private_key("EdDSA")
    found = signing_key_in(write(private_pem(key)), "EdDSA")
    assert found.algorithm == "EdDSA"
    assert private_pem(found.material) == private_pem(key)
    assert signing_key_in(write(SECRET)).material == SECRET
    with pytest.raises(ValueError, match="holds a public key"):
        signing_key_in(key_file(tmp_path, "EdDSA"))
    with pytest.raises(ValueError, match="serves EdDSA and not HS256"):
        signing_key_in(key_file(tmp_path, "EdDSA"), "HS256")


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA"])
def test_a_key_that_is_made_is_its_owners_alone_and_never_written_over(tmp_path, algorithm):
    path = tmp_path / "key"
    public = make_key(path, algorithm)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    assert signing_key_in(path).algorithm == algorithm
    if algorithm == "EdDSA":
        assert public is not None
        other = tmp_path / "public"
        other.write_text(public)
        assert key_in(other) == key_in(path)
    else:
        assert public is None
    with pytest.raises(ValueError, match="key is there already"):
        make_key(path, algorithm)
    assert path.read_bytes() == before
    assert make_key(tmp_path / "next", algorithm) is None or algorithm == "EdDSA"
    assert (tmp_path / "next").read_bytes() != before


def test_a_key_that_can_not_be_made_is_said_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="can't be made: No such file"):
        make_key(tmp_path / "no" / "key", "HS256")
    with pytest.raises(ValueError, match="not for 'RS256'"):
        make_key(tmp_path / "key", "RS256")


# -- sets of keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_jwk_is_the_key_it_was_made_of(tmp_path, algorithm):
    path = write_jwks(tmp_path / "jwks", jwk(algorithm, kid="k", alg=algorithm, use="sig"))
    [found] = keys_in(path)
    key = private_key(algorithm)
    assert (found.algorithm, found.kid) == (algorithm, "k")
    assert found.material == (key if algorithm == "HS256" else key.public_key())


def test_what_serves_another_purpose_is_left_out(tmp_path):
    path = write_jwks(
        tmp_path / "jwks",
        jwk("RS256", kid="enc", use="enc"),
        jwk("RS256", kid="512", alg="RS512"),
        jwk("RS256", kid="ops", key_ops=["encrypt"]),
        {"kty": "new", "kid": "new"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        jwk("ES256", kid="good", key_ops=["verify"]),
        jwk("EdDSA", kid="too"),
    )
    assert [key.kid for key in keys_in(path)] == ["good", "too"]
    assert [key.kid for key in keys_in(path, ["EdDSA"])] == ["too"]
    with pytest.raises(ValueError, match="holds no key for any of RS256, HS256"):
        keys_in(path, ["RS256", "HS256"])


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ([], "holds no key"),
        ([5], "key 1 is no object"),
        ([{"kty": "RSA", "n": "AA"}], "key 1 is broken"),
        ([{"kty": "RSA", "n": 5, "e": "AQAB"}], "key 1 is broken"),
        ([{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}], "key 1 is broken"),
        ([{"kty": "OKP", "crv": "Ed25519", "x": "*"}], "key 1 is broken"),
        ([{"kty": "oct", "k": "AAAA"}], "key 1 is broken"),
        ([{"kty": "oct"}], "key 1 is broken"),
        ([jwk("HS256", kid=5)], "key 1 has a kid that is no text"),
        ([jwk("HS256", kid="a"), jwk("HS256", 1, kid="a")], "two keys with one kid"),
    ],
)
def test_a_set_that_is_broken_is_refused(tmp_path, keys, why):
    path = write_jwks(tmp_path / "jwks", *keys)
    with pytest.raises(ValueError, match=f"{path}.*{why}"):
        keys_in(path)


@pytest.mark.parametrize("data", [b"", b"[]", b'{"keys": {}}', b"\xff", b"[" * 100_000, SECRET])
def test_a_file_that_is_no_set_is_refused(write, data):
    path = write(data)
    with pytest.raises(ValueError, match=f"{path} is no "):
        keys_in(path)
