"""`POST /v1/embeddings` and `GET /v1/models` in OpenAI's form, for images."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from lookalike.models.backbone_files import without_folders
from lookalike.server.batching import EmbeddingQueue
from lookalike.server.bodies import JSON, decode_image, parse_json, read_body, require_content_type
from lookalike.server.problems import Problem
from lookalike.server.schemas import (
    EmbeddingsAnswer,
    EmbeddingsBody,
    ModelAnswer,
    ModelsAnswer,
    OpenAIErrorAnswer,
)
from lookalike.server.service import Service
from lookalike.types import Vectors

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": OpenAIErrorAnswer} for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 504)
}
BODY = {
    "requestBody": {"required": True, "content": {JSON: {"schema": EmbeddingsBody.model_json_schema()}}},
}
_FORMATS = ("float", "base64")
_DIGITS = 8  # of a fingerprint, where two models have one name
router = APIRouter(tags=["OpenAI"], responses=ERRORS)


def _queues(service: Service) -> dict[str, EmbeddingQueue]:
    """Return what embeds by the model's name; digits are added where names are equal."""
    queues = service.queues
    names = [without_folders(queue.encoder.name) for queue in queues]
    return {
        name if names.count(name) == 1 else f"{name}@{queue.encoder.fingerprint[:_DIGITS]}": queue
        for name, queue in zip(names, queues, strict=True)
    }


@router.get("/v1/models", response_model=ModelsAnswer, summary="List the models")
async def list_models(request: Request) -> ModelsAnswer:
    """List the models that embed images, one per model of the indexes."""
    queues = _queues(request.app.state.service)
    return ModelsAnswer(data=[ModelAnswer(id=name, created=queue.created) for name, queue in queues.items()])


@router.get("/v1/models/{model:path}", response_model=ModelAnswer, summary="Show a model")
async def show_model(request: Request, model: str) -> ModelAnswer:
    """Show one model."""
    return ModelAnswer(id=model, created=_find_queue(request.app.state.service, model).created)


@router.post("/v1/embeddings", response_model=EmbeddingsAnswer, openapi_extra=BODY, summary="Embed images")
async def embed(request: Request) -> Response:
    """Embed images, in OpenAI's form. Text and URLs are refused.

    `input` is one image or a list: data URIs with `"modality": "image"`, objects `{"image": base64}`, or parts
    `{"type": "image_url", "image_url": {"url": "data:…"}}`, which may also be in `messages`.
    """
    service: Service = request.app.state.service
    data = await read_body(request, service.options, service.monitor)
    require_content_type(request, JSON)
    body = parse_json(data, EmbeddingsBody)
    queue = _find_queue(service, body.model)
    if body.encoding_format not in _FORMATS:
        raise _invalid(f"`encoding_format` must be float or base64, got {body.encoding_format!r}.", "encoding_format")
    if body.dimensions not in (None, queue.encoder.dim):
        raise _invalid(f"{body.model} has {queue.encoder.dim} dimensions, got {body.dimensions}.", "dimensions")
    images = [decode_image(text, parameter) for text, parameter in _images(body)]
    limit = min(service.options.max_images, service.options.max_queue)
    if not 1 <= len(images) <= limit:
        raise _invalid(f"send 1 to {limit} images, got {len(images)}.", "input")
    vectors = await queue.embed(images)
    as_text = body.encoding_format == "base64"
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": number, "embedding": _text(vector) if as_text else vector.tolist()}
            for number, vector in enumerate(vectors)
        ],
        "model": body.model,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    return Response(to_json(answer), media_type=JSON)


def _text(vector: Vectors) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _find_queue(service: Service, model: str) -> EmbeddingQueue:
    queues = _queues(service)
    if model not in queues:
        raise Problem(
            "not-found", f"there is no model {model!r}; the models are {', '.join(queues)}.", parameter="model"
        )
    return queues[model]


def _images(body: EmbeddingsBody) -> Iterator[tuple[str, str]]:
    """Yield each image's base64 or data URI, and its place in the body."""
    if (body.input is None) == (body.messages is None):
        raise _invalid("send either `input` or `messages`.", "input")
    if body.modality not in (None, "image"):
        raise _invalid(f"`modality` must be image, got {body.modality!r}.", "modality")
    if body.messages is None:
        parts = body.input if isinstance(body.input, list) else [body.input]
        for number, part in enumerate(parts):
            yield _image(part, f"input.{number}", text_is_image=body.modality == "image"), f"input.{number}"
        return
    for number, message in enumerate(body.messages):
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            raise _invalid("`content` of a message must be a list of image_url parts.", f"messages.{number}.content")
        for position, part in enumerate(content):
            parameter = f"messages.{number}.content.{position}"
            yield _image(part, parameter, text_is_image=False), parameter


def _image(part: Any, parameter: str, *, text_is_image: bool) -> str:
    """Return the base64 or data URI of one of the three forms of an image."""
    if isinstance(part, str):
        if text_is_image or part.startswith(("data:", "http:", "https:")):
            return part
        raise _invalid("texts are not embedded; send data URIs of images.", parameter)
    if isinstance(part, dict):
        if isinstance(part.get("image"), str):
            return str(part["image"])
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, dict) else url
        if part.get("type") == "image_url" and isinstance(url, str):
            if not url.startswith(("data:", "http:", "https:")):
                raise _invalid("`url` must be a data URI.", parameter)
            return url
    raise _invalid(
        'an image is a data URI, {"image": base64} or {"type": "image_url", "image_url": {"url": "data:…"}}.', parameter
    )


def _invalid(detail: str, parameter: str) -> Problem:
    return Problem("invalid-request", detail, parameter=parameter)
