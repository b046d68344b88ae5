"""The command line: `lookalike COMMAND`, or `python -m lookalike COMMAND`."""
