"""Generate docs/reference/cli.md from the commands: `python docs/make_cli.py`. A test fails if it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lookalike.cli.app import COMMANDS, cli

WIDTH = 100
HEAD = """# The command line

Generated from the commands by `python docs/make_cli.py`; `lookalike COMMAND --help` prints the same.

- Results go to stdout, everything else to stderr. `--json` prints one JSON object and nothing else.
- A failure is one message, `error: …`, on stderr. `--debug` with any command adds the traceback.
- Long work shows a progress bar with rate and time left; in a pipe or a file it writes a line every 15 seconds.
- Ctrl-C or SIGTERM interrupts a command. Finished work is kept, and the message says how to resume.

| exit code | meaning |
|--:|:--|
| 0 | success |
| 1 | `check` found errors |
| 2 | bad input |
| 3 | internal error: please report it |
| 130 | interrupted |
"""


def reference() -> str:
    """Return the whole page."""
    parts = [HEAD, "## Commands\n", "| command | what it does |\n|:--|:--|"]
    root = click.Context(cli, info_name="lookalike", **{**cli.context_settings, "terminal_width": WIDTH})
    commands = {name: command for name in COMMANDS if (command := cli.get_command(root, name))}
    parts += [f"| [`{name}`](#{name}) | {command.get_short_help_str(WIDTH)} |" for name, command in commands.items()]
    for name, command in commands.items():
        context = click.Context(command, parent=root, info_name=name)
        parts.append(f"\n## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    target = Path(__file__).parent / "reference" / "cli.md"
    target.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
