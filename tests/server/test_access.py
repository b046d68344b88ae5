"""Tokens, hosts and origins."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from lookalike.errors import OptionError, StorageError
from lookalike.server.access import RateLimit, Token, read_tokens, token
from lookalike.server.options import ServiceOptions


def test_a_file_holds_the_digest_of_a_token_only(tmp_path):
    file = tmp_path / "tokens"
    value = token(file, scope="write", name="importer")
    other = token(file)
    assert value != other
    assert value not in file.read_text()
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (value, other)]
    assert read_tokens(file) == (Token("write", digests[0], "importer"), Token("read", digests[1], "line 2"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_comments_and_empty_lines_are_ignored(tmp_path):
    file = tmp_path / "tokens"
    token(file)
    file.write_text(f"# the tokens of the shop\n\n{file.read_text()}")
    assert [token.name for token in read_tokens(file)] == ["line 3"]


@pytest.mark.parametrize("options", [{"scope": "admin"}, {"name": ""}, {"name": "a b"}, {"name": "a\nwrite"}])
def test_bad_options_write_nothing(tmp_path, options):
    with pytest.raises(OptionError):
        token(tmp_path / "tokens", **options)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("text", [b"write secret\n", b"admin sha256:" + b"0" * 64, b"\xff\xfe", b"write sha256:00"])
def test_a_file_of_something_else_is_refused_and_stays(tmp_path, text):
    file = tmp_path / "tokens"
    file.write_bytes(text)
    for call in (lambda: read_tokens(file), lambda: token(file)):
        with pytest.raises(StorageError):
            call()
    assert file.read_bytes() == text


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "tokens")
    for call in (read_tokens, token):
        with pytest.raises(StorageError, match="pipe"):
            call(tmp_path / "tokens")


def test_a_client_can_ask_what_it_may_do(make_client, tokens):
    for client, without in (
        (make_client(token_file=tokens["file"]), (200, "read")),
        (make_client(token_file=tokens["file"], require_token=True), (401, None)),
    ):
        answers = {}
        for name, value in {"none": None, "wrong": "wrong", "read": tokens["read"], "write": tokens["write"]}.items():
            response = client.get("/v1/access", headers={"Authorization": f"Bearer {value}"} if value else {})
            answers[name] = response.status_code, response.json().get("scope")
        assert answers == {"none": without, "wrong": (401, None), "read": (200, "read"), "write": (200, "write")}


def test_on_this_machine_reading_is_open(make_client, tokens):
    client = make_client(token_file=tokens["file"])
    assert client.get("/v1/items").status_code == 200
    assert client.get("/v1/items", headers={"Authorization": "Bearer wrong"}).status_code == 200


@pytest.mark.parametrize("options", [{"host": "0.0.0.0"}, {"require_token": True}])
@pytest.mark.parametrize("path", ["/v1/items", "/v1/indexes", "/v1/models", "/metrics"])
def test_elsewhere_reading_needs_a_token(make_client, tokens, options, path):
    client = make_client(token_file=tokens["file"], **options)
    for authorization in (None, "Bearer wrong", f"Basic {tokens['read']}", "Bearer", f"Bearer {tokens['read']}x"):
        response = client.get(path, headers={} if authorization is None else {"Authorization": authorization})
        assert response.status_code == 401, authorization
        assert response.headers["www-authenticate"] == "Bearer"
    for scope in ("read", "write"):
        assert client.get(path, headers={"Authorization": f"Bearer {tokens[scope]}"}).status_code == 200


def test_health_needs_no_token(make_client, tokens):
    client = make_client(token_file=tokens["file"], require_token=True)
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/docs", "/openapi.json")] == [200] * 4


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LOCALHOST:9", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7", 200),
        ("shop.example", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("shop.example.evil.example:8000", 421),
        ("127.0.0.1.evil.example", 421),
        ("", 421),
        ("a:b:c", 421),
        ("[::1", 421),
    ],
)
def test_only_known_hosts_are_served(make_client, host, status):
    client = make_client(allowed_hosts=("shop.example",))
    assert client.get("/healthz", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("https://shop.example", 200),
        ("https://page.example", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1:3000", 403),
        ("null", 403),
        ("https://page.example.evil.example", 403),
    ],
)
def test_pages_of_other_sites_are_refused(make_client, jpeg, origin, status):
    client = make_client(allowed_hosts=("shop.example",), cors_origins=("https://page.example",))
    response = client.post("/v1/search", files={"image": jpeg}, headers={"Origin": origin})
    assert response.status_code == status
    allowed = response.headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://page.example" else None)


def test_without_cors_no_header_of_it_is_sent(client):
    response = client.options(
        "/v1/search",
        headers={"Origin": "http://127.0.0.1:8000", "Access-Control-Request-Method": "POST"},
    )
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_bucket_holds_the_requests_of_a_minute():
    now = 100.0
    limit = RateLimit(3, lambda: now)
    assert [limit.wait_s("a") for _ in range(4)] == [0, 0, 0, 20]
    assert limit.wait_s("b") == 0
    now += 19.5
    assert limit.wait_s("a") == 1
    now += 0.5
    assert [limit.wait_s("a") for _ in range(2)] == [0, 20]
    now += 1000
    assert [limit.wait_s("a") for _ in range(4)] == [0, 0, 0, 20]


def test_clients_that_have_gone_are_forgotten():
    now = 0.0
    limit = RateLimit(6000, lambda: now)
    for number in range(2500):
        now += 1
        assert limit.wait_s(str(number)) == 0
    assert len(limit._full_at) <= 1000


def test_each_token_and_each_address_has_its_own_limit_on_requests(make_client, tokens):
    client = make_client(token_file=tokens["file"], max_requests=2)
    for value in (None, tokens["read"], tokens["write"]):
        headers = {"Authorization": f"Bearer {value}"} if value else {}
        answers = [client.get("/v1/indexes", headers=headers) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after"] == "30"
        assert answers[2].json()["type"] == "urn:lookalike:problem:too-many-requests"
    assert client.get("/v1/indexes", headers={"Authorization": "Bearer wrong"}).status_code == 429
    error = client.get("/v1/models").json()["error"]
    assert error["type"] == "rate_limit_error"
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, 0), ({"host": "0.0.0.0"}, 6000), ({"max_requests": 5}, 5), ({"host": "::", "max_requests": 0}, 0)],
)
def test_by_default_only_other_machines_have_a_limit_on_requests(options, expected):
    assert ServiceOptions(**options).requests_per_minute == expected


@pytest.mark.parametrize(
    "options",
    [
        {"max_body": 0},
        {"max_requests": -1},
        {"max_pixels": -1},
        {"timeout": float("nan")},
        {"max_wait_ms": -1.0},
        {"cors_origins": ("*",)},
        {"cors_origins": ("https://page.example/path",)},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(OptionError) as caught:
        ServiceOptions(**options)
    assert caught.value.argument == next(iter(options))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("192.168.1.7", False), ("shop.example", False)],
)  # fmt: skip
def test_which_addresses_are_this_machine(host, expected):
    assert ServiceOptions(host=host).on_loopback is expected
