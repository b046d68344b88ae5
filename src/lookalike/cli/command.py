"""What every command has in common: its errors name options as they are typed, an interruption says how to go on."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import click

from lookalike.errors import OptionError

AGAIN = "interrupted; start the same command again."
GOES_ON = "interrupted; start the same command again, and it goes on with what was finished."
RESUMES = "interrupted; start the same command again with --resume, and it goes on with what was finished."


class InterruptionError(Exception):
    """Someone stopped a command; its text is one sentence on how to go on."""


class TypedError(OptionError):
    """An option that cannot be, in a sentence that has it as it was typed."""


class Command(click.Command):
    """A command of Lookalike.

    Args:
        interrupted: what to say when it is stopped by a signal.
        args, named: as for `click.Command`.

    """

    def __init__(self, *args: Any, interrupted: str = AGAIN, **named: Any) -> None:
        super().__init__(*args, **named)
        self.interrupted = interrupted

    def invoke(self, ctx: click.Context) -> Any:
        """Run it."""
        try:
            return super().invoke(ctx)
        except TypedError:
            raise
        except OptionError as error:
            raise OptionError(as_typed(str(error), self)) from error
        except (KeyboardInterrupt, click.Abort) as error:
            raise InterruptionError(self.interrupted) from error


def as_typed(sentence: str, command: click.Command) -> str:
    """Replace the names that Python users give by those of the command line: `max_minutes` by `--max-minutes`.

    A name that is also a plain word (`epochs`) is replaced where the sentence starts with what it must be.
    """
    for parameter in command.params:
        name, flag = parameter.name, max(parameter.opts, key=len, default="")
        if name is None or not flag.startswith("-"):
            continue
        for known in {name, flag.lstrip("-").replace("-", "_")}:
            pattern = rf"(?<![\w-]){known}\b" if "_" in known else rf"^{known}(?= must )"
            sentence = re.sub(pattern, flag, sentence)
    return sentence


class Commands(MutableMapping[str, click.Command]):
    """Commands by name; the module of each is imported when it is asked for.

    Args:
        package: that holds the modules.
        homes: by name of a command, the module that has it.

    """

    def __init__(self, package: str, homes: Mapping[str, str]) -> None:
        self._package = package
        self._homes = dict(homes)
        self._further: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name in self._further:
            return self._further[name]
        found: click.Command = getattr(importlib.import_module(f"{self._package}.{self._homes[name]}"), name)
        return found

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._further[name] = command

    def __delitem__(self, name: str) -> None:
        del (self._further if name in self._further else self._homes)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._homes, *self._further]))

    def __len__(self) -> int:
        return len(self._homes.keys() | self._further.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._homes or name in self._further


class InOrder(click.Group):
    """Lists commands in the order of a job rather than by name, and knows what a mistyped one was meant to be."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the names in the order they were added."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; `click.UsageError` for one that there is not."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise click.UsageError(f"no such command {args[0]!r}{did_you_mean(args[0], list(self.commands))}", ctx)
        return super().resolve_command(ctx, args)


def did_you_mean(typed: str, known: list[str]) -> str:
    """Return a hint in brackets, or nothing when no known name is near."""
    near = difflib.get_close_matches(typed, known, n=2)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
