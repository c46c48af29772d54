"""Makes ``twistd quotepush`` known to Twisted.

Holds the ServiceMaker alone: twistd imports every plugin file on every start, so nothing here may
import the package or the reactor.
"""

from twisted.application.service import ServiceMaker

quotepush = ServiceMaker(
    "quotepush",
    "pushservice.tap",
    "Push live market quotes from Redis to TLS WebSocket clients.",
    "quotepush",
)
