"""The one table of error codes and close codes, with what each means to a client.

Must not know: who raises them, how they are sent, or Twisted.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """Codes of ``error`` events; what follows but for the connection's end is in the protocol."""

    MALFORMED = 400
    NOT_AUTHENTICATED = 401
    AUTHENTICATION_FAILED = 402
    ALREADY_AUTHENTICATED = 403
    AUTHENTICATION_TOO_LATE = 404
    TOO_MANY_SYMBOLS = 405
    NOT_ENTITLED = 409
    BAD_SYMBOL = 411
    TOO_MANY_MESSAGES = 429
    INTERNAL = 500


class CloseCode(IntEnum):
    """WebSocket close codes the daemon sends (RFC 6455 section 7.4; 4000 and up are our own)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTARTING = 1012
    AUTHENTICATION_FAILED = 4001
    AUTHENTICATION_TOO_LATE = 4004
    TOO_SLOW = 4008
    FLOODING = 4029


#: The text a close frame carries beside its code: at most 123 bytes of UTF-8 (RFC 6455, 5.5.1).
CLOSE_REASONS: dict[CloseCode, str] = {
    CloseCode.NORMAL: "goodbye",
    CloseCode.GOING_AWAY: "server going away",
    CloseCode.PROTOCOL_ERROR: "WebSocket protocol error",
    CloseCode.UNSUPPORTED_DATA: "binary messages are not understood; send text",
    CloseCode.INVALID_PAYLOAD: "text that is not UTF-8",
    CloseCode.MESSAGE_TOO_BIG: "message over the limit named in the welcome",
    CloseCode.INTERNAL_ERROR: "internal error",
    CloseCode.RESTARTING: "server restarting",
    CloseCode.AUTHENTICATION_FAILED: "authentication failed",
    CloseCode.AUTHENTICATION_TOO_LATE: "authentication too late",
    CloseCode.TOO_SLOW: "too slow",
    CloseCode.FLOODING: "too many messages",
}

#: Codes after which a client reconnects, with backoff; 1006 is what a client sees when the link
#: broke without a close frame. After any other code it must change something first.
RECONNECT_AFTER: frozenset[int] = frozenset(
    {
        CloseCode.GOING_AWAY,
        1006,
        CloseCode.RESTARTING,
        CloseCode.TOO_SLOW,
        CloseCode.FLOODING,
    }
)
