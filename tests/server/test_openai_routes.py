"""Embeddings in OpenAI's form, asked with the real client of OpenAI."""

from __future__ import annotations

import base64

import httpx2
import numpy as np
import openai
import pytest

from lookalike.api.search import load_index


@pytest.fixture
def asked(client):
    """OpenAI's client of the service."""
    http = httpx2.Client(transport=client._transport)
    with openai.OpenAI(
        api_key="unused", base_url="http://127.0.0.1:8000/v1", http_client=http, max_retries=0
    ) as openai_client:
        yield openai_client


@pytest.fixture
def uri(jpeg):
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


@pytest.fixture
def expected(index_folder, jpeg):
    return load_index(index_folder).encoder.embed([jpeg]).vectors[0]


def test_models(asked, index_folder):
    (model,) = asked.models.list().data
    assert model.id == load_index(index_folder).encoder.name
    assert asked.models.retrieve(model.id).id == model.id
    with pytest.raises(openai.NotFoundError) as caught:
        asked.models.retrieve("gpt")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_data_uris_with_the_modality_image(asked, uri, expected, encoding):
    model = asked.models.list().data[0].id
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = asked.embeddings.create(model=model, input=[uri, uri], extra_body={"modality": "image"}, **options)
    assert [row.index for row in answer.data] == [0, 1]
    assert answer.model == model
    for row in answer.data:
        vector = row.embedding
        if isinstance(vector, str):
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def forms(uri):
    part = {"type": "image_url", "image_url": {"url": uri}}
    return {
        "a single data URI": {"input": uri, "modality": "image"},
        "base64 without a head": {"input": [uri.partition(",")[2]], "modality": "image"},
        "objects": {"input": [{"image": uri.partition(",")[2]}]},
        "a single object": {"input": {"image": uri}},
        "parts": {"input": [part]},
        "a part with a text as URL": {"input": [{"type": "image_url", "image_url": uri}]},
        "messages": {"messages": [{"role": "user", "content": [part]}]},
    }


@pytest.mark.parametrize("form", forms(""))
def test_the_forms_of_an_image(client, uri, expected, form):
    model = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post("/v1/embeddings", json={"model": model, **forms(uri)[form]})
    assert answer.status_code == 200, answer.text
    (row,) = answer.json()["data"]
    np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)


BAD = {
    "text": ({"input": "a red hat"}, "input.0"),
    "tokens": ({"input": [[1, 2]]}, "input.0"),
    "no input": ({}, "input"),
    "both": ({"input": "data:image/png;base64,aGk=", "messages": []}, "input"),
    "an empty list": ({"input": []}, "input"),
    "too many": ({"input": [{"image": "aGk="}] * 65}, "input"),
    "a remote URL": ({"input": [{"type": "image_url", "image_url": {"url": "https://host/a.png"}}]}, "input.0"),
    "a file": ({"input": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, "input.0"),
    "a URL as text": ({"input": "http://169.254.169.254/", "modality": "image"}, "input.0"),
    "a message of text": ({"messages": [{"role": "user", "content": "hello"}]}, "messages.0.content"),
    "a text part": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "messages.0.content.0",
    ),
    "another modality": ({"input": "aGk=", "modality": "audio"}, "modality"),
    "another encoding": ({"input": [{"image": "aGk="}], "encoding_format": "int8"}, "encoding_format"),
    "other dimensions": ({"input": [{"image": "aGk="}], "dimensions": 7}, "dimensions"),
    "not an image": ({"input": [{"image": "aGk="}]}, "image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_errors_have_openais_form(client, case):
    fields, parameter = BAD[case]
    model = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post("/v1/embeddings", json={"model": model, **fields})
    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", parameter)


def test_an_unknown_model(asked, uri):
    with pytest.raises(openai.NotFoundError) as caught:
        asked.embeddings.create(model="text-embedding-3-small", input=[uri], extra_body={"modality": "image"})
    assert "text-embedding-3-small" in str(caught.value)


def test_a_missing_token_is_an_authentication_error(make_client, tokens):
    client = make_client(token_file=tokens["file"], require_token=True)
    with openai.OpenAI(
        api_key="wrong",
        base_url="http://127.0.0.1:8000/v1",
        http_client=httpx2.Client(transport=client._transport),
        max_retries=0,
    ) as asked:
        with pytest.raises(openai.AuthenticationError):
            asked.models.list()
        assert len(asked.with_options(api_key=tokens["read"]).models.list().data) == 1
