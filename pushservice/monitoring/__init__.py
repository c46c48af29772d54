"""What operators see: metrics, health, status, the admin port and its page, logs, systemd.

Must not know: how processes are started, or what clients may see.
"""
