"""`quotepush`, and `python -m pushservice`: what a shell starts.

Must not know: any command. All that takes time to import is imported where Ctrl-C is heard already.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run what was typed."""
    try:
        from pushservice.cli.main import main as command
    except KeyboardInterrupt:
        # As a command says it that has not begun.
        sys.exit("\nAborted!")
    command(prog_name="quotepush")


if __name__ == "__main__":
    main()
