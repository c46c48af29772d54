"""The registry: who watches what, mirrored in Redis for other programs.

Must not know: sockets, commands, or the path of a quote.
"""
