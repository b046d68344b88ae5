"""`lookalike serve` and `token`."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lookalike._files import open_regular
from lookalike.cli.app import Command
from lookalike.cli.console import make_progress
from lookalike.cli.options import PATH
from lookalike.errors import OptionError

_PREFIX = "LOOKALIKE_SERVE"
_MAX_BYTES = 1_000_000  # of a settings file
_ASIDE = ("settings", "show_settings")  # options that are not settings themselves
_SOURCES = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "settings file",
    ParameterSource.DEFAULT: "default",
}


def _read_settings(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Let a TOML file replace the defaults of the other options."""
    if path is None:
        return
    try:
        with open_regular(path, _MAX_BYTES) as file:
            values = tomllib.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(
            f"the `settings` {path} cannot be read ({getattr(error, 'strerror', None) or error}).", argument="settings"
        ) from error
    parameters = _parameters(ctx)
    defaults: dict[str, object] = {}
    for key, value in values.items():
        if key not in parameters:
            raise OptionError(
                f"{path} has the key {key!r}, but the keys are {', '.join(parameters)}.", argument="settings"
            )
        parameter = parameters[key]
        many = parameter.multiple or parameter.nargs == -1
        if not (isinstance(value, list) and all(isinstance(one, str) for one in value) if many else _is_plain(value)):
            kind = "a list of texts" if many else "a text, a number or true or false"
            raise OptionError(f"{key!r} in {path} must be {kind}, got {value!r}.", argument="settings")
        defaults[str(parameter.name)] = value if many else str(value)  # which is parsed as on the command line
    ctx.default_map = defaults


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _setting_lines(ctx: click.Context) -> Iterator[str]:
    """Yield all settings in the form of a settings file. None is secret: a token file holds digests."""
    for key, parameter in _parameters(ctx).items():
        name = str(parameter.name)
        value, source = ctx.params[name], ctx.get_parameter_source(name)
        text = f"# {key} is not set" if value is None else f"{key} = {json.dumps(value, default=str)}"
        yield f"{text}  # {_SOURCES.get(source, 'default') if source else 'default'}"


def _parameters(ctx: click.Context) -> dict[str, click.Parameter]:
    """Return what can be set, by the key in a settings file: an option without dashes."""
    parameters = (parameter for parameter in ctx.command.params if parameter.name not in _ASIDE)
    return {max(parameter.opts, key=len).lstrip("-"): parameter for parameter in parameters}


@click.command(cls=Command, short_help="Serve indexes over HTTP.", context_settings={"auto_envvar_prefix": _PREFIX})
@click.argument("indexes", metavar="[NAME=]INDEX...", nargs=-1, required=True, envvar=f"{_PREFIX}_INDEXES")
@click.option(
    "--settings",
    type=PATH,
    metavar="FILE",
    is_eager=True,
    expose_value=False,
    callback=_read_settings,
    help="TOML file of options, such as port = 80; the command line and the environment override it.",
)
@click.option("--show-settings", is_flag=True, help="Print all settings, and where they come from, and exit.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; any but this machine's own "
    "needs tokens.")  # fmt: skip
@click.option("--port", type=int, default=8000, show_default=True, help="Port to listen on; 0 for any free one.")
@click.option(
    "--token-file", type=PATH, metavar="FILE", help="File of tokens, from 'lookalike token'. Without one nothing can "
    "be changed."
)  # fmt: skip
@click.option("--require-token", is_flag=True, help="Reading needs a token on this machine, too.")
@click.option("--audit-log", type=PATH, metavar="FILE", help="File to whose end each change is written, as JSON.")
@click.option(
    "--allowed-host", "allowed_hosts", multiple=True, metavar="NAME", help="Host name that is served, besides "
    "localhost and addresses in numbers. Can be repeated."
)  # fmt: skip
@click.option(
    "--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN", help="Origin of a web page that may use the "
    "service, such as https://shop.example. Can be repeated."
)  # fmt: skip
@click.option("--max-body", metavar="SIZE", default="32MB", show_default=True, help="Limit for a request's body.")
@click.option("--max-pixels", type=int, default=50_000_000, show_default=True, help="Limit for an image.")
@click.option(
    "--max-queue", type=int, default=256, show_default=True, help="Images that may wait; more are refused (429)."
)
@click.option(
    "--max-requests",
    type=int,
    metavar="N",
    help="Requests per minute of one token, or of one address without a token; more are refused (429). 0 for no "
    "limit.  [default: no limit on this machine's own address, else 6000]",
)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds that a request may take.")
@click.option(
    "--receive-timeout",
    type=float,
    default=20.0,
    show_default=True,
    help="Seconds in which a client must send a request.",
)
@click.pass_context
def serve(ctx: click.Context, /, indexes: tuple[str, ...], show_settings: bool, **values: Any) -> None:
    """Serve indexes over HTTP until Ctrl-C or SIGTERM. SIGHUP loads them again without a failed request.

    The first index is the default. The name of an index is that of its folder without '.index'. An option can also be
    given by the environment, as LOOKALIKE_SERVE_PORT=80, or by a settings file.

    \b
    Examples:
      lookalike serve photos.index
      curl -F image=@query.jpg 'http://127.0.0.1:8000/v1/search?k=10'
      lookalike serve hats=a.index shoes=b.index --host 0.0.0.0 --token-file tokens
    """  # noqa: D301
    if show_settings:
        for line in _setting_lines(ctx):
            click.echo(line)
        return
    from lookalike.server.run import serve as run_serve

    with closing(make_progress()) as progress:
        run_serve(_named(indexes), **values, progress=progress)


def _named(indexes: tuple[str, ...]) -> list[str] | dict[str, str]:
    """Return the folders, by name if all of them have one."""
    pairs = [text.partition("=")[::2] for text in indexes]
    named = [
        (name, path) for (name, path), text in zip(pairs, indexes, strict=True) if path and not Path(text).exists()
    ]
    if not named:
        return list(indexes)
    names = [name for name, _ in named]
    if len(named) < len(indexes) or len(set(names)) < len(names):
        raise OptionError(
            "give each of the `indexes` a name of its own, NAME=INDEX, or none of them.", argument="indexes"
        )
    return dict(named)


@click.command(cls=Command, short_help="Make a token for a service.")
@click.argument("file", type=PATH)
@click.option(
    "--scope", type=click.Choice(["read", "write"]), default="read", show_default=True, help="What it allows."
)
@click.option("--name", metavar="NAME", help="Who it is for, in the audit log.")
def token(file: Path, **values: Any) -> None:
    """Make a token for 'serve', add its digest to FILE, and print it: it cannot be shown again.

    Remove the line of a token to revoke it, and send the service SIGHUP.

    \b
    Examples:
      lookalike token tokens --scope write --name importer
    """  # noqa: D301
    from lookalike.server.access import token as make_token

    click.echo(make_token(file, **values))
