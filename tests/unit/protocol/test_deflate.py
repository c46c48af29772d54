"""permessage-deflate: what is agreed on, what is inflated, and pieces that many clients share."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from random import Random

import pytest
from core_doubles import Client, FixedClock, inflated, make_hub, publish, unframe

from pushservice.auth.identity import Identity, Rights
from pushservice.fanout.announcements import Announcements
from pushservice.fanout.delayed import move
from pushservice.metrics import Counters
from pushservice.protocol import deflate
from pushservice.protocol.close_codes import CloseCode, ErrorCode
from pushservice.protocol.codecs import CODECS, JSON, JSON_SUBPROTOCOL, RAW, RAW_SUBPROTOCOL, Codec
from pushservice.protocol.deflate import Corrupt, Inflation, TooLong, agree, stored
from pushservice.protocol.events import error

EVENT = b'{"ev":"quote","s":"A","n":1,"t":1000,"d":{"last":1.50,"bid":1.50,"ask":1.50}}'
BOTH_FREE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def deflated(name: str = JSON_SUBPROTOCOL, counters: Counters | None = None) -> Codec:
    """A codec that compresses whatever it may."""
    return deflate.codecs(counters or Counters(), 1)[name]


def usual(name: str) -> Codec:
    """A codec that compresses what is worth it."""
    return deflate.codecs(Counters())[name]


# -- what is agreed on -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "response"),
    [
        ({}, BOTH_FREE),
        ({"client_max_window_bits": [True]}, f"{BOTH_FREE}; client_max_window_bits=12"),
        ({"client_max_window_bits": ["15"]}, f"{BOTH_FREE}; client_max_window_bits=12"),
        ({"client_max_window_bits": ["12"]}, BOTH_FREE),
        ({"client_max_window_bits": ["8"]}, BOTH_FREE),
        (
            {"client_max_window_bits": [True], "server_max_window_bits": ["13"]},
            f"{BOTH_FREE}; server_max_window_bits=12; client_max_window_bits=12",
        ),
        ({"client_no_context_takeover": [True]}, BOTH_FREE),
        ({"server_no_context_takeover": [True]}, BOTH_FREE),
        ({"server_max_window_bits": ["12"]}, f"{BOTH_FREE}; server_max_window_bits=12"),
        ({"server_max_window_bits": ["15"]}, f"{BOTH_FREE}; server_max_window_bits=12"),
        ({"server_max_window_bits": ["11"]}, None),
        ({"server_max_window_bits": ["8"]}, None),
        ({"server_max_window_bits": ["16"]}, None),
        ({"server_max_window_bits": ["012"]}, None),
        ({"server_max_window_bits": [True]}, None),
        ({"server_max_window_bits": ["12", "12"]}, None),
        ({"client_max_window_bits": ["7"]}, None),
        ({"client_no_context_takeover": ["1"]}, None),
        ({"server_no_context_takeover": ["1"]}, None),
        ({"unheard_of": [True]}, None),
    ],
)
def test_an_offer_is_accepted_where_it_is_legal_and_asks_for_what_we_do(parameters, response):
    agreed = agree([("permessage-deflate", parameters)])
    assert (None if agreed is None else agreed.response) == response
    if agreed is not None:
        # Who says nothing of it may send what takes the largest window there is.
        assert agreed.client_bits == (12 if "client_max_window_bits" in parameters else 15)


def test_the_first_offer_that_can_be_accepted_is():
    offers = [
        ("permessage-bzip2", {}),
        ("permessage-deflate", {"server_max_window_bits": ["9"]}),
        ("permessage-deflate", {"server_max_window_bits": ["13"]}),
        ("permessage-deflate", {}),
    ]
    agreed = agree(offers)
    assert agreed is not None
    assert agreed.response == f"{BOTH_FREE}; server_max_window_bits=12"
    assert agree(offers[:2]) is None
    assert agree([]) is None


# -- what clients send -------------------------------------------------------------------------


def compressed(text: bytes, *, final: bool = False) -> bytes:
    """A client's message; `final` ends it as a whole stream ends (RFC 7692, section 7.2.3.4)."""
    stream = zlib.compressobj(wbits=-15)
    if final:
        return stream.compress(text) + stream.flush() + b"\x00"
    return (stream.compress(text) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("text", [b"", b"x", b"hello" * 100])
def test_a_message_is_inflated_in_whatever_fragments_it_comes(text, final):
    data = compressed(text, final=final)
    for size in (1, 2, 7, len(data)):
        message = Inflation()
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        assert b"".join(message.feed(part, 1000) for part in parts) == text
        message.end()


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_a_message_is_inflated_that_refers_as_far_back_as_was_agreed_on_and_no_farther(bits):
    far = 1 << bits
    text = Random(bits).randbytes(far - 300)
    stream = zlib.compressobj(wbits=-15)
    data = stream.compress(text + text[:200]) + stream.flush(zlib.Z_SYNC_FLUSH)

    def inflated_with(window_bits: int) -> bytes:
        # In fragments: within one all that it holds can be referred to.
        message = Inflation(window_bits)
        parts = [message.feed(bytes([byte]), 1 << 16) for byte in data[:-4]]
        message.end()
        return b"".join(parts)

    assert inflated_with(bits) == text + text[:200]
    if bits > 9:
        with pytest.raises(Corrupt):
            inflated_with(bits - 1)


def test_a_message_may_be_as_long_as_the_limit_and_not_a_byte_longer():
    data = compressed(b"x" * 1000)
    message = Inflation()
    assert message.feed(data, 1000) == b"x" * 1000
    message.end()
    with pytest.raises(TooLong):
        Inflation().feed(data, 999)
    for no_room in (0, -5):
        with pytest.raises(TooLong):
            Inflation().feed(data, no_room)


def test_of_a_bomb_no_more_is_inflated_than_shows_that_it_is_one():
    data = compressed(bytes(10_000_000))
    message = Inflation()
    tracemalloc.start()
    try:
        with pytest.raises(TooLong):
            message.feed(data, 16_384)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 200_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x07",  # a block type that there is not
        compressed(b"hello" * 50)[:-3],
        compressed(b"hello", final=True) + b"more",
        compressed(b"hello", final=True)[:-1] + b"\x01",
    ],
)
def test_what_deflate_does_not_make_is_refused(data):
    def read() -> None:
        message = Inflation()
        message.feed(data, 1000)
        message.end()

    with pytest.raises(Corrupt):
        read()


def test_what_follows_a_final_block_is_not_kept():
    message = Inflation()
    message.feed(compressed(b"hello", final=True), 1000)
    with pytest.raises(Corrupt):
        message.feed(b"x" * 100, 1000)


# -- pieces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_534, 65_535, 65_536, 131_070, 131_071])
def test_a_stored_piece_is_the_event_itself(size):
    event = b"x" * size
    piece = stored(event)
    assert inflated(piece) == event
    assert len(piece) == size + 1 + 5 * max(1, -(-size // 65_535))


def test_pieces_in_any_order_make_the_message_that_the_plain_codec_makes():
    codec = deflated()
    quotes = [(b'"A"', n, 1000, b'{"last":1.5,"bid":1.5,"ask":1.5,"n":%d}' % n) for n in range(3)]
    shared = [codec.quoting(1)(*quote) for quote in quotes]
    alone = [codec.event(JSON.quote(*quote)) for quote in quotes]
    plain = [JSON.quote(*quote) for quote in quotes]
    for order in ([0], [0, 1, 2], [2, 0, 1, 1]):
        for other in (shared, alone):
            pieces = [shared[at] for at in order] + [other[at] for at in order]
            [(first, payload)] = unframe(codec.frames(pieces))
            assert first == 0xC1
            text = JSON.frames([plain[at] for at in order] * 2)
            assert [(0x81, inflated(payload))] == unframe(text)


def test_what_is_not_compressed_shares_a_block_with_what_stands_around_it():
    codec = deflated()
    small, long = codec.quoting(1)(b'"A"', 1, 1, EVENT), b'"%b"' % (b"x" * 40_000)
    alone = [codec.event(event) for event in (b"1", b"2", b"3")]
    [(_, payload)] = unframe(codec.frames([*alone, small, *alone]))
    assert payload == b"\x00\x07\x00\xf8\xff[1,2,3,%b\x07\x00\xf8\xff,1,2,3]\x00" % small
    events = [long, long, long]
    [(_, payload)] = unframe(codec.frames([small, *map(codec.event, events)]))
    text = inflated(payload)
    assert text.endswith(b",%b]" % b",".join(events))
    assert len(payload) == len(small) + len(text) - len(inflated(small)) + 1 + 4 + 5 + 5


def test_a_turn_of_which_nothing_is_compressed_is_the_plain_codec_s_frame():
    codec = deflated()
    for turn in ([], [b"1"], [EVENT, b'{"ev":"gap","s":"A"}']):
        assert codec.frames(map(codec.event, turn)) == JSON.frames(turn)


def test_an_event_that_is_too_large_for_one_stored_block_is_sent_all_the_same():
    codec = deflated()
    event = b'"%b"' % (b"x" * 100_000)
    [(first, payload)] = unframe(codec.frames([codec.event(event)]))
    assert (first, inflated(payload)) == (0xC1, b"[%b]" % event)


def test_what_does_not_get_smaller_is_stored():
    noise = Random(1).randbytes(2_000)
    codec, counters = deflated(), Counters()
    piece = codec.quoting(1)(b'"A"', 1, 1, noise)
    assert piece == stored(JSON.quote(b'"A"', 1, 1, noise))
    raw = deflated(RAW_SUBPROTOCOL, counters)
    assert raw.quoting(1)(b"", 1, 1, noise) == RAW.quote(b"", 1, 1, noise)
    assert counters.deflated_bytes_in == counters.deflated_bytes_out == len(noise) + 4


def test_few_clients_share_nothing_that_is_compressed():
    for codec in map(usual, CODECS):
        few = codec.quoting(7)(b'"A"', 1, 1, EVENT)
        assert few == codec.quote(b'"A"', 1, 1, EVENT)
        assert len(codec.quoting(8)(b'"A"', 1, 1, EVENT)) < len(few)


def test_of_a_long_turn_the_more_is_compressed_the_more_clients_share_it():
    for codec in map(usual, CODECS):
        plain = codec.quote(b'"A"', 1, 1, EVENT)

        def compressed(clients: int, t: int, codec=codec, plain=plain) -> int:
            quote = codec.quoting(clients)
            return sum(len(quote(b'"A"', 1, t, EVENT)) < len(plain) for _ in range(50))

        assert [compressed(clients, clients) for clients in (7, 8, 17, 99, 100)] == [
            0,
            1,
            2,
            12,
            50,
        ]
        assert compressed(16, 99) == 0, "of a turn in which more were compressed for others"
        assert compressed(16, 98) == 0, "or of an older one, as those of paced clients are"
        assert compressed(16, 101) == 2


def test_a_turn_of_a_delay_or_of_a_clock_that_was_set_back_is_a_turn_of_its_own():
    quote = usual(JSON_SUBPROTOCOL).quoting(8)
    plain = len(JSON.quote(b'"A"', 1, 1, EVENT))
    times = [900_000, 900_000, 840_000, 839_999, 839_999, 840_000]
    shorter = [len(quote(b'"A"', 1, t, EVENT)) < plain for t in times]
    assert shorter == [True, False, False, True, False, True]


def test_a_raw_payload_is_one_message_that_is_compressed_or_is_not():
    codec = deflated(RAW_SUBPROTOCOL)
    pieces = [codec.quoting(1)(b"", 1, 1, body) for body in (EVENT, b"1", EVENT)]
    (one, first), (two, second), (three, third) = unframe(codec.frames(pieces))
    assert (one, two, three) == (0xC1, 0x81, 0xC1)
    assert (inflated(first), second, inflated(third)) == (EVENT, b"1", EVENT)


def test_an_event_is_compressed_once_for_all_and_counted_once():
    counters = Counters()
    hub = make_hub(counters=counters)
    codecs = deflate.codecs(counters, 2)
    clients = [Client(hub, f"t-{n}", codecs[JSON_SUBPROTOCOL]) for n in range(3)]
    plain = Client(hub, "t-plain")
    for client in (*clients, plain):
        client.say({"op": "subscribe", "symbols": ["A"]})
        client.texts()
    payload = json.dumps({"a": ["quote"] * 50}).encode()
    publish(hub, ("A", payload), ("A", payload))
    [text] = plain.texts()
    assert len({client.outlet.written[0] for client in clients}) == 1
    assert all(client.texts() == [text] for client in clients)
    assert counters.deflated_events == 2
    assert counters.deflated_bytes_in == len(text) - 3
    assert 0 < counters.deflated_bytes_out < counters.deflated_bytes_in / 4


def test_paced_clients_share_what_was_compressed():
    counters, clock = Counters(), FixedClock()
    hub = make_hub(clock, counters)
    codec = deflate.codecs(counters, 2)[JSON_SUBPROTOCOL]
    clients = [Client(hub, f"t-{n}", codec) for n in range(3)]
    for client in clients:
        client.say({"op": "subscribe", "symbols": ["A"], "interval": 20})
        client.texts()
    publish(hub, ("A", EVENT))
    clock.pass_time(0.02)
    assert len({client.outlet.written[0] for client in clients}) == 1
    assert [event["n"] for client in clients for event in client.events()] == [1, 1, 1]
    assert counters.deflated_events == 1


def test_no_piece_refers_to_another_even_after_many():
    codec = deflated()
    quote = codec.quoting(1)
    first = quote(b'"A"', 1, 1, EVENT)
    for n in range(200):
        quote(b'"A"', n, 1, EVENT)
    assert quote(b'"A"', 1, 1, EVENT) == first


def test_what_is_compressed_can_be_read_with_the_window_that_was_agreed_on():
    # What repeats is further away than a window of 12 bits reaches, and closer than one of 15.
    far = bytes(Random(1).choices(range(97, 123), k=5_000))
    body = b'"%b%b"' % (far, far)
    piece = deflated().quoting(1)(b'"A"', 1, 1, body)
    reader, text = zlib.decompressobj(-12), b""
    # In small steps: what is in one output buffer could be referred to from further away.
    text = reader.decompress(piece, 100)
    while reader.unconsumed_tail:
        text += reader.decompress(reader.unconsumed_tail, 100)
    assert text + reader.flush() == JSON.quote(b'"A"', 1, 1, body)
    assert len(piece) < len(body)


# -- every kind of event -----------------------------------------------------------------------


class AllowEverybody:
    """What a session asks of access control: accepts everybody."""

    def __init__(self, hub: object) -> None:
        self.hub = hub

    def hub_for(self, delay: float) -> object:
        return self.hub

    def connected(self, session: object) -> None: ...
    def left(self, session: object) -> None: ...
    def authenticated(self, session: object, identity: Identity) -> None:
        session.identity = identity

    def verify(self, token: str, done: object) -> None:
        done(Identity(user=token, rights=Rights(("*",)), expires_at=2e9))


def all_that_is_said(codec: Codec) -> tuple[list[bytes], set[int]]:
    """What a client gets of every kind of event, as texts, and the first bytes of its frames."""
    clock = FixedClock(1_000.0)
    hub = make_hub(clock)
    announcements = Announcements(hub, lambda share: None)
    announcements.feed_changed(True)
    client, first_bytes, texts = Client(hub, codec=codec), set(), []
    client.session._access_control = AllowEverybody(hub)

    def read() -> None:
        first_bytes.update(data[0] for data in client.outlet.written)
        texts.extend(client.texts())

    def disturb() -> None:
        publish(hub, ("A", EVENT), ("B", b"[]"), ("C", EVENT), ("A", EVENT))
        announcements.feed_changed(False)
        announcements.feed_changed(True)
        announcements.gap_of(hub.topic("A"))
        for _ in range(hub.groups):
            announcements.beat()
        clock.pass_time(100)
        announcements.look_for_stale(10_000, 50_000)
        publish(hub, ("A", EVENT))
        clock.pass_time(0.1)
        announcements.look_for_stale(10_000, 50_000)

    publish(hub, ("A", EVENT))
    client.say({"op": "list", "id": 1})
    client.say({"op": "auth", "id": 2, "token": "me"})
    client.session.token_expiring(1000)
    client.say({"op": "subscribe", "id": 3, "symbols": ["A", "B", "no good"]})
    client.say({"op": "subscribe", "id": 4, "symbols": ["C"], "mode": "raw"})
    client.say({"op": "subscribe", "id": 5, "symbols": ["D"], "interval": 20})
    client.say({"op": "list", "id": 6})
    client.say({"op": "ping", "id": 7})
    client.say({"op": "nothing", "id": 8})
    disturb()
    read()
    client.outbox.blocked()
    client.say({"op": "unsubscribe", "id": 9, "symbols": ["B"]})
    disturb()
    client.outbox.drained()
    read()
    client.session.failed("k7f3.1")
    client.session.token_ended("the token was revoked")
    announcements.dismiss(CloseCode.RESTARTING, lambda: 3500)
    read()
    return texts, first_bytes


def test_every_kind_of_event_says_the_same_compressed_as_plain():
    said, first_bytes = all_that_is_said(deflated())
    plain, plain_bytes = all_that_is_said(JSON)
    assert said == plain
    assert (first_bytes, plain_bytes) == ({0x81, 0xC1}, {0x81})
    kinds = {event["ev"] for text in said for event in json.loads(text)}
    assert kinds == {
        *("welcome", "authenticated", "expiring", "subscribed", "unsubscribed", "list", "pong"),
        *("snapshot", "quote", "heartbeat", "feed", "gap", "stale", "fresh", "error", "bye"),
    }


def test_every_raw_message_is_the_same_compressed_as_plain():
    said, first_bytes = all_that_is_said(deflated(RAW_SUBPROTOCOL))
    plain, _ = all_that_is_said(RAW)
    assert said == plain
    assert first_bytes == {0x81, 0xC1}


def test_a_client_that_moves_to_a_delay_is_told_the_same_compressed_as_plain():
    told = []
    for codec in (deflated(), JSON):
        hub = make_hub()
        late = hub.tier(None)
        client = Client(hub, codec=codec)
        client.say({"op": "subscribe", "symbols": ["A", "B"]})
        publish(hub, ("A", EVENT))
        publish(late, ("A", EVENT))
        client.texts()
        assert move(client.outbox, hub, late)
        told.append(client.texts())
    assert told[0] == told[1]
    assert [event["ev"] for event in json.loads(told[1][0])] == ["gap", "gap"]


def test_an_error_is_a_message_that_is_not_compressed():
    event = error(b"7", ErrorCode.BAD_SYMBOL, "why")
    for name, codec in CODECS.items():
        compressing = deflated(name)
        assert compressing.frames([compressing.failure(event)]) == codec.frames(
            [codec.failure(event)]
        )
