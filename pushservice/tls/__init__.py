"""TLS for the listening ports: certificates loaded, chosen by name, replaced while running.

Must not know: WebSockets, quotes, or option names.
"""
