"""Entry point: run a command, turn every expected failure into one sentence and an exit code.

Exit codes: 0 fine; 1 `check` found errors; 2 bad input or usage; 3 something failed that should not; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

import click

from lookalike.cli.command import AGAIN, InterruptionError, did_you_mean
from lookalike.cli.wording import printable
from lookalike.errors import LookalikeError

USAGE = 2
INTERNAL = 3
INTERRUPTED = 130
PROGRAM = "lookalike"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    # being told to end is as being interrupted: temporary files are removed, and the sentence says how to go on
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module="PIL")  # about odd files; those that cannot be read are reported
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """Run the command line and return the exit code."""
    # threads that wait sleep instead of spinning: decoding shares the cores with the model. Read when OpenMP is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _take_any_name()
    debug = "--debug" in argv
    try:
        return _invoke([a for a in argv if a != "--debug"])
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except (KeyboardInterrupt, click.Abort):
        return _fail(AGAIN, INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        return _explain(error)


def _invoke(argv: list[str]) -> int:
    from lookalike.cli.commands import cli

    completing = os.environ.get("_LOOKALIKE_COMPLETE")
    if completing:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, "_LOOKALIKE_COMPLETE", completing)
    if not argv:
        with cli.make_context(PROGRAM, [], resilient_parsing=True) as context:
            click.echo(cli.get_help(context), err=True)
        return USAGE
    try:
        with cli.make_context(PROGRAM, argv) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as ended:  # --help and --version
        return ended.exit_code
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> int:
    """Say what went wrong in one sentence and return the exit code."""
    if isinstance(error, click.ClickException):
        return _fail(_usage_sentence(error), USAGE)
    if isinstance(error, LookalikeError):
        return _fail(str(error), USAGE)
    if isinstance(error, InterruptionError):
        return _fail(str(error), INTERRUPTED)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _forget_stdout()  # it may be what is full, and would fail again when it is flushed at the end
        cause = os.strerror(error.errno).lower()
        return _fail(f"the output cannot be written ({cause}); free some space or choose another place.", USAGE)
    what = f"{type(error).__name__}: {error}".rstrip(".: ")
    return _fail(f"something failed that should not have ({what}); run it again with --debug.", INTERNAL)


def _fail(sentence: str, code: int) -> int:
    below = "\n" if code == INTERRUPTED and sys.stderr.isatty() else ""  # the terminal has echoed ^C
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"{below}error: {printable(' '.join(sentence.split()))}", err=True)
    return code


def _usage_sentence(error: click.ClickException) -> str:
    """Return click's message as one sentence in our style."""
    context = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption):
        known = [name for p in context.command.get_params(context) for name in p.opts] if context else []
        sentence = f"no such option {error.option_name}{did_you_mean(error.option_name, known)}"
    else:
        sentence = " ".join(error.format_message().split()).rstrip(".")
        sentence = re.sub(r"\. Choose from: (.*)$", r" (one of \1)", sentence)
        sentence = sentence[:1].lower() + sentence[1:]
    return f"{sentence}; see '{context.command_path if context else PROGRAM} --help'."


def _take_any_name() -> None:
    """Let stdout pass on file names that are not valid Unicode byte for byte, and no stream fail at a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        valid = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if valid else "replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    """Lead stdout nowhere: its reader has gone, and flushing it at exit would complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a file at all
        sys.stdout = io.StringIO()
