"""Sockets and HTTP in, bytes out: connections, outlets, ports, proxies, connection limits.

Must not know: where quotes come from.
"""
