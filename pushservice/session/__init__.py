"""One client's conversation: its commands, subscriptions, rate limit and authentication.

Must not know: sockets, WebSocket frames, or how tokens are verified.
"""
