"""Write docs/cli.md from the commands themselves: `python docs/make_cli.py`. A test fails when it has drifted."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lookalike.cli.app import cli

WIDTH = 100
HEAD = """# The command line

Made from the commands by `python docs/make_cli.py`; `lookalike COMMAND --help` prints the same.

- Results go to stdout, everything else to stderr: `--json` prints one JSON object and nothing else.
- A failure is one sentence, `error: …`, on stderr. `--debug` with any command adds the traceback.
- Long work shows its progress with rate and time left; into a file or a pipe it writes a line every 15 seconds.
- Ctrl-C, or SIGTERM, ends a command with what was finished kept; the sentence says how to go on.

| exit code | meaning |
|--:|:--|
| 0 | fine |
| 1 | `check` found errors |
| 2 | bad input or usage |
| 3 | something failed that should not: a defect in lookalike |
| 130 | interrupted |
"""


def reference() -> str:
    """Return the whole page."""
    parts = [HEAD, "## Commands\n", "| command | what it does |\n|:--|:--|"]
    parts += [
        f"| [`{name}`](#{name}) | {command.get_short_help_str(WIDTH)} |" for name, command in cli.commands.items()
    ]
    root = click.Context(cli, info_name="lookalike", **{**cli.context_settings, "terminal_width": WIDTH})
    for name, command in cli.commands.items():
        context = click.Context(command, parent=root, info_name=name)
        parts.append(f"\n## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    target = Path(__file__).with_name("cli.md")
    target.write_text(reference(), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
