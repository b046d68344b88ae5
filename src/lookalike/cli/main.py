"""Entry point: run a command and turn every expected failure into one sentence and an exit code.

Exit codes: 0 success; 1 `check` found errors; 2 bad input; 3 internal error; 130 interrupted.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from lookalike.cli.app import (
    BAD_INPUT,
    COMPLETE_VARIABLE,
    INTERNAL_ERROR,
    INTERRUPTED,
    PROGRAM,
    RUN_AGAIN,
    SUCCESS,
    CommandError,
    cli,
)
from lookalike.errors import LookalikeError
from lookalike.progress import printable


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    _replace_closed_streams()
    signal.signal(signal.SIGTERM, _terminate)
    warnings.filterwarnings("ignore", module="PIL")  # about odd files; those that cannot be read are reported
    exit_code = run(list(sys.argv[1:] if argv is None else argv))
    if exit_code == INTERRUPTED:
        _exit_at_once(exit_code)
    sys.exit(exit_code)


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM like Ctrl-C: temporary files are removed, undisturbed by a second signal."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _exit_at_once(exit_code: int) -> NoReturn:
    """Exit without the interpreter's shutdown: threads of a runtime that were interrupted can crash in it."""
    atexit._run_exitfuncs()  # which remove temporary folders, also those of other libraries
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def run(argv: list[str]) -> int:
    """Run the command line and return the exit code."""
    # idle OpenMP threads sleep instead of spinning, because decoding shares the cores with the model; read by OpenMP
    # when it is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _accept_any_file_name()
    debug = "--debug" in argv
    try:
        return _invoke([argument for argument in argv if argument != "--debug"])
    except BrokenPipeError:
        _discard_stdout()
        return SUCCESS
    except (KeyboardInterrupt, click.Abort):
        return _fail(RUN_AGAIN, INTERRUPTED)
    except Exception as error:
        if debug:
            traceback.print_exception(error)
        return _explain(error)


def _invoke(argv: list[str]) -> int:
    completing = os.environ.get(COMPLETE_VARIABLE)
    if completing:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, PROGRAM, COMPLETE_VARIABLE, completing)
    if not argv:
        with cli.make_context(PROGRAM, [], resilient_parsing=True) as context:
            click.echo(cli.get_help(context), err=True)
        return BAD_INPUT
    try:
        with cli.make_context(PROGRAM, argv) as context:
            exit_code = cli.invoke(context)
    except click.exceptions.Exit as ended:  # --help and --version
        return ended.exit_code
    return exit_code if isinstance(exit_code, int) else SUCCESS


def _explain(error: Exception) -> int:
    """Report an error in one sentence and return the exit code."""
    if isinstance(error, click.ClickException):
        return _fail(_usage_message(error), BAD_INPUT)
    if isinstance(error, CommandError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, LookalikeError):  # raised while options are parsed
        return _fail(str(error), BAD_INPUT)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _discard_stdout()  # it may be on the full disk, and would fail again when it is flushed at exit
        cause = os.strerror(error.errno).lower()
        return _fail(f"the output cannot be written ({cause}); free some space or choose another --out.", BAD_INPUT)
    if isinstance(error, FileNotFoundError) and not _has_working_folder():
        return _fail("the working folder does not exist any more; change to another folder.", BAD_INPUT)
    cause = f"{type(error).__name__}: {error}".rstrip(".: ")
    return _fail(
        f"unexpected error ({cause}); run the command again with --debug for a traceback, and please report it.",
        INTERNAL_ERROR,
    )


def _has_working_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _fail(sentence: str, exit_code: int) -> int:
    prefix = "\n" if exit_code == INTERRUPTED and sys.stderr.isatty() else ""  # the terminal has echoed ^C
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"{prefix}error: {printable(' '.join(sentence.split()))}", err=True)
    return exit_code


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split())
    end = "" if message.endswith((".", "?", ")")) else "."
    return f"{message[:1].lower()}{message[1:]}{end} See '{context.command_path if context else PROGRAM} --help'."


def _replace_closed_streams() -> None:
    """Write to the null device where the caller has closed a stream: Python has None for it."""
    if sys.stdout is None:
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _accept_any_file_name() -> None:
    """Write file names that are not valid Unicode as their bytes, and never fail to encode."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        unicode = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "replace")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _discard_stdout() -> None:
    """Redirect stdout to the null device: flushing a closed pipe at exit would fail."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):  # not a file
        sys.stdout = io.StringIO()
