"""Who a client is and what it may see: identities, tokens, tickets, revocations, origins.

Must not know: connections, or how quotes reach clients.
"""
