"""`quotepush` at a shell: its commands and what they show on a terminal.

Must not know: how the daemon's processes are run.
"""
