"""`post` against a real HTTP server that answers, refuses, hangs, breaks off, redirects or answers nonsense."""

from __future__ import annotations

import csv
import hashlib
import http.client
import json
import logging
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

import pytest

from lookalike._lock import locked
from lookalike.api import post as post_module
from lookalike.api.evaluate import submit
from lookalike.api.post import post
from lookalike.errors import DataError, ModelError, OptionError, PostError, StorageError
from lookalike.evaluation import http_post
from lookalike.progress import Silent
from score_server import make_server, raw, reply, start, stop


@pytest.fixture(autouse=True)
def impatient(no_proxy, monkeypatch):
    monkeypatch.setattr(post_module, "_PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(http_post, "TIMEOUT_S", 0.5)


class Listener(Silent):
    """Remembers the lines for the user; `act` is called with their number."""

    def __init__(self, act=lambda _count: None):
        self.messages = []
        self.act = act

    def info(self, text):
        self.messages.append(text)
        self.act(len(self.messages))


def recorded(file: Path) -> list[dict[str, str]]:
    """The lines of the record next to a submission."""
    path = file.with_name("submissions.csv")
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def statuses(file: Path) -> list[tuple[str, str]]:
    return [(line["status"], line["score"]) for line in recorded(file)]


class TestAnAnswer:
    def test_the_file_is_sent_as_it_is_and_the_score_is_recorded(self, score_server, submission_file, bundle):
        listener = Listener()
        posted = post(submission_file, score_server.url, model=bundle, progress=listener)
        assert (posted.status, posted.score) == (200, 0.8125)
        ((path, headers, body),) = score_server.requests
        assert (path, body) == ("/submit", submission_file.read_bytes())
        assert (headers["Content-Type"], headers["Host"]) == ("application/json", score_server.host)
        (line,) = recorded(submission_file)
        info = json.loads((bundle / "bundle.json").read_text())
        assert line == {
            "time_utc": f"{posted.time:%Y-%m-%dT%H:%M:%SZ}",
            "sha256": hashlib.sha256(body).hexdigest(),
            "file": "s.json",
            "model": info["name"],
            "fingerprint": info["fingerprint"],
            "url": score_server.url,
            "status": "200",
            "score": "0.8125",
        }
        assert "accuracy 0.8125" in listener.messages[0]
        assert sorted(p.name for p in submission_file.parent.iterdir()) == ["s.json", "submissions.csv"]

    @pytest.mark.parametrize("body", ['{"score": 880}', '{"score": 880.0, "accuracy": 1}', '\ufeff{"score": 880}'])
    def test_the_field_of_the_score(self, score_server, submission_file, body):
        score_server.replies = [reply(201, body.encode("utf-8"))]
        assert post(submission_file, score_server.url, score_field="score").score == 880

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html><body>thank you</body></html>",
            b"0.8125",
            b"[1]",
            b"{",
            b"{}",
            b'{"accuracy": "0.8"}',
            b'{"accuracy": true}',
            b'{"accuracy": null}',
            b'{"accuracy": NaN}',
            b'{"accuracy": 1e999}',
            b'{"accuracy": ' + b"9" * 400 + b"}",
            b'{"accuracy": ' + b"9" * 5000 + b"}",
            b"[" * 60_000,
            b'{"accuracy": 1, "x": "' + b"x" * 70_000 + b'"}',
            b"\xff\xfe\x00",
        ],
    )
    def test_nonsense(self, score_server, submission_file, body):
        score_server.replies = [reply(200, body)]
        with pytest.raises(PostError) as caught:
            post(submission_file, score_server.url)
        assert (caught.value.status, caught.value.may_be_counted) == (200, True)
        assert len(str(caught.value)) < 600
        assert "'accuracy'" in str(caught.value)
        assert statuses(submission_file) == [("200", "")]
        with pytest.raises(OptionError):
            post(submission_file, score_server.url)
        assert len(score_server.requests) == 1

    @pytest.mark.parametrize(
        ("status", "counts"), [(400, False), (401, False), (429, False), (500, True), (503, False)]
    )
    def test_a_refusal(self, score_server, submission_file, status, counts):
        score_server.replies = [reply(status, '{"error": "unknown group"}'), reply(200, '{"accuracy": 1}')]
        with pytest.raises(PostError, match="unknown group") as caught:
            post(submission_file, score_server.url)
        assert (caught.value.status, caught.value.may_be_counted) == (status, counts)
        assert statuses(submission_file) == [(str(status), "")]
        if counts:
            with pytest.raises(OptionError, match=str(status)):
                post(submission_file, score_server.url)
        else:
            assert post(submission_file, score_server.url).score == 1

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, score_server, submission_file, status):
        score_server.replies = [reply(status, Location="/elsewhere?key=secret")]
        with pytest.raises(PostError, match=r"/elsewhere\?…") as caught:
            post(submission_file, score_server.url)
        assert "secret" not in str(caught.value)
        assert [path for path, _, _ in score_server.requests] == ["/submit"]
        assert statuses(submission_file) == [(str(status), "")]


class TestNoAnswer:
    @pytest.mark.parametrize("text", [b"", b"HTT", b"nonsense\r\n\r\n"])
    def test_a_connection_that_breaks_off_before_the_answer(self, score_server, submission_file, text):
        score_server.replies = [raw(text)]
        with pytest.raises(PostError, match="may have been counted") as caught:
            post(submission_file, score_server.url)
        assert (caught.value.status, caught.value.may_be_counted) == (None, True)
        self.is_not_repeated(score_server, submission_file, [("", "")])

    @pytest.mark.parametrize(
        "text",
        [
            b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"accuracy": 1}',
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"accuracy": 1}\r\n',
        ],
    )
    def test_a_connection_that_breaks_off_within_the_answer(self, score_server, submission_file, text):
        score_server.replies = [raw(text)]
        with pytest.raises(PostError, match="broke off") as caught:
            post(submission_file, score_server.url)
        assert (caught.value.status, caught.value.may_be_counted) == (200, True)
        self.is_not_repeated(score_server, submission_file, [("200", "")])

    def test_a_server_that_hangs(self, score_server, submission_file):
        score_server.replies = [score_server.hang]
        with pytest.raises(PostError, match=r"no answer within 0\.5 s") as caught:
            post(submission_file, score_server.url)
        assert caught.value.may_be_counted
        self.is_not_repeated(score_server, submission_file, [("", "")])

    def test_a_server_that_hangs_within_the_answer(self, score_server, submission_file):
        def begin(handler):
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")(handler)
            handler.wfile.flush()
            score_server.hang(handler)

        score_server.replies = [begin]
        with pytest.raises(PostError, match="broke off"):
            post(submission_file, score_server.url)
        self.is_not_repeated(score_server, submission_file, [("200", "")])

    def test_an_interruption(self, score_server, submission_file, monkeypatch):
        def interrupt(_connection):
            raise KeyboardInterrupt

        listener = Listener()
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(http.client.HTTPConnection, "getresponse", interrupt)
            post(submission_file, score_server.url, progress=listener)
        assert "may have been counted" in listener.messages[-1]
        assert statuses(submission_file) == [("", "")]
        with pytest.raises(OptionError, match="without an answer"):
            post(submission_file, score_server.url)

    def is_not_repeated(self, score_server, file, lines):
        assert score_server.bodies == [file.read_bytes()]
        assert statuses(file) == lines
        with pytest.raises(OptionError) as caught:
            post(file, score_server.url)
        assert caught.value.argument == "again"
        assert len(score_server.requests) == 1
        score_server.replies = [reply(200, '{"accuracy": 3}')]
        assert post(file, score_server.url, again=True).score == 3
        assert statuses(file) == [*lines, ("200", "3")]


class TestNotSent:
    def test_a_server_that_is_not_there_yet(self, submission_file):
        server = make_server()
        listener = Listener(lambda count: start(server) if count == 2 else None)
        assert post(submission_file, server.url, progress=listener).score == 0.8125
        assert "refused" in listener.messages[0] and "nothing was posted" in listener.messages[0]
        assert statuses(submission_file) == [("200", "0.8125")]
        stop(server)

    def test_a_server_that_is_not_there(self, submission_file):
        listener = Listener()
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound and not listening: whoever calls is refused
            with pytest.raises(PostError, match="refused") as caught:
                post(submission_file, f"http://127.0.0.1:{taken.getsockname()[1]}/", progress=listener)
        assert not caught.value.may_be_counted
        assert len(listener.messages) == 3
        assert recorded(submission_file) == []

    def test_a_server_that_accepts_and_hangs(self, submission_file, monkeypatch):
        """The handshake of TLS is a part of the connection, which does not wait as long as for an answer."""
        monkeypatch.setattr(http_post, "CONNECT_TIMEOUT_S", 0.1)
        monkeypatch.setattr(http_post, "TIMEOUT_S", 300.0)
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PostError, match="timed out") as caught:
            post(submission_file, f"https://127.0.0.1:{silent.getsockname()[1]}/")
        assert not caught.value.may_be_counted
        assert recorded(submission_file) == []

    def test_an_answer_may_take_longer_than_the_connection(self, score_server, submission_file, monkeypatch):
        monkeypatch.setattr(http_post, "CONNECT_TIMEOUT_S", 0.1)
        monkeypatch.setattr(http_post, "TIMEOUT_S", 300.0)

        def late(handler):
            time.sleep(0.3)
            reply(200, '{"accuracy": 4}')(handler)

        score_server.replies = [late]
        assert post(submission_file, score_server.url).score == 4

    def test_an_unknown_host(self, submission_file, monkeypatch):
        calls = []

        def unknown(*arguments, **_options):
            calls.append(arguments)
            raise socket.gaierror(-2, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(PostError, match="name or service not known"):
            post(submission_file, "http://user:secret@host.invalid/")
        assert len(calls) == 1
        assert recorded(submission_file) == []

    def test_a_server_that_names_a_time(self, score_server, submission_file):
        listener = Listener()
        score_server.replies = [
            reply(429, Retry_After="0"),
            reply(503, Retry_After="Thu, 01 Jan 1970 00:00:00 GMT"),
            reply(200, '{"accuracy": 1}'),
        ]
        assert post(submission_file, score_server.url, progress=listener).score == 1
        assert statuses(submission_file) == [("429", ""), ("503", ""), ("200", "1")]
        assert "429 Too Many Requests" in listener.messages[0] and "0 s" in listener.messages[0]

    def test_a_server_that_names_a_late_time(self, score_server, submission_file):
        score_server.replies = [reply(429, Retry_After="3600")]
        with pytest.raises(PostError, match="3600 s") as caught:
            post(submission_file, score_server.url)
        assert not caught.value.may_be_counted
        assert len(score_server.requests) == 1

    def test_a_server_that_is_always_busy(self, score_server, submission_file):
        score_server.replies = [reply(503, Retry_After="0")]
        with pytest.raises(PostError, match="503"):
            post(submission_file, score_server.url)
        assert statuses(submission_file) == 4 * [("503", "")]


class TestTheFile:
    def test_it_is_posted_once_per_url(self, score_server, submission_file):
        post(submission_file, score_server.url)
        copy = submission_file.with_name("t.json")
        shutil.copy(submission_file, copy)
        for file in (submission_file, copy):
            with pytest.raises(OptionError, match=r"score 0\.8125") as caught:
                post(file, score_server.url)
            assert caught.value.argument == "again"
        with pytest.raises(OptionError):
            post(copy, score_server.url, dry_run=True)
        assert len(score_server.requests) == 1
        post(copy, score_server.url.replace("submit", "other"))
        copy.write_text(copy.read_text().replace("Us", "Them"))
        post(copy, score_server.url)
        post(submission_file, score_server.url, again=True)
        assert [line["file"] for line in recorded(copy)] == ["s.json", "t.json", "t.json", "s.json"]

    def test_a_dry_run_sends_nothing(self, score_server, submission_file):
        url = score_server.url.replace("http://", "http://us:secret@")
        posted = post(submission_file, url, dry_run=True)
        assert (posted.time, posted.status, posted.score) == (None, None, None)
        assert posted.request.startswith(f"POST {score_server.url}\n")
        assert "Us" in posted.request and posted.sha256 in posted.request
        assert "secret" not in posted.request
        assert score_server.requests == recorded(submission_file) == []

    def test_another_run_that_posts(self, score_server, submission_file):
        with locked(submission_file.with_name("submissions.csv")), pytest.raises(StorageError):
            post(submission_file, score_server.url)
        assert score_server.requests == []

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("", StorageError),
            ("query,rank1\nq,a\n", StorageError),
            ("[]", DataError),
            ("{}", DataError),
            ('{"groupname": "us", "images": []}', DataError),
            ('{"groupname": "us", "images": {}}', DataError),
            ('{"groupname": "us", "images": {"q": "a"}}', DataError),
            ('{"groupname": "us", "images": {"q": [1]}}', DataError),
            ('{"groupname": "us", "images": {"q": ["a", "a"]}}', DataError),
            ('{"groupname": "us", "images": {"q": ["a"]}, "more": {"q": ["a"]}}', DataError),
            ('{"images": {"q": ["a"]}}', DataError),
            ('{"groupname": "", "images": {"q": ["a"]}}', OptionError),
        ],
    )
    def test_something_else_than_a_submission(self, score_server, submission_file, text, error):
        submission_file.write_text(text)
        with pytest.raises(error):
            post(submission_file, score_server.url)
        assert score_server.requests == []

    def test_other_names_of_fields(self, score_server, submission_file):
        submission_file.write_text('{"team": "us", "version": 2, "answers": {"q": ["a"]}}')
        post(submission_file, score_server.url)
        assert score_server.bodies == [submission_file.read_bytes()]

    def test_invalid_arguments(self, score_server, submission_file, tmp_path):
        (tmp_path / "s.csv").write_text("query,rank1\nq,a\n")
        url = score_server.url
        calls = [
            (OptionError, "url", (submission_file, "host/path"), {}),
            (OptionError, "submission", (tmp_path / "s.csv", url), {}),
            (StorageError, "submission", (tmp_path / "none.json", url), {}),
            (OptionError, "score_field", (submission_file, url), {"score_field": ""}),
            (ModelError, "model", (submission_file, url), {"model": tmp_path}),
        ]
        for error, argument, arguments, options in calls:
            with pytest.raises(error) as caught:
                post(*arguments, **options)
            assert caught.value.argument == argument
        submission_file.with_name("submissions.csv").write_text("name,points\n")
        with pytest.raises(StorageError, match="rename it"):
            post(submission_file, url)
        assert score_server.requests == []


class TestSecrets:
    def test_no_password_in_any_message_or_file(self, score_server, submission_file, caplog):
        caplog.set_level(logging.DEBUG)
        url = f"http://us:pass%20word@{score_server.host}/submit?key=s3cret"
        echo = '{"error": "no key s3cret for us:pass word in /submit?key=s3cret"}'
        score_server.replies = [reply(401, echo), reply(200, '{"accuracy": 1}')]
        with pytest.raises(PostError) as caught:
            post(submission_file, url)
        posted = post(submission_file, url)
        path, headers, _ = score_server.requests[-1]
        assert (path, headers["Authorization"]) == ("/submit?key=s3cret", "Basic dXM6cGFzcyB3b3Jk")
        record = submission_file.with_name("submissions.csv").read_text()
        shown = f"{caught.value}{record}{posted!r}{posted}{caplog.text}"
        for secret in ("pass word", "pass%20word", "s3cret", "dXM6cGFzcyB3b3Jk"):
            assert secret not in shown

    def test_certificates_are_verified(self, submission_file, tmp_path, monkeypatch):
        if shutil.which("openssl") is None:
            pytest.skip("openssl, which makes the certificate, is not installed")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        )
        names = ["-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server = make_server()
        server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
        server.server.handle_error = lambda *_: None  # a client that does not trust it ends the handshake
        start(server)
        url = f"https://localhost:{server.server.server_address[1]}/submit"
        with pytest.raises(PostError, match="certificate"):
            post(submission_file, url)
        assert server.requests == recorded(submission_file) == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert post(submission_file, url).score == 0.8125
        stop(server)

    def test_a_proxy_of_the_environment(self, score_server, submission_file, monkeypatch):
        monkeypatch.setenv("http_proxy", f"http://me:secret@{score_server.host}")
        assert post(submission_file, "http://competition.invalid/submit").score == 0.8125
        ((path, headers, _),) = score_server.requests
        assert (path, headers["Host"]) == ("http://competition.invalid/submit", "competition.invalid")
        assert headers["Proxy-Authorization"] == "Basic bWU6c2VjcmV0"


class TestSubmit:
    def test_it_posts_what_it_wrote(self, score_server, data_folder, encoder, tmp_path):
        out = tmp_path / "s.json"
        fields = {"group_field": "team", "images_field": "answers", "score_field": "points"}
        score_server.replies = [reply(200, '{"points": 880}')]
        submission = submit(data_folder, encoder, top_k=2, group="us", out=out, post=score_server.url, **fields)
        assert submission.posted.score == 880
        assert score_server.bodies == [out.read_bytes()]
        value = json.loads(out.read_text())
        assert list(value) == ["team", "answers"]
        assert value == submission.to_dict()
        (line,) = recorded(out)
        assert (line["model"], line["fingerprint"]) == (encoder.name, encoder.fingerprint)

    def test_a_refusal_keeps_the_file(self, score_server, data_folder, encoder, tmp_path):
        out = tmp_path / "s.json"
        score_server.replies = [reply(400), reply(200, '{"accuracy": 1}')]
        with pytest.raises(PostError):
            submit(data_folder, encoder, top_k=2, out=out, post=score_server.url)
        assert post(out, score_server.url).score == 1

    def test_a_dry_run_writes_the_file_and_posts_nothing(self, score_server, data_folder, encoder, tmp_path):
        out = tmp_path / "s.json"
        submission = submit(data_folder, encoder, top_k=2, out=out, post=score_server.url, dry_run=True)
        assert submission.posted.request.startswith("POST ")
        assert out.is_file()
        assert score_server.requests == []

    def test_invalid_arguments_are_reported_before_the_work(self, data_folder, encoder, tmp_path, decoded):
        url = "http://host.invalid/"
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "submissions.csv").write_text("name,points\n")
        calls = [
            (OptionError, "post", {"post": "host/path"}),
            (OptionError, "out", {"post": url, "out": tmp_path / "s.csv"}),
            (StorageError, "out", {"post": url, "out": tmp_path / "other" / "s.json"}),
            (OptionError, "score_field", {"post": url, "score_field": ""}),
            (OptionError, "dry_run", {"dry_run": True}),
            (OptionError, "again", {"again": True}),
            (OptionError, "group_field", {"group_field": ""}),
            (OptionError, "images_field", {"group_field": "images"}),
            (OptionError, "out", {"group_field": "team", "out": tmp_path / "s.csv"}),
        ]
        for error, argument, options in calls:
            with pytest.raises(error) as caught:
                submit(data_folder, encoder, **{"out": tmp_path / "s.json", **options})
            assert caught.value.argument == argument
        assert decoded == []
        assert not (tmp_path / "s.json").exists()
