"""One HTTP POST, never repeated or redirected; the error says whether it was sent."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from lookalike.errors import LookalikeError, OptionError
from lookalike.progress import printable

CONNECT_TIMEOUT_S = 10.0  # of each address of the host, of the TLS handshake and of the answer of a proxy
TIMEOUT_S = 300.0  # of each wait for the server: some compute the score before they answer
MAX_ANSWER_BYTES = 65_536
CONTENT_TYPE = "application/json"

_SAFE = "/%:?#[]@!$&'()*+,;=-._~"  # stays as it is in a path or a query; all else is percent-encoded
_MAX_EXCERPT = 160
_SHORTEST_SECRET = 4  # characters; a shorter value of the query occurs in any text


@dataclass(frozen=True, repr=False)
class Address:
    """Where a submission is posted. Its text has neither user nor password, and "…" for the query."""

    scheme: str  # http or https
    host: str  # name or IP address
    port: int
    path: str  # percent-encoded
    query: str = ""  # percent-encoded, may hold a token
    login: str = ""  # `user:password`, or empty

    @classmethod
    def parse(cls, url: str, argument: str = "url") -> Address:
        """Read an http or https URL; `OptionError` for anything else, which does not show a password either."""
        host, port = "", None
        with contextlib.suppress(ValueError):
            parts = urlsplit(str(url))
            port = parts.port
            if parts.scheme in ("http", "https") and not re.search(r"[\x00-\x20\x7f]", str(url)):
                host = parts.hostname or ""
                host.encode("idna")
        if not host:
            got = repr(url) if not re.search("[@?]", str(url)) else "one that cannot be read"
            raise OptionError(f"`{argument}` must be a URL such as https://host/path, got {got}.", argument=argument)
        login = "" if parts.username is None else f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        path, query = (quote(part, safe=_SAFE) for part in (parts.path or "/", parts.query))
        return cls(parts.scheme, host, port or (443 if parts.scheme == "https" else 80), path, query, login)

    def __str__(self) -> str:
        return f"{self._origin}{self.path}{'?…' if self.query else ''}"

    def __repr__(self) -> str:
        return f"<Address: {self}>"

    @property
    def target(self) -> str:
        """Path and query, as the request line has them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def url(self) -> str:
        """The URL with its query and without its login, as the request line of a proxy has it."""
        return self._origin + self.target

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request; `Authorization` holds the login."""
        headers = {"Content-Type": CONTENT_TYPE, "Accept": CONTENT_TYPE, "User-Agent": "lookalike"}
        if self.login:
            headers["Authorization"] = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        return headers | {"Connection": "close"}

    def hide_secrets(self, text: str) -> str:
        """Replace the password and the values of the query in a text of the server, which may quote the request."""
        values = [value for _, value in parse_qsl(self.query)]
        secrets = {self.query, *values, *map(quote, values), self.login, self.login.partition(":")[2]}
        secrets.add(self.headers.get("Authorization", "").partition(" ")[2])
        for secret in sorted(secrets, key=len, reverse=True):
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "…")
        return text

    @property
    def _origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}{'' if self.port == default else f':{self.port}'}"


class NotSentError(Exception):
    """No connection was established, so nothing was sent; `temporary` where another try may succeed."""

    def __init__(self, cause: str, *, temporary: bool) -> None:
        super().__init__(cause)
        self.temporary = temporary


class NoAnswerError(Exception):
    """The request was sent, and the connection ended before an answer."""


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int  # the HTTP status
    reason: str
    body: bytes  # at most `MAX_ANSWER_BYTES` bytes
    location: str = ""  # the target of a redirect, or empty
    retry_after: str = ""  # the header of that name, or empty
    damage: str = ""  # why the body is incomplete, or empty

    def excerpt(self, address: Address) -> str:
        """Return the start of the body as a part of a sentence, without secrets of the address."""
        text = printable(" ".join(self.body.decode("utf-8", "replace").split()))
        if self.damage:
            return self.damage
        if not text:
            return "without a text"
        if text.startswith("<"):
            return "with a page instead of JSON"
        text = address.hide_secrets(text)
        return f"with {text[:_MAX_EXCERPT] + '…' if len(text) > _MAX_EXCERPT else text!r}"

    def redirected(self, address: Address) -> Address | None:
        """Return the target of a redirect, or None for an answer of another kind."""
        with contextlib.suppress(LookalikeError, ValueError):
            if self.location and 300 <= self.status < 400:
                return Address.parse(urljoin(address.url, self.location))
        return None

    def wait_s(self, now_s: float) -> float | None:
        """Return the seconds after which the server may be asked again; None if it does not say so."""
        if self.status not in (429, 503):
            return None
        if re.fullmatch(r"\d{1,9}", self.retry_after):
            return float(self.retry_after)
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return max(0.0, parsedate_to_datetime(self.retry_after).timestamp() - now_s)
        return None


def post_once(address: Address, body: bytes, before_sending: Callable[[], object]) -> Answer:
    """Connect, call `before_sending`, send the body once and read the answer; certificates are verified.

    Without a connection `NotSentError` is raised, after `before_sending` `NoAnswerError`.
    """
    connection, target, headers = _open(address)
    with contextlib.closing(connection):
        _connect(connection)
        before_sending()
        try:
            # a server that refuses early closes its side while the body is sent, and its answer can still be read
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request("POST", target, body, headers)
            response = connection.getresponse()
        except TimeoutError as error:
            raise NoAnswerError(f"no answer within {TIMEOUT_S:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswerError(f"the connection broke off: {_cause(error)}") from error
        content, damage = _read(response)
    location, retry_after = (str(response.headers.get(name, "")).strip() for name in ("Location", "Retry-After"))
    reason = printable(http.client.responses.get(response.status, ""))
    return Answer(response.status, reason, content, location, retry_after, damage)


def _open(address: Address) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """Return a connection that is not established yet, and target and headers of the request.

    The connection goes through the proxy that the environment names for the scheme and the host.
    """
    proxy = None if proxy_bypass(address.host) else getproxies().get(address.scheme)
    first = address if proxy is None else Address.parse(proxy if "://" in proxy else f"http://{proxy}", "proxy")
    login = {"Proxy-Authorization": first.headers["Authorization"]} if proxy is not None and first.login else {}
    target, headers = address.target, address.headers
    connection: http.client.HTTPConnection
    if address.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(first.host, first.port, timeout=CONNECT_TIMEOUT_S, context=context)
        if proxy is not None:
            connection.set_tunnel(address.host, address.port, login)
    else:
        connection = http.client.HTTPConnection(first.host, first.port, timeout=CONNECT_TIMEOUT_S)
        if proxy is not None:
            target, headers = address.url, headers | login
    connection.auto_open = 0  # it never connects again by itself
    return connection, target, headers


def _connect(connection: http.client.HTTPConnection) -> None:
    try:
        connection.connect()
    except (ssl.SSLCertVerificationError, socket.gaierror) as error:
        raise NotSentError(_cause(error), temporary=False) from error
    except (OSError, http.client.HTTPException) as error:
        raise NotSentError(_cause(error), temporary=True) from error
    connection.sock.settimeout(TIMEOUT_S)


def _read(response: http.client.HTTPResponse) -> tuple[bytes, str]:
    """Return the body up to the limit, and why it is incomplete."""
    chunks, size, end_s = [], 0, time.monotonic() + TIMEOUT_S
    try:
        while size <= MAX_ANSWER_BYTES and (chunk := response.read1(MAX_ANSWER_BYTES + 1)):
            chunks.append(chunk)
            size += len(chunk)
            if time.monotonic() > end_s:
                raise TimeoutError(f"not complete after {TIMEOUT_S:g} s")
    except (OSError, http.client.HTTPException, ValueError) as error:
        return b"".join(chunks), f"with a text that broke off ({_cause(error)})"
    if size > MAX_ANSWER_BYTES:
        return b"".join(chunks)[:MAX_ANSWER_BYTES], f"with more than {MAX_ANSWER_BYTES:,} bytes"
    return b"".join(chunks), "with a text that broke off" if response.length else ""


def _cause(error: Exception) -> str:
    text = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
    return " ".join(printable(str(text)).split()).lower() or type(error).__name__
