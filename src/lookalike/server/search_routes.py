"""`POST /v1/search`: the items that are most similar to an image, an item or a vector."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Query as QueryParameter
from starlette.responses import Response

from lookalike.api.queries import ItemId, Query, ResolvedQuery, resolve_queries
from lookalike.api.search import file_lookup, require_calibration, search_others
from lookalike.errors import UnreadableImage, renamed_argument
from lookalike.index.filters import Filter
from lookalike.server.bodies import (
    FORM,
    JSON,
    as_model,
    decode_image,
    json_response,
    parse_form,
    parse_json,
    parse_json_field,
    read_body,
    require_content_type,
)
from lookalike.server.problems import PROBLEMS, Problem
from lookalike.server.schemas import EncodedImage, HitAnswer, SearchAnswer, SearchBody
from lookalike.server.service import ServedIndex, Service
from lookalike.types import Embeddings, Vectors

_FIELDS = SearchBody.model_fields
_EXAMPLES = ("positive", "negative")
_TEXTS = {
    "id": "hats/12.jpg",
    "vector": "[0.1, -0.2, 0.3]",
    "crop": "25%,25%,50%,50%",
    "where": "year >= 2020",
    "min_probability": "0.8",
}
SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "an image file; repeat it to search for the mean of several images",
                        },
                        **{
                            name: {
                                "type": "array",
                                "items": {"type": "string"},
                                "description": f"{_FIELDS[name].description}. A part with a file name is an image, one "
                                "without is the id of an item; repeat it for several",
                            }
                            for name in _EXAMPLES
                        },
                        **{
                            name: {"type": "string", "description": _FIELDS[name].description, "examples": [text]}
                            for name, text in _TEXTS.items()
                        },
                    },
                    "additionalProperties": False,
                },
            },
            JSON: {"schema": SearchBody.model_json_schema()},
        },
    }
}
_ONE_OF = "send one of `image`, `id` and `vector`, or `positive` examples."
router = APIRouter(tags=["search"], responses=PROBLEMS)
TopK = Annotated[
    int | None, QueryParameter(ge=1, description="number of hits; by default 10, or all items if there are fewer")
]


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


@dataclass(frozen=True)
class _Search:
    """What a client asks for.

    Attributes:
        query: its images are bytes, and its examples bytes or `ItemId`: nothing of it is the path of a file.
        image_names: the parameters of its images, in the order of `ResolvedQuery.sources`, such as `positive.1`.
        items: the ids of the items that it is made of, by parameter.
        top_k: number of hits.
        where: which items may be hits.
        min_probability: of a hit.

    """

    query: Query
    image_names: tuple[str, ...]
    items: Mapping[str, str]
    top_k: int | None
    where: Filter | None
    min_probability: float


async def _search(request: Request, name: str | None, top_k: int | None) -> Response:
    start = time.perf_counter()
    service: Service = request.app.state.service
    limit = service.options.max_top_k
    if top_k is not None and top_k > limit:
        raise Problem("invalid-request", f"`k` must be at most {limit}, got {top_k}.", parameter="k")
    search = await _read_search(request, service, top_k)
    async with service.use(name) as served:
        resolved = await service.run("resolve", lambda: _resolve(served, search))
        embeddings = await _embed(served, search, resolved)
        hits = await service.run("search", lambda: _find(served, search, resolved, embeddings))
    answer = SearchAnswer(hits=hits, took_ms=round(1000 * (time.perf_counter() - start), 3))
    return json_response(answer)


async def _read_search(request: Request, service: Service, top_k: int | None) -> _Search:
    body, sent = await _read_fields(request, service)
    starts = sum((bool(sent["image"]), body.id is not None, body.vector is not None))
    if starts > 1 or not (starts or sent["positive"]):
        raise Problem("invalid-request", _ONE_OF)
    count = sum(not isinstance(example, str) for examples in sent.values() for example in examples)
    limit = min(service.options.max_images, service.options.max_queue)
    if count > limit:
        raise Problem("invalid-request", f"send at most {limit} images, got {count}.", parameter="image")
    image_names: list[str] = []
    items = {} if body.id is None else {"id": body.id}
    examples: dict[str, list[bytes | ItemId]] = {name: [] for name in sent}
    for kind, values in sent.items():
        for number, value in enumerate(values):
            name = kind if kind == "image" and len(values) == 1 else f"{kind}.{number}"
            if isinstance(value, str):
                items[name] = value
                examples[kind].append(ItemId(value))
            else:
                image_names.append(name)
                examples[kind].append(_decode(value, name))
    images = [image for image in examples["image"] if isinstance(image, bytes)]
    with renamed_argument("image", "images"):
        query = Query(
            images,
            id=body.id,
            vector=body.vector,
            crop=body.crop,
            positive=examples["positive"],
            negative=examples["negative"],
        )
    where = None if body.where is None else Filter.parse(body.where)
    return _Search(query, tuple(image_names), items, top_k, where, body.min_probability)


async def _read_fields(
    request: Request, service: Service
) -> tuple[SearchBody, dict[str, Sequence[bytes | EncodedImage | str]]]:
    """Return the fields of a form or a JSON body; and images and examples by field, where a text is an item's id."""
    data = await read_body(request, service.options, service.monitor)
    if require_content_type(request, FORM, JSON) == FORM:
        values = parse_form(request, data, files=["image", "vector"], mixed=_EXAMPLES)
        sent: dict[str, Sequence[bytes | EncodedImage | str]]
        sent = {name: values.pop(name, []) for name in ("image", *_EXAMPLES)}
        fields = {name: several[-1] for name, several in values.items()}
        if "vector" in fields:
            fields["vector"] = parse_json_field(fields["vector"], "vector")
        return as_model(fields, SearchBody), sent
    body = parse_json(data, SearchBody)
    images = [EncodedImage(text) for text in body.image or ()]
    return body, {"image": images, "positive": body.positive, "negative": body.negative}


def _decode(value: bytes | EncodedImage, parameter: str) -> bytes:
    if isinstance(value, EncodedImage):
        return decode_image(value.text, parameter)
    if not value:
        raise Problem("invalid-request", "the image is empty.", parameter=parameter)
    return value


def _resolve(served: ServedIndex, search: _Search) -> ResolvedQuery:
    """Look up items, and refuse what the index cannot answer before an image is embedded."""
    index = served.loaded.index
    for name, item in search.items.items():
        if item not in index:
            raise Problem("not-found", "there is no item with this id.", parameter=name)
    require_calibration(served.loaded, search.min_probability)
    resolved, _ = resolve_queries([search.query], index)
    if len(index):
        index.resolve_top_k(search.top_k, resolved)
    (query,) = resolved.values()
    return query


async def _embed(served: ServedIndex, search: _Search, query: ResolvedQuery) -> Embeddings:
    """Return the embedding of a query; its images are embedded together."""
    sources = list(query.sources)
    embedded: dict[str, Vectors] = {}
    if sources:
        try:
            vectors = await served.queue.embed(sources)
        except UnreadableImage as error:
            names = {source.path: name for source, name in zip(sources, search.image_names, strict=True)}
            name = names.get(error.path, "image")
            what = "the image" if name == "image" else f"the image `{name}`"
            raise Problem("unreadable-image", f"{what} cannot be read: {error.cause}.", parameter=name) from error
        embedded = {source.id: vectors[row : row + 1] for row, source in enumerate(sources)}
    with renamed_argument("image", "images"):
        return Embeddings((query.id,), query.vector(embedded), served.queue.encoder.fingerprint)


def _find(served: ServedIndex, search: _Search, query: ResolvedQuery, embeddings: Embeddings) -> list[HitAnswer]:
    index, calibration = served.loaded.index, served.loaded.calibration
    if not len(index):
        return []
    hits = search_others(index, embeddings, {query.id: query}, search.top_k, search.where, file_lookup(index))
    if calibration is not None:
        hits = hits.with_probabilities(calibration, search.min_probability)
    items = index.get_all([hit.id for hit in hits[0]])
    return [
        HitAnswer(
            id=hit.id,
            score=round(hit.score, 6),
            probability=None if hit.probability is None else round(hit.probability, 6),
            label=item.label,
            metadata=dict(item.metadata),
        )
        for hit, item in zip(hits[0], items, strict=True)
        if item is not None  # removed meanwhile
    ]
