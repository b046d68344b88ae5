"""`serve`: run a service in this process until it is stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lookalike._arguments import checked_arguments
from lookalike.errors import LookalikeError, OptionError, import_extra, renamed_argument
from lookalike.index.autotune import parse_size
from lookalike.progress import Progress, count_noun, resolve_progress
from lookalike.server.options import ServiceOptions

_PACKAGES = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python-multipart": "python_multipart",
    "prometheus-client": "prometheus_client",
}
_log = logging.getLogger("lookalike.server")
_KEEP_ALIVE_S = 30
_BACKLOG = 1024


@checked_arguments()
def serve(  # noqa: PLR0913 - one argument per option of the command
    indexes: Sequence[Path | str] | Mapping[str, Path | str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | str | None = None,
    require_token: bool = False,
    audit_log: Path | str | None = None,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    max_body: int | str = "32MB",
    max_pixels: int = 50_000_000,
    max_queue: int = 256,
    max_requests: int | None = None,
    timeout: float = 30.0,
    receive_timeout: float = 20.0,
    on_start: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Serve indexes over HTTP until the process gets SIGTERM or SIGINT; what has begun is finished first.

    SIGHUP loads the indexes and tokens again without a failed request. `/` of the service is a web page to search
    with, `/docs` describes its routes.

    Args:
        indexes: folders from `lookalike index`, or a mapping of these by name; the first one is the default.
            The name of a folder is its own without `.index`.
        host: address to listen on. On any other than this machine's own every request needs a token.
        port: port to listen on; 0 for any free one.
        token_file: file of tokens, which `token` writes; without one nothing can be changed.
        require_token: reading needs a token on this machine, too, for example behind a proxy.
        audit_log: file to whose end each change is written, as one line of JSON.
        allowed_hosts: names in the header `Host` that are served, besides localhost and addresses in numbers.
        cors_origins: web pages' origins, such as https://shop.example, that may use the service.
        max_body: bytes of a request's body, or text such as 32MB.
        max_pixels: pixels of an image.
        max_queue: images that may wait; more are refused with status 429.
        max_requests: requests per minute of one token, or of one address without a token; more are refused with status
            429. 0 for no limit; None for no limit on this machine's own address, and 6000 on others.
        timeout: seconds that a request may take.
        receive_timeout: seconds in which a client must send a request.
        on_start: called with the address once it accepts connections.
        progress: receives messages; None shows them in a terminal or notebook, and logs elsewhere.

    Raises:
        MissingExtra: the packages of the extra `server` are not installed.
        OptionError: an address that cannot be used, one for other machines without tokens, or two names that are equal.
        StorageError: an index or the file of tokens cannot be read, or the audit log cannot be written.
        ModelError: the model of an index cannot be used.

    """
    progress = resolve_progress(progress)
    with renamed_argument("max_body", "max_memory"):
        max_body_bytes = parse_size(max_body)
    options = ServiceOptions(
        host=host,
        allowed_hosts=tuple(allowed_hosts),
        cors_origins=tuple(cors_origins),
        require_token=require_token,
        max_body=max_body_bytes,
        max_pixels=max_pixels,
        max_queue=max_queue,
        max_requests=max_requests,
        timeout=timeout,
        receive_timeout=receive_timeout,
    )
    for package, module in _PACKAGES.items():
        import_extra(module, "server", "serve", package)
    import uvicorn

    from lookalike.server.access import read_tokens
    from lookalike.server.app import create_app
    from lookalike.server.audit import AuditLog
    from lookalike.server.http import limited_protocol
    from lookalike.server.service import Service, name_indexes

    tokens_path = None if token_file is None else Path(token_file)
    tokens = () if tokens_path is None else read_tokens(tokens_path)
    if not tokens and (require_token or not options.on_loopback):
        raise OptionError(
            f"`token_file` with at least one token is needed to serve on {host}; make one with 'lookalike token'.",
            argument="token_file",
        )
    audit = AuditLog(None if audit_log is None else Path(audit_log))
    service = Service(name_indexes(indexes), options, tokens, audit)
    with contextlib.closing(_listen(host, port)) as listener:
        service.load()
        for name, served in service.indexes.items():
            encoder = served.queue.encoder
            progress.info(f"{name}: {count_noun(len(served.loaded.index), 'item')}, {encoder.name}")
        config = uvicorn.Config(
            create_app(service),
            http=limited_protocol(options.receive_timeout),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=options.max_connections,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(options.timeout) + 1,
            h11_max_incomplete_event_size=options.max_header,
        )
        address = _address(listener)

        def started() -> None:
            progress.info(
                f"serving on {address}, with a web page; {address}/docs describes the routes; Ctrl-C stops it"
            )
            if on_start is not None:
                on_start(address)

        def reload() -> None:
            try:
                service.load()
                if tokens_path is not None:
                    service.access.tokens = read_tokens(tokens_path)
                progress.info("the indexes and tokens are loaded again")
            except LookalikeError as error:
                progress.info(f"nothing is loaded again: {error}")

        _run(config, listener, service, started, reload)
    progress.info("stopped")


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, but does not accept connections yet."""
    if not 0 <= port <= 65_535:
        raise OptionError(f"`port` must be between 0 and 65535, got {port}.", argument="port")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise OptionError(f"cannot listen on {host}, `port` {port} ({cause.lower()}).", argument="port") from error
    listener.setblocking(False)
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run(
    config: Any, listener: socket.socket, service: Any, started: Callable[[], None], reload: Callable[[], None]
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """A server that says when it accepts connections, and handles the signals of a service."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.state = "stopping"
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            loop = asyncio.get_running_loop()
            previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
            tasks: set[asyncio.Future[None]] = set()

            def load_again() -> None:
                task = loop.run_in_executor(None, reload)
                tasks.add(task)
                task.add_done_callback(tasks.discard)

            loop.add_signal_handler(signal.SIGHUP, load_again)
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            try:
                yield
            finally:
                for number, handler in previous.items():
                    loop.remove_signal_handler(number)
                    signal.signal(number, handler)

    asyncio.run(Server(config).serve([listener]))
