"""Connections to Redis that are kept up: URLs, TLS, Sentinel, one-shot commands.

Must not know: what a connection is used for.
"""
