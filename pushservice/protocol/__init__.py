"""The wire protocol: symbols, commands, events, codecs, frames, close codes.

Must not know: connections, who is subscribed, Redis, or Twisted.
"""
