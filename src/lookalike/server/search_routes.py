"""`POST /v1/search`: the items that are most similar to an image, an item or a vector."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from lookalike.server.bodies import as_model, content_type, decode_image, parse_form, parse_json, read_body
from lookalike.server.problems import Problem
from lookalike.server.schemas import HitAnswer, ProblemAnswer, SearchAnswer, SearchBody
from lookalike.server.service import ServedIndex, Service
from lookalike.types import Embeddings, Vectors, l2_normalize

QUERY_ID = "\0query"  # no item has it, so that no hit is dropped as the query itself

JSON, FORM = "application/json", "multipart/form-data"
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemAnswer, "content": {"application/problem+json": {}}, "description": text}
    for status, text in {
        400: "The body cannot be parsed",
        401: "A token is needed",
        403: "Not allowed",
        404: "No such index or item",
        408: "The body arrived too slowly",
        413: "The body is too large",
        415: "Another content type",
        422: "A value that is not allowed, or an image that cannot be read",
        429: "Too many images are waiting; `Retry-After` says when to try again",
        504: "The deadline has passed",
    }.items()
}
SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "string", "format": "binary", "description": "an image file"},
                        "where": {"type": "string", "description": SearchBody.model_fields["where"].description},
                    },
                    "required": ["image"],
                    "additionalProperties": False,
                }
            },
            JSON: {"schema": SearchBody.model_json_schema()},
        },
    }
}
_ONE_OF = "send exactly one of `image`, `id` and `vector`."
router = APIRouter(tags=["search"], responses=PROBLEMS)
TopK = Annotated[int | None, Query(ge=1, description="number of hits; by default 10, or all items if there are fewer")]


@router.post("/v1/search", response_model=SearchAnswer, openapi_extra=SEARCH_BODY, summary="Search the first index")
async def search(request: Request, k: TopK = None) -> Response:
    """Find the items that are most similar to an image: `curl -F image=@query.jpg 'http://127.0.0.1:8000/v1/search?k=10'`."""
    return await _search(request, None, k)


@router.post(
    "/v1/indexes/{name}/search", response_model=SearchAnswer, openapi_extra=SEARCH_BODY, summary="Search an index"
)
async def search_index(request: Request, name: str, k: TopK = None) -> Response:
    """Find the items of one of several indexes."""
    return await _search(request, name, k)


async def _search(request: Request, name: str | None, top_k: int | None) -> Response:
    start = time.perf_counter()
    service: Service = request.app.state.service
    limit = service.options.max_top_k
    if top_k is not None and top_k > limit:
        raise Problem("invalid-request", f"`k` must be at most {limit}, got {top_k}.", parameter="k")
    image, query = await _read_query(request, service)
    async with service.use(name) as served:
        vectors = await _query_vectors(served, image, query)
        hits = await service.run("search", lambda: _find(served, vectors, query, top_k))
    answer = SearchAnswer(hits=hits, took_ms=round(1000 * (time.perf_counter() - start), 3))
    return json_response(answer)


def json_response(answer: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as JSON; ids of files whose names are not valid Unicode are escaped."""
    return Response(json.dumps(answer.model_dump()), status, headers, media_type=JSON)


async def _read_query(request: Request, service: Service) -> tuple[bytes | None, SearchBody]:
    """Return the image, if there is one, and the other fields of the query."""
    body = await read_body(request, service.options, service.monitor)
    kind = content_type(request)
    if kind == FORM:
        fields = parse_form(request, body, files=["image"])
        images = fields.pop("image", [])
        if len(images) != 1 or not images[0]:
            raise Problem("invalid-request", "the form must hold one image file as `image`.", parameter="image")
        query = as_model({name: values[-1] for name, values in fields.items()}, SearchBody)
        if query.model_fields_set & {"id", "vector"}:
            raise Problem("invalid-request", _ONE_OF)
        return images[0], query
    if kind not in (JSON, ""):
        raise Problem("unsupported-media-type", f"send {FORM} or {JSON}.")
    query = parse_json(body, SearchBody)
    if sum(value is not None for value in (query.image, query.id, query.vector)) != 1:
        raise Problem("invalid-request", _ONE_OF)
    return (None if query.image is None else decode_image(query.image, "image")), query


async def _query_vectors(served: ServedIndex, image: bytes | None, query: SearchBody) -> Vectors | None:
    """Return the embedding `(1, dim)` of the query; None for an item, which has one in the index."""
    if image is not None:
        return await served.queue.embed([image])
    if query.vector is None:
        return None
    dim = served.loaded.index.dim
    if len(query.vector) != dim:
        raise Problem(
            "invalid-request", f"`vector` must have {dim} numbers, got {len(query.vector)}.", parameter="vector"
        )
    vector = np.array([query.vector])
    largest = np.abs(vector).max()
    if not largest > 0:
        raise Problem("invalid-request", "`vector` must not be zero.", parameter="vector")
    return l2_normalize(vector / largest)  # which fits into float32


def _find(served: ServedIndex, vectors: Vectors | None, query: SearchBody, top_k: int | None) -> list[HitAnswer]:
    index = served.loaded.index
    query_id = QUERY_ID
    if vectors is None:
        if query.id is None or query.id not in index:
            raise Problem("not-found", "there is no item with this id.", parameter="id")
        query_id, vectors = query.id, index.vectors_of([query.id])
    if not len(index):
        return []
    embeddings = Embeddings((query_id,), vectors, served.queue.encoder.fingerprint)
    (hits,) = index.search(embeddings, top_k, where=query.where)
    items = index.get_all([hit.id for hit in hits])
    return [
        HitAnswer(id=hit.id, score=round(hit.score, 6), label=item.label, metadata=dict(item.metadata))
        for hit, item in zip(hits, items, strict=True)
        if item is not None  # removed meanwhile
    ]
