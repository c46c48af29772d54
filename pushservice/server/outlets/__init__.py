"""Outlets: several ways in which a connection's bytes leave, behind one interface.

Must not know: quotes, symbols, or who is subscribed. An outlet takes whole frames and tells the
outbox when it is full and when it has drained.
"""
