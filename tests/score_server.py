"""A server that scores submissions, over real HTTP on this machine: it answers as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lookalike.evaluation.submission import Submission

Reply = Callable[[BaseHTTPRequestHandler], object]


def reply(status: int, body: str | bytes = "", **headers: str) -> Reply:
    """Answer with a status, a body and headers, whose names have `_` for `-`."""
    content = body if isinstance(body, bytes) else body.encode()

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return act


def raw(text: bytes) -> Reply:
    """Write these bytes and close the connection."""
    return lambda handler: handler.wfile.write(text)


class ScoreServer:
    """What a server received, and how it answers: `replies` in turn, the last one for all later requests."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.replies: list[Reply] = [reply(200, json.dumps({"accuracy": 0.8125}))]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.stopped = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/submit"

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, _, body in self.requests]

    def hang(self, _handler: BaseHTTPRequestHandler) -> None:
        """Answer nothing until the test ends."""
        self.stopped.wait(30)


def make_server() -> ScoreServer:
    """Return a server that has a port and does not listen yet."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            score_server.requests.append((self.path, dict(self.headers), body))
            replies = score_server.replies
            (replies.pop(0) if len(replies) > 1 else replies[0])(self)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.daemon_threads = True
    server.server_bind()
    score_server = ScoreServer(server)
    return score_server


def start(score_server: ScoreServer) -> None:
    """Listen and answer."""
    score_server.server.server_activate()
    threading.Thread(target=score_server.server.serve_forever, args=(0.01,), daemon=True).start()


def stop(score_server: ScoreServer) -> None:
    """End the server; it must have been started."""
    score_server.stopped.set()
    score_server.server.shutdown()
    score_server.server.server_close()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect directly, whatever proxies this machine has."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def score_server(no_proxy: None) -> Iterator[ScoreServer]:
    """A server that answers the score 0.8125."""
    server = make_server()
    start(server)
    yield server
    stop(server)


@pytest.fixture
def submission_file(tmp_path: Path) -> Path:
    """A submission of two queries, in a folder of its own."""
    path = tmp_path / "handed-in" / "s.json"
    Submission("Us", {"q1.jpg": ("a.jpg", "b.jpg"), "q2.jpg": ("c.jpg", "a.jpg")}).write(path)
    return path
