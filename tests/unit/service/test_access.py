"""Who comes in, as a configuration has it: authenticator, origins, revocations."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from core_doubles import FixedClock
from token_makers import NOW, key_file, signed

from pushservice.auth.identity import Identity, Refused
from pushservice.auth.origins import parsed
from pushservice.config.config import Config
from pushservice.service.access import Access, token_authenticator

HUB: Any = object()


def access(**fields: Any) -> Access:
    return Access(FixedClock(NOW), Config(**fields), lambda delay: None if delay else HUB)


def outcome(of: Access, token: str) -> Identity | Refused:
    found: list[Identity | Refused] = []
    assert of.access_control is not None
    of.access_control.verify(token, found.append)
    assert len(found) == 1
    return found[0]


def guarded(of: Access) -> Any:
    """What is set on the connections."""
    connections = SimpleNamespace()
    of.guard(connections)  # type: ignore[arg-type]  # it only sets attributes
    return connections


@pytest.mark.parametrize("auth", [None, "none"])
def test_where_nobody_is_asked_there_is_no_access_control(auth):
    connections = guarded(access(auth=auth))
    assert connections.access_control is None
    assert not connections.by_certificate
    assert not connections.token_in_url


def test_tokens_are_verified_by_the_key_that_is_named(tmp_path):
    made = access(auth="token", token_key=key_file(tmp_path, "ES256"), token_audience="quotes")
    identity = outcome(made, signed("ES256"))
    assert isinstance(identity, Identity)
    assert identity.user == "ann"
    assert isinstance(outcome(made, signed("ES256", 1)), Refused)
    assert isinstance(outcome(made, signed("ES256", aud="other")), Refused)
    assert guarded(made).access_control is made.access_control


def test_a_delay_that_no_hub_has_is_refused(tmp_path):
    made = access(auth="token", token_key=key_file(tmp_path, "ES256"))
    assert "not offered here" in str(outcome(made, signed("ES256", aud=None, delay=60)))


def test_a_key_that_can_not_be_used_is_refused_by_its_name(tmp_path):
    with pytest.raises(ValueError, match="nothing-there"):
        access(auth="token", token_key=tmp_path / "nothing-there")
    with pytest.raises(ValueError, match="HS256-0"):
        token_authenticator(
            FixedClock(NOW),
            Config(
                auth="token",
                token_key=key_file(tmp_path, "HS256"),
                token_algorithms=("ES256",),
            ),
        )


def test_tickets_can_be_looked_at_once_there_is_a_redis():
    refused = outcome(access(auth="redis"), "some-ticket-that-is-long-enough")
    assert isinstance(refused, Refused)
    assert refused.temporary


def test_where_certificates_say_who_it_is_no_token_does():
    made = access(client_ca=Path("ca.pem"))
    assert guarded(made).by_certificate
    refused = outcome(made, "anything")
    assert isinstance(refused, Refused)
    assert not refused.temporary
    assert made.access_control is not None
    assert made.access_control.check(Identity("CN=ann")) == Identity("CN=ann")


@pytest.mark.parametrize("auth", ["token", "redis"])
def test_where_tokens_are_asked_for_a_certificate_stands_in_for_none(tmp_path, auth):
    key = key_file(tmp_path, "ES256") if auth == "token" else None
    assert not guarded(access(auth=auth, token_key=key, client_ca=Path("ca.pem"))).by_certificate


def test_origins_and_the_urls_token_are_as_configured():
    connections = guarded(access(origins=(parsed("https://a.example"),), token_in_url=True))
    assert connections.origins.fault("https://a.example", "b.example") is None
    assert connections.origins.fault("https://b.example", "b.example") is not None
    assert connections.token_in_url
    assert guarded(access(require_origin=True)).origins.fault(None, "a") is not None


async def nothing_to_stop() -> None:
    await access().stop()
    await access(auth="redis").stop()


def test_what_was_not_started_can_be_stopped():
    with pytest.raises(StopIteration):
        nothing_to_stop().send(None)


class Client:
    def __init__(self, identity: Identity, out: list[str]) -> None:
        self.identity, self.token_ended = identity, out.append


@pytest.mark.parametrize(("kind", "name"), [("user", "ann"), ("token", "7")])
def test_a_revocation_ends_access_and_refuses_from_then_on(tmp_path, kind, name):
    made = access(auth="token", token_key=key_file(tmp_path, "ES256"))
    identity = outcome(made, signed("ES256", aud=None))
    out: list[str] = []
    client: Any = Client(identity, out)
    assert made.access_control is not None
    made.access_control.connected(client)
    # As the feed of revocations does.
    made._revocations.revoke(kind, name)
    made._revoked(kind, name, just_now=False)
    assert out == ["the token was revoked"]
    assert isinstance(outcome(made, signed("ES256", aud=None)), Refused)
    made.access_control.left(client)


def test_a_revocation_just_now_ends_access_whenever_the_token_was_issued(tmp_path):
    made = access(auth="token", token_key=key_file(tmp_path, "ES256"))
    out: list[str] = []
    # From an issuer whose clock is ahead.
    client: Any = Client(outcome(made, signed("ES256", aud=None, iat=NOW + 2)), out)
    assert made.access_control is not None
    made.access_control.connected(client)
    made._revocations.revoke("user", "ann")
    made._revoked("user", "ann", just_now=True)
    assert out == ["the token was revoked"]
    made.access_control.left(client)
