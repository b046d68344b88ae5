"""`lookalike completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from lookalike.cli.command import Command
from lookalike.errors import OptionError


@click.command(cls=Command, short_help="Print a script that completes commands in a shell.")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that makes the shell complete commands and options: bash, zsh or fish.

    \b
    Examples:
      lookalike completion bash >> ~/.bashrc
      lookalike completion zsh >> ~/.zshrc
      lookalike completion fish > ~/.config/fish/completions/lookalike.fish
    """  # noqa: D301
    found = get_completion_class(shell)
    if found is None:
        raise OptionError(f"there is no completion for {shell}; allowed are bash, zsh and fish.")
    root = ctx.find_root().command
    click.echo(found(root, {}, "lookalike", "_LOOKALIKE_COMPLETE").source())
