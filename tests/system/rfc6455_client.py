"""The client of the conformance suite: plays a case on a connection and says what came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from rfc6455_link import Link
from rfc6455_records import (
    AT_ONCE,
    TEXT,
    Case,
    Fragments,
    Maybe,
    Text,
    Wait,
    Way,
    close_frame,
    frame,
    in_octets,
    matches,
)
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Pong,
    Request,
    TextMessage,
)

#: In this subprotocol the daemon sends nothing that it was not asked for.
SUBPROTOCOL: Final = "quotepush.raw"


class Play:
    """One case, played in one way on one connection."""

    def __init__(self, case: Case, way: Way, link: Link) -> None:
        self.case = case
        self.way = way
        #: what came before the server's close frame
        self.came: list[Event] = []
        #: the server's close frame, if one came
        self.close: CloseConnection | None = None
        #: what was no WebSocket
        self.fault = ""
        self._link = link
        self._websocket = WSConnection(ConnectionType.CLIENT)
        self._parts: list[str] | list[bytes] = []
        self._tail = b""
        self._awaited: Counter[type[Event]] = Counter()
        self._run()

    @property
    def end(self) -> str:
        """How the connection ended."""
        return self._link.end

    # -- what is sent ----------------------------------------------------------------------------

    def _run(self) -> None:
        case = self.case
        self._shake_hands()
        for piece in self._writes():
            self._link.send(piece)
        if case.closed_by is None:
            self._read_until(lambda: self.close is not None or matches(self.came, case.came))
            self._link.send(close_frame())
        self._read_until(lambda: self.close is not None)
        if case.unfinished:
            self._link.hang_up()
        elif self.close is not None and case.closed_by == "server":
            self._link.send(close_frame(self.close.code))
        self._read_until(lambda: False)
        if self.close is not None and not self._tail.endswith(_as_sent(self.close)):
            self.fault = self.fault or "something came after the close frame"

    def _shake_hands(self) -> None:
        offers = self.case.offers.encode()
        headers = [(b"Sec-WebSocket-Extensions", offers)] if offers else []
        request = self._websocket.send(
            Request("localhost", "/", subprotocols=[SUBPROTOCOL], extra_headers=headers)
        )
        self._link.send(request)
        self._read_until(lambda: self._websocket.state is not ConnectionState.CONNECTING)
        assert self._websocket.state is not ConnectionState.CONNECTING, "no opening handshake"

    def _writes(self) -> Iterator[bytes]:
        """The writes one after the other; waits where the case does."""
        frames: list[bytes] = []
        for step in self.case.steps:
            if isinstance(step, Wait):
                yield from self._cut(frames)
                frames.clear()
                self._await_one_more(step.kind)
            elif isinstance(step, Fragments):
                frames += map(self._websocket.send, step.events())
            elif isinstance(step, Text):
                whole = not self.way.fragments
                frames += [frame(TEXT, step.octets)] if whole else in_octets(step.octets)
            else:
                frames.append(step if isinstance(step, bytes) else self._websocket.send(step))
        yield from self._cut(frames)

    def _cut(self, frames: list[bytes]) -> Iterator[bytes]:
        size = self.way.size
        if self.way is AT_ONCE or size:
            whole = b"".join(frames)
            size = size or max(len(whole), 1)
            yield from (whole[at : at + size] for at in range(0, len(whole), size))
        else:
            yield from frames

    # -- what comes ------------------------------------------------------------------------------

    def _await_one_more(self, kind: type[Event]) -> None:
        self._awaited[kind] += 1
        self._read_until(
            lambda: (
                self.close is not None
                or sum(isinstance(event, kind) for event in self.came) >= self._awaited[kind]
            )
        )

    def _read_until(self, done: Callable[[], bool]) -> None:
        while not done():
            data = self._link.receive()
            if not data:
                return
            self._tail = (self._tail + data)[-256:]
            if self.close is None and not self.fault:
                self._websocket.receive_data(data)
                for event in self._websocket.events():
                    self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Message):
            self._parts.append(event.data)
            if event.message_finished:
                data = type(event.data)().join(self._parts)
                self._parts = []
                kind = TextMessage if isinstance(data, str) else BytesMessage
                self.came.append(kind(data=data))
        elif isinstance(event, Pong):
            self.came.append(Pong(payload=bytes(event.payload)))
        elif isinstance(event, CloseConnection):
            # wsproto puts its complaints about the server into the same words.
            open_states = (ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING)
            if self._websocket.state in open_states:
                self.fault = f"no valid frame: {event.reason}"
            else:
                code = None if event.code == 1005 else int(event.code)
                self.close = CloseConnection(code=code, reason=event.reason)
        elif isinstance(event, AcceptConnection):
            if event.subprotocol != SUBPROTOCOL or event.extensions:
                self.fault = f"a handshake that was not asked for: {event}"
        else:
            self.came.append(event)


def _as_sent(close: CloseConnection) -> bytes:
    payload = b"" if close.code is None else close.code.to_bytes(2) + (close.reason or "").encode()
    return bytes([0x88, len(payload)]) + payload


# -- the verdict ---------------------------------------------------------------------------------


def faults(play: Play) -> list[str]:
    """What was not as the case demands; nothing if all was."""
    case, close = play.case, play.close
    found = []
    if play.fault:
        found.append(play.fault)
    if not matches(play.came, case.came):
        found.append(f"expected {_listed(case.came)},\n  came {_listed(play.came)}")
    if close is None:
        found.append(f"expected a close frame with {_codes(case.close)}, came none")
    elif close.code not in case.close:
        found.append(
            f"expected a close frame with {_codes(case.close)}, came {close.code} {close.reason!r}"
        )
    still_open = "open" in play.end or not play.end
    if still_open or (play.end != "in order" and not case.abrupt):
        found.append(f"expected the server to end the connection in order, came: {play.end}")
    return found


def _codes(codes: Iterable[int | None]) -> str:
    return " or ".join(sorted("no code" if code is None else str(code) for code in codes))


def _listed(events: Iterable[Event | Maybe]) -> str:
    return f"[{', '.join(map(_shown, events))}]"


def _shown(event: Event | Maybe) -> str:
    if isinstance(event, Maybe):
        return f"perhaps {_shown(event.event)}"
    if isinstance(event, Message):
        data = event.data
        short = repr(data) if len(data) <= 80 else f"{data[:60]!r}... of {len(data)}"
        return f"{'text' if isinstance(data, str) else 'binary'} {short}"
    if isinstance(event, Pong):
        return f"pong {event.payload!r}"
    return repr(event)
