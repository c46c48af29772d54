"""Processes: the manager, its workers, and the daemon that is a single process.

Must not know: what clients say, or how quotes reach them.
"""
