"""The command `lookalike`, or `python -m lookalike`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit; an interruption during the import is reported too."""
    try:
        from lookalike.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; run the same command again.\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
