"""Who may use a service, and how often: tokens, the names that it answers to, and a limit on requests."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import Request

from lookalike._arguments import checked_arguments
from lookalike._files import open_regular
from lookalike.errors import OptionError, StorageError
from lookalike.server.options import ServiceOptions
from lookalike.server.problems import Problem

READ, WRITE = "read", "write"
SCOPES = (READ, WRITE)
_LINE = re.compile(r"(read|write) sha256:([0-9a-f]{64})(?: ([\w.@-]+))?")
_NAME = re.compile(r"[\w.@-]{1,64}")
_ROUNDING_S = 1e-6
_MAX_BYTES = 10_000_000  # of a file of tokens
_MIN_CLIENTS = 1000  # whose requests are counted, before those that have sent none for a minute are forgotten


@dataclass(frozen=True)
class Token:
    """A token as a file keeps it: its digest only. A write token may read, too."""

    scope: str
    digest: str
    name: str


@checked_arguments()
def token(file: Path | str, *, scope: str = READ, name: str | None = None) -> str:
    """Make a token for a service, add its digest to a file, and return it: it is not stored and cannot be shown again.

    Args:
        file: the file of `serve(token_file=...)`; created if it does not exist, readable by its owner only. A line is
            `read|write sha256:DIGEST NAME`; remove it to revoke the token.
        scope: read (search and look), or write (also add, change and delete items).
        name: who it is for, in the audit log.

    Raises:
        OptionError: an unknown scope, or a name with other characters than letters, digits and `.@_-`.
        StorageError: the file cannot be written, or holds something else.

    """
    if scope not in SCOPES:
        raise OptionError(f"`scope` must be read or write, got {scope!r}.", argument="scope")
    if name is not None and not _NAME.fullmatch(name):
        raise OptionError(f"`name` must be 1 to 64 letters, digits, or any of . @ _ -, got {name!r}.", argument="name")
    path = Path(file)
    if path.exists():
        read_tokens(path)
    value = secrets.token_urlsafe(32)
    line = " ".join(filter(None, (scope, f"sha256:{_digest(value)}", name))) + "\n"
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(number, "a", encoding="utf-8") as output:
            output.write(line)
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror}).", argument="file") from error
    return value


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Return the tokens of a file; empty lines and those that begin with # are ignored."""
    try:
        with open_regular(path, _MAX_BYTES) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise StorageError(f"{path} cannot be read as a file of tokens ({cause}).", argument="token_file") from error
    tokens = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise StorageError(
                f"line {number} of {path} is not a token; write lines with 'lookalike token'.", argument="token_file"
            )
        tokens.append(Token(match[1], match[2], match[3] or f"line {number}"))
    return tuple(tokens)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()


class RateLimit:
    """Lets each client send a number of requests at once, and this many per minute in the long run: a token bucket.

    Of a client it keeps one number, and nothing of one whose bucket is full.

    Args:
        per_minute: number of requests; 0 for no limit.
        clock: seconds that never go back.

    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._full_at: dict[str, float] = {}  # by client, when its bucket is full again
        self._clean_from = _MIN_CLIENTS

    def wait_s(self, client: str) -> int:
        """Count a request and return 0; or return after how many seconds it will be let through."""
        now, interval = self._clock(), 60 / self.per_minute
        full_at = max(self._full_at.get(client, now), now) + interval
        if full_at > now + 60 + _ROUNDING_S:
            return math.ceil(full_at - now - 60)
        self._full_at[client] = full_at
        if len(self._full_at) >= self._clean_from:
            self._full_at = {client: end for client, end in self._full_at.items() if end > now}
            self._clean_from = max(_MIN_CLIENTS, 2 * len(self._full_at))
        return 0


class Access:
    """Decides what a request may do."""

    def __init__(self, options: ServiceOptions, tokens: tuple[Token, ...] = ()) -> None:
        self.tokens = tokens
        self._reading_is_open = options.on_loopback and not options.require_token
        self._hosts = {name.lower() for name in ("localhost", options.host, *options.allowed_hosts)}
        self._names = {name.lower() for name in options.allowed_hosts}
        self._origins = set(options.cors_origins)
        self._rate = RateLimit(options.requests_per_minute)

    def require(self, scope: str, request: Request) -> Token | None:
        """Return the request's token, None if it needs none; a `Problem` if it may not do this."""
        if scope == READ and self._reading_is_open:
            return None
        authorization = request.headers.get("authorization")
        if authorization is None:
            if scope == WRITE and not any(token.scope == WRITE for token in self.tokens):
                raise Problem("forbidden", "this service is read-only: it was started without a write token.")
            raise _unauthorized("send the header Authorization: Bearer TOKEN.")
        token = self._token(authorization)
        if scope == WRITE and token.scope != WRITE:
            raise Problem("forbidden", "the token may only read.")
        return token

    def scope(self, request: Request) -> str:
        """Return what a request may do, read or write; a `Problem` if its token is not valid, or one is missing."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            self.require(READ, request)
            return READ
        return self._token(authorization).scope

    def _token(self, authorization: str) -> Token:
        token = self._find(authorization)
        if token is None:
            raise _unauthorized("the token is not valid.")
        return token

    def _find(self, authorization: str) -> Token | None:
        kind, _, value = authorization.partition(" ")
        digest = _digest(value.strip())
        # every digest is compared, so that the time says nothing about which one is nearly right
        matches = [token for token in self.tokens if hmac.compare_digest(token.digest, digest)]
        return matches[0] if kind.lower() == "bearer" and matches else None

    def require_rate(self, headers: dict[bytes, bytes], address: str) -> None:
        """Count a request; raise a `Problem` if its token, or its address without a valid one, has sent too many."""
        if not self._rate.per_minute:
            return
        token = self._find(headers.get(b"authorization", b"").decode("latin-1"))
        wait_s = self._rate.wait_s(address if token is None else token.digest)
        if wait_s:
            raise Problem(
                "too-many-requests",
                f"more than {self._rate.per_minute} requests per minute; try again in {wait_s} s.",
                headers={"Retry-After": str(wait_s)},
            )

    def require_host(self, headers: dict[bytes, bytes]) -> None:
        """Raise a `Problem` for a host that is not served, or a web page of another one.

        A page whose name an attacker lets point to this machine (DNS rebinding) sends its own name; an address in
        numbers cannot be such a name.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_served(host):
            raise Problem("wrong-host", "this name is not served; start the service with it as an allowed host.")
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin not in self._origins:
            parts = _split(origin)
            if parts is None or not (parts[0] == host or parts[1] in self._names):
                raise Problem("forbidden", "pages of other sites may not use this service.")

    def _is_served(self, host: str) -> bool:
        parts = _split(f"//{host}")
        if parts is None:
            return False
        name = parts[1]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True


def _split(url: str) -> tuple[str, str] | None:
    """Return host with port, and host alone; None where there is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return (parts.netloc, parts.hostname) if parts.hostname else None


def _unauthorized(detail: str) -> Problem:
    return Problem("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})
