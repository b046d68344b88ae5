"""The command `lookalike`, or `python -m lookalike`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit; an interruption while it is still being loaded gets a sentence as well."""
    try:
        from lookalike.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; start the same command again.\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
