"""The daemon of one process, composed: its sources, access rules, start, drain and stop.

Must not know: command lines, signals, or other processes.
"""
