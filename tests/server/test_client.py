"""The typed client: the same answers as HTTP, one sentence for each failure, and no lost call."""

from __future__ import annotations

import os
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from lookalike.api.queries import Query
from lookalike.api.search import load_index, search
from lookalike.errors import DataError, LookalikeError, OptionError, ServiceError
from lookalike.server import client as client_module
from lookalike.server.client import Client


@pytest.fixture
def service(client):
    with Client("http://127.0.0.1:8000", transport=client._transport) as remote:
        yield remote


def test_the_hits_of_python(service, index_folder, jpeg, tmp_path):
    (tmp_path / "q.jpg").write_bytes(jpeg)
    (expected,) = search(index_folder, [jpeg], top_k=3)
    for image in (jpeg, tmp_path / "q.jpg", str(tmp_path / "q.jpg")):
        hits = service.search(image, top_k=3)
        assert [(hit.id, hit.score) for hit in hits] == [(hit.id, round(hit.score, 6)) for hit in expected]


def test_a_file_that_never_ends_is_refused(service, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="not a file"):
            service.search(path)


def test_pixels_are_sent_without_loss(service, sample_images):
    image = sample_images["coffee"]
    assert service.search(image, top_k=2) == service.search(np.asarray(image), top_k=2)


def test_embeddings_of_python_and_a_search_with_one(service, index_folder, jpeg):
    vectors = service.embed([jpeg, jpeg])
    expected = load_index(index_folder).encoder.embed([jpeg]).vectors
    np.testing.assert_allclose(vectors, np.repeat(expected, 2, axis=0), atol=1e-5)
    by_vector, by_image = (service.search(vector=vectors[0]), service.search(jpeg))
    assert [hit.id for hit in by_vector] == [hit.id for hit in by_image]


def test_an_item_and_a_filter(service):
    hits = service.search(item="more/cat2.jpg", where="not id in ['more/cat1.jpg']", top_k=11)
    assert len(hits) == 10
    assert not {"more/cat2.jpg", "more/cat1.jpg"} & {hit.id for hit in hits}


def ids(hits):
    return [hit.id for hit in hits]


def test_several_images_crops_and_examples(service, index_folder, images, jpeg):
    cat, rocket = images / "more" / "cat2.jpg", images / "more" / "rocket1.jpg"
    calls = [
        (service.search([jpeg, cat], top_k=8), Query([jpeg, cat.read_bytes()])),
        (service.search([jpeg]), Query([jpeg])),
        (service.search(cat, crop="0%,0%,50%,50%", top_k=8), Query([cat.read_bytes()], crop="0%,0%,50%,50%")),
        (
            service.search(jpeg, positive=["more/cat2.jpg", rocket], negative=[cat], top_k=8),
            Query([jpeg], positive=["more/cat2.jpg", rocket.read_bytes()], negative=[cat.read_bytes()]),
        ),
        (service.search(positive=["more/cat2.jpg"], top_k=8), Query(positive=["more/cat2.jpg"])),
        (
            service.search(item="more/cat2.jpg", negative=[jpeg], top_k=8),
            Query(id="more/cat2.jpg", negative=[jpeg]),
        ),
    ]
    for hits, query in calls:
        (expected,) = search(index_folder, [query], top_k=len(hits))
        assert ids(hits) == ids(expected)
        assert len(hits) >= 8


def test_probabilities_and_no_match(make_client, calibrated_folder, jpeg):
    client = make_client({"calibrated": calibrated_folder})
    (expected,) = search(calibrated_folder, [jpeg], top_k=5)
    with Client(transport=client._transport) as remote:
        hits = remote.search(jpeg, top_k=5)
        assert [hit.probability for hit in hits] == pytest.approx([hit.probability for hit in expected], abs=2e-5)
        assert remote.search(jpeg, min_probability=hits[1].probability - 1e-6) == hits[:2]
        assert remote.search(jpeg, min_probability=1.0) == ()
        assert remote.indexes()[0].calibrated


def test_a_text_is_an_item_and_never_a_file(service, images):
    path = images / "more" / "cat2.jpg"
    with pytest.raises(ServiceError) as caught:
        service.search(positive=[str(path)])
    assert (caught.value.status, caught.value.argument) == (404, "positive.0")
    assert service.search(positive=[path])


def test_items_of_all_pages(service, monkeypatch, images):
    assert [item.id for item in service.items()] == sorted(
        p.relative_to(images).as_posix() for p in images.rglob("*.jpg")
    )
    assert service.get("more/cat2.jpg").id == "more/cat2.jpg"
    assert service.thumbnail("more/cat2.jpg").startswith(b"\xff\xd8")
    (summary,) = service.indexes()
    assert (summary.name, summary.items) == ("small", 12)
    assert service.is_ready()


def test_one_of_several_indexes(make_client, index_folder, jpeg):
    client = make_client({"first": index_folder, "second": index_folder})
    with Client(index="second", transport=client._transport) as remote:
        assert len(remote.search(jpeg, top_k=2)) == 2
    with Client(index="third", transport=client._transport) as remote, pytest.raises(ServiceError) as caught:
        remote.search(jpeg)
    assert (caught.value.status, caught.value.kind) == (404, "not-found")


def test_an_answer_that_is_an_error(service, jpeg):
    with pytest.raises(ServiceError) as caught:
        service.search(jpeg, top_k=13)
    assert (caught.value.status, caught.value.kind, caught.value.argument) == (422, "invalid-request", "top_k")
    with pytest.raises(ServiceError) as caught:
        service.search(b"not an image")
    assert (caught.value.status, caught.value.kind) == (422, "unreadable-image")
    with pytest.raises(ServiceError) as caught:
        service.embed([jpeg], model="other")
    assert (caught.value.status, caught.value.argument) == (404, "model")


def test_bad_arguments_are_not_sent(service, tmp_path):
    for call, error in (
        (service.search, OptionError),
        (lambda: service.search(b"x", vector=[1.0]), OptionError),
        (lambda: service.search([]), OptionError),
        (lambda: service.search(negative=["more/cat2.jpg"]), OptionError),
        (lambda: service.search(b"x", min_probability=float("nan")), OptionError),
        (lambda: service.search(b"x", positive="more/cat2.jpg"), OptionError),
        (lambda: service.search(vector=[float("nan")]), OptionError),
        (lambda: service.search(vector=["a"]), OptionError),
        (lambda: service.search(tmp_path / "missing.jpg"), DataError),
        (lambda: service.get(7), OptionError),
        (lambda: Client("127.0.0.1:8000"), OptionError),
        (lambda: Client(timeout=0.0), OptionError),
    ):
        with pytest.raises(error):
            call()


def test_a_token_is_sent(make_client, tokens):
    client = make_client(token_file=tokens["file"], require_token=True)
    with Client(token=tokens["read"], transport=client._transport) as remote:
        assert len(list(remote.items())) == 12
    with Client(transport=client._transport) as remote, pytest.raises(ServiceError) as caught:
        remote.indexes()
    assert caught.value.status == 401


class Answers(httpx2.BaseTransport):
    """Answers with these, one after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def handle_request(self, _request):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, headers = answer
        return httpx2.Response(status, headers=headers, json={"data": [{"id": "m"}]})


@pytest.fixture
def waits(monkeypatch):
    seconds = []
    monkeypatch.setattr(client_module.time, "sleep", seconds.append)
    return seconds


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(waits):
    transport = Answers((429, {"Retry-After": "3"}), (503, {}), (200, {}))
    assert Client(transport=transport).models() == ["m"]
    assert waits == [3.0, 0.2]


def test_a_lost_connection_is_tried_again(waits):
    transport = Answers(httpx2.RemoteProtocolError("Server disconnected"), (200, {}))
    assert Client(transport=transport).models() == ["m"]


@pytest.mark.parametrize("last", [(503, {}), httpx2.ConnectError("refused")])
def test_after_the_last_try_it_is_an_error(waits, last):
    transport = Answers((503, {}), last, (200, {}))
    with pytest.raises(ServiceError):
        Client(transport=transport, retries=1).models()
    assert len(transport.answers) == 1


def test_a_timeout_is_not_tried_again(waits):
    transport = Answers(httpx2.ReadTimeout("timed out"), (200, {}))
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1"):
        Client(transport=transport).models()


def test_no_service_is_an_error_in_one_sentence():
    with Client("http://127.0.0.1:9", retries=0) as remote:
        assert not remote.is_ready()
        with pytest.raises(LookalikeError, match="is the service running"):
            remote.models()


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "I;16", "1"])
def test_an_image_of_any_mode_is_sent(service, mode):
    assert service.search(Image.new(mode, (20, 20)), top_k=1)
