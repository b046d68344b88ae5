"""The command line: `lookalike COMMAND`, or `python -m lookalike COMMAND`."""

from lookalike.cli.main import main

__all__ = ["main"]
