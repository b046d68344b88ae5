"""HTTP/1.1 with a limit on the time that a client takes to send a request."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_EXTRA_S = 5.0  # in which the service itself answers that a body is late


def limited_protocol(receive_timeout_s: float) -> type[H11Protocol]:
    """Return a protocol that gives a request this time, and a little more, to arrive."""
    return type("LimitedProtocol", (_LimitedProtocol,), {"receive_timeout_s": receive_timeout_s + _EXTRA_S})


class _LimitedProtocol(H11Protocol):
    """Closes a connection on which a request, from its first byte to the end of its body, is not complete in time.

    uvicorn limits only the time between two requests, so that a client that sends a byte now and then would keep its
    connection for ever.
    """

    receive_timeout_s: float
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time: a connection must be used."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Start the time at the first byte of a request, and stop it after the last."""
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._start()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.receive_timeout_s, self._give_up)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()
