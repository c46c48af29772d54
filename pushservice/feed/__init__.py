"""Where quotes come from: Redis pub/sub, the snapshot hash, and the symbol of each message.

Must not know: clients, or how quotes reach them.
"""
