"""quotepush: live market quotes from Redis pub/sub to TLS WebSocket clients.

Holds the version, the only place it is written, and imports nothing: setup.py reads it from here.
"""

__version__ = "0.1.0"
