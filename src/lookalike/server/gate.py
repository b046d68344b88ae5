"""What every request passes: the host check, limits, the deadline, the headers of the answer, errors and counts."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lookalike.errors import LookalikeError
from lookalike.server.access import Access
from lookalike.server.monitoring import Monitor
from lookalike.server.options import ServiceOptions
from lookalike.server.problems import Problem, as_problem

_HEALTH = ("/healthz", "/readyz")  # asked by what would restart a service that does not answer
_log = logging.getLogger("lookalike.server")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}


class Gate:
    """An ASGI application around the service; it answers every error, and shows none of the server's internals."""

    def __init__(self, app: ASGIApp, options: ServiceOptions, access: Access, monitor: Monitor) -> None:
        self._app = app
        self._options = options
        self._access = access
        self._monitor = monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                present = {name.lower() for name, _ in headers}
                headers += [pair for pair in _HEADERS.items() if pair[0] not in present]
                headers.append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            problem = await self._answer(scope, receive, send_with_headers, request_id)
            if problem is not None and not status:
                await problem.response(scope["path"], request_id)(scope, receive, send_with_headers)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._monitor.request(route, scope["method"], status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> Problem | None:
        """Let the application answer; return the problem if it does not."""
        try:
            size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope.get("query_string", b""))
            if size > self._options.max_header:
                return Problem(
                    "headers-too-large", f"address and headers have more than {self._options.max_header} bytes."
                )
            headers = dict(scope["headers"])
            self._access.require_host(headers)
            if scope["path"] not in _HEALTH:
                self._access.require_rate(headers, (scope.get("client") or ("", 0))[0])
            async with asyncio.timeout(self._options.timeout):
                await self._app(scope, receive, send)
        except Problem as problem:
            return problem
        except TimeoutError:
            seconds = self._options.timeout
            return Problem("deadline", f"the request took more than {seconds:g} s.", headers={"Retry-After": "1"})
        except LookalikeError as error:
            problem_of_client = as_problem(error)
            if problem_of_client is not None:
                return problem_of_client
            _log.error("request %s: %s", request_id, error)
        except Exception:
            _log.exception("request %s failed", request_id)
        return Problem("internal-error", f"the request failed; the log of the service says why ({request_id}).")
