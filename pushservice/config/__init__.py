"""Options declared once, the layers that set them, and the frozen Config they make.

Must not know: what the daemon does with an option.
"""
