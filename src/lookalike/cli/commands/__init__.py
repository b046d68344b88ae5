"""The commands; `lookalike.cli.app` lists which file has which."""
