"""The command group: a table of commands, and what they share in errors and interruptions."""

from __future__ import annotations

import importlib
from typing import Any

import click
from click.shell_completion import get_completion_class

from lookalike._system import keep_freed_memory
from lookalike.errors import LookalikeError

PROGRAM = "lookalike"
COMPLETE_VARIABLE = "_LOOKALIKE_COMPLETE"
SUCCESS, BAD_INPUT, INTERNAL_ERROR, INTERRUPTED = 0, 2, 3, 130

# In the order of a job. The module of a command is imported when the command is used.
COMMANDS = {
    "demo": "commands.benchmark",
    "check": "commands.inspect",
    "train": "commands.train",
    "benchmark": "commands.benchmark",
    "refit": "commands.train",
    "embed": "commands.retrieve",
    "index": "commands.retrieve",
    "add": "commands.change",
    "remove": "commands.change",
    "update": "commands.change",
    "sync": "commands.change",
    "search": "commands.retrieve",
    "serve": "commands.serve",
    "token": "commands.serve",
    "evaluate": "commands.retrieve",
    "submit": "commands.retrieve",
    "post": "commands.retrieve",
    "compete": "commands.compete",
    "export": "commands.train",
    "backbones": "commands.inspect",
    "recipes": "commands.inspect",
    "completion": "app",
}

RUN_AGAIN = "interrupted; run the same command again."
RESUMES = "interrupted; run the same command again to resume."
POSTS_ONCE = "interrupted; run the same command again: it posts only what was not sent."
RESUMES_WITH_FLAG = "interrupted; run the same command again with --resume to continue."
# A command has them of its own: click keeps the first help option that it makes, with or without a parent.
CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class CommandError(Exception):
    """A command failed; the text is one sentence for the user, with flags where the library names arguments."""

    def __init__(self, sentence: str, exit_code: int = BAD_INPUT) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class Command(click.Command):
    """A command of Lookalike; `interrupted` is the sentence after a signal, `trains` whether it trains networks."""

    def __init__(self, *args: Any, interrupted: str = RUN_AGAIN, trains: bool = False, **options: Any) -> None:
        settings = CONTEXT_SETTINGS | options.pop("context_settings", {})
        super().__init__(*args, context_settings=settings, **options)  # type: ignore[misc]
        self.interrupted = interrupted
        self.trains = trains

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; `CommandError` for a value that the library refuses."""
        try:
            return super().parse_args(ctx, args)
        except LookalikeError as error:
            raise CommandError(with_flags(str(error), self)) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; `CommandError` if it fails as expected or is interrupted."""
        if self.trains:
            keep_freed_memory()
        try:
            return super().invoke(ctx)
        except LookalikeError as error:
            raise CommandError(with_flags(str(error), self)) from error
        except (KeyboardInterrupt, click.Abort) as error:
            raise CommandError(self.interrupted, INTERRUPTED) from error


def with_flags(message: str, command: click.Command) -> str:
    """Replace the names of a command's options in backticks by their flags: `` `top_k` `` by `-k`."""
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            message = message.replace(f"`{parameter.name}`", max(parameter.opts, key=len))
    return message


class LazyGroup(click.Group):
    """Lists the commands in the order of the table and imports each when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; `NoSuchCommand`, with similar names, if there is none."""
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"lookalike.cli.{COMMANDS[cmd_name]}")
            command: click.Command = getattr(module, cmd_name)
            return command
        if ctx.resilient_parsing or cmd_name.startswith("-"):
            return None
        raise click.exceptions.NoSuchCommand(cmd_name, possibilities=COMMANDS, ctx=ctx)


@click.group(
    cls=LazyGroup,
    context_settings=CONTEXT_SETTINGS,
    epilog="Results go to stdout, everything else to stderr. Exit codes: 0 success, 1 'check' found errors, 2 bad "
    "input, 3 internal error, 130 interrupted. Add --debug to any command for a traceback.",
)
@click.version_option(package_name="lookalike")
def cli() -> None:
    """Find the images that look like a given one.

    \b
    Start from a folder with labelled training images, query images and a gallery:
      lookalike check DATA                            find problems in the data
      lookalike benchmark DATA --backbone resnet50 --backbone vit_b_16 --out runs/first
                                                      measure the models and pick one
      lookalike index IMAGES --model runs/first/best --out my.index
      lookalike search my.index query.jpg             find the images that look like query.jpg

    'lookalike demo' runs the whole job on built-in images.
    """  # noqa: D301


@click.command(cls=Command, short_help="Print a script for shell completion.")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes a shell complete commands and options: bash, zsh or fish.

    \b
    Examples:
      lookalike completion bash >> ~/.bashrc
      lookalike completion zsh >> ~/.zshrc
      lookalike completion fish > ~/.config/fish/completions/lookalike.fish
    """  # noqa: D301
    completion_class = get_completion_class(shell)
    assert completion_class is not None  # click has all of the choices
    click.echo(completion_class(cli, {}, PROGRAM, COMPLETE_VARIABLE).source())
