"""The address of a server, whose secrets never show, and what an answer says."""

from __future__ import annotations

import base64

import pytest

from lookalike.errors import OptionError
from lookalike.evaluation.http_post import Address, Answer

URL = "https://us:p%40ss%20word@host.example/a b?token=s3cret&n=1".replace("a b", "a%20b")


def test_the_text_of_an_address_has_no_secrets():
    address = Address.parse(URL)
    assert str(address) == "https://host.example/a%20b?…"
    assert repr(address) == "<Address: https://host.example/a%20b?…>"
    assert address.target == "/a%20b?token=s3cret&n=1"
    assert base64.b64decode(address.headers["Authorization"].removeprefix("Basic ")) == b"us:p@ss word"
    quoted = f"no 'p@ss word' nor s3cret for {address.headers['Authorization']} at {address.target}, 1 try"
    assert address.hide_secrets(quoted) == "no '…' nor … for Basic … at /a%20b?…, 1 try"


@pytest.mark.parametrize(
    ("url", "text", "host", "port", "target"),
    [
        ("http://HOST", "http://host/", "host", 80, "/"),
        ("https://host:8443/x#y", "https://host:8443/x", "host", 8443, "/x"),
        ("http://[::1]:80/x", "http://[::1]/x", "::1", 80, "/x"),
        ("http://bücher.example/ü?q=ö", "http://bücher.example/%C3%BC?…", "bücher.example", 80, "/%C3%BC?q=%C3%B6"),
    ],
)
def test_what_a_url_consists_of(url, text, host, port, target):
    address = Address.parse(url)
    assert (str(address), address.host, address.port, address.target) == (text, host, port, target)
    assert "Authorization" not in address.headers


@pytest.mark.parametrize(
    "url",
    ["", "host", "host/path", "ftp://host/", "https://", "http://host:99999/", "http://host:x/", "http://[::1/",
     "http://a b/", "http://host/\r\nX: y", "us:secret@host", "file:///secret?x", None, 3],
)  # fmt: skip
def test_other_addresses(url):
    with pytest.raises(OptionError) as caught:
        Address.parse(url, "post")
    assert caught.value.argument == "post"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "header", "seconds"),
    [
        (429, "7", 7.0),
        (503, "Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        (503, "Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        (429, "", None),
        (429, "soon", None),
        (429, "-1", None),
        (429, "9" * 400, None),
        (500, "7", None),
        (200, "7", None),
    ],
)
def test_when_the_server_may_be_asked_again(status, header, seconds):
    assert Answer(status, "", b"", retry_after=header).wait_s(now_s=10.0) == seconds


@pytest.mark.parametrize(
    ("body", "damage", "text"),
    [
        (b"", "", "without a text"),
        (b"\n <!DOCTYPE html><p>x", "", "with a page instead of JSON"),
        (b'{"error":\n "no \x1b[31m s3cret"}', "", 'with \'{"error": "no �[31m …"}\''),
        (b"\xff\xfe", "", "with '��'"),
        (b"x" * 1000, "", f"with '{'x' * 160}…'"),
        (b"half", "with a text that broke off", "with a text that broke off"),
    ],
)
def test_the_start_of_an_answer(body, damage, text):
    assert Answer(400, "", body, damage=damage).excerpt(Address.parse(URL)) == text


def test_the_target_of_a_redirect():
    address = Address.parse(URL)
    assert str(Answer(307, "", b"", location="/b?x=s3cret").redirected(address)) == "https://host.example/b?…"
    assert str(Answer(301, "", b"", location="http://other/").redirected(address)) == "http://other/"
    assert Answer(301, "", b"", location="mailto:x").redirected(address) is None
    assert Answer(301, "", b"").redirected(address) is None
    assert Answer(201, "", b"", location="/b").redirected(address) is None
