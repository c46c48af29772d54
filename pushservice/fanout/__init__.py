"""The fan-out: symbol to audience to client, with conflation, pacing and delayed tiers.

Must not know: sockets, TLS, Redis, or what clients are allowed to see.
"""
