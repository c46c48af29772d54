"""The publishing side: the simulated market, recordings, and their playback.

Must not know: subscribers, or how the daemon delivers quotes.
"""
