"""Entry point: run a command, turn every expected failure into one sentence and an exit code.

Exit codes: 0 fine; 1 `check` found errors; 2 bad input or usage; 3 something failed that should not; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from lookalike.errors import LookalikeError

USAGE = 2
INTERNAL = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the command line and return the exit code."""
    # threads that wait sleep instead of spinning: decoding shares the cores with the model. Read when OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from lookalike.cli.commands import cli

    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    try:
        result = cli.main(args=argv, prog_name="lookalike", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.ClickException as error:
        return _fail(_usage_sentence(error), USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; what was finished is kept, start the same command again to go on.", INTERRUPTED)
    except LookalikeError as error:
        if debug:
            raise
        return _fail(str(error), USAGE)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - the reader has gone, nothing more to say
        return 0
    except Exception as error:
        if debug:
            raise
        return _fail(
            f"something failed that should not have ({type(error).__name__}: {error}); run it again with --debug.",
            INTERNAL,
        )
    return result if isinstance(result, int) else 0


def _fail(sentence: str, code: int) -> int:
    click.echo(f"error: {' '.join(sentence.split())}", err=True)
    return code


def _usage_sentence(error: click.ClickException) -> str:
    sentence = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{sentence}; see '{context.command_path if context else 'lookalike'} --help'."
