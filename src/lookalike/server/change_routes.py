"""Adds, changes and removes items; a change is durable, and visible to the next search, when it is answered."""

from __future__ import annotations

import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from lookalike._files import file_digest, write_file
from lookalike.data.images import read_header
from lookalike.errors import DataError
from lookalike.index.snapshot import sync_path
from lookalike.index.store import UNCHANGED, FileState, IndexedItem, Unchanged
from lookalike.server.access import WRITE
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
from lookalike.server.item_routes import item_answer, require_item, uploads_folder
from lookalike.server.problems import PROBLEMS, Problem
from lookalike.server.schemas import ItemAnswer, ItemBody, ItemChangeBody
from lookalike.server.service import ServedIndex, Service
from lookalike.types import Embeddings

_MAX_ID = 1024  # characters
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "TIFF": ".tif", "HEIF": ".heic", "DIB": ".bmp"}
B = TypeVar("B", ItemBody, ItemChangeBody)


def _body(model: type[ItemBody] | type[ItemChangeBody], required: list[str]) -> dict[str, Any]:
    """Return the description of a body."""
    fields = model.model_json_schema()["properties"]
    form = {
        name: {"type": "string", "description": field["description"]}
        | ({"format": "binary"} if name == "image" else {"contentMediaType": JSON} if name == "metadata" else {})
        for name, field in fields.items()
    }
    schema = {"type": "object", "properties": form, "required": required, "additionalProperties": False}
    content = {FORM: {"schema": schema}, JSON: {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


router = APIRouter(tags=["items"], responses={**PROBLEMS, 409: {**PROBLEMS[404], "description": "The id is in use"}})
_ADD = _body(ItemBody, ["image"])
_CHANGE = _body(ItemChangeBody, [])


@dataclass(frozen=True)
class Upload:
    """The file of an image that a client has sent."""

    path: Path
    file: FileState


@router.post("/v1/items", status_code=201, response_model=ItemAnswer, openapi_extra=_ADD, summary="Add an item")
@router.post(
    "/v1/indexes/{name}/items",
    status_code=201,
    response_model=ItemAnswer,
    openapi_extra=_ADD,
    summary="Add an item to an index",
)
async def add_item(request: Request, name: str | None = None) -> Response:
    """Add an image as an item, with a label and metadata; without an id it gets a random one."""
    service: Service = request.app.state.service
    token = service.access.require(WRITE, request)
    image, body = await _read(request, service, ItemBody)
    if image is None:
        raise Problem("invalid-request", "send the item's image as `image`.", parameter="image")
    item = secrets.token_hex(8) if body.id is None else _checked_id(body.id)
    async with service.use(name) as served:
        index = served.loaded.index
        if await service.run("change", lambda: item in index):
            raise _in_use()
        vectors = await served.queue.embed([image])
        embeddings = Embeddings((item,), vectors, index.fingerprint)

        def add() -> IndexedItem:
            upload = _store(served, image)
            try:
                index.add(
                    embeddings,
                    labels={} if body.label is None else {item: body.label},
                    metadata={item: body.metadata or {}},
                    paths={item: upload.path},
                    files={item: upload.file},
                )
            except BaseException as error:
                upload.path.unlink(missing_ok=True)
                if isinstance(error, DataError):  # another request has added it meanwhile
                    raise _in_use() from None
                raise
            return require_item(served, item)

        added = await service.change(served, token, "add", item, add)
    path = f"{'/v1' if name is None else f'/v1/indexes/{name}'}/items/{quote(item)}"
    return json_response(item_answer(added), status=201, headers={"Location": path})


@router.patch("/v1/items/{item:path}", response_model=ItemAnswer, openapi_extra=_CHANGE, summary="Change an item")
@router.patch(
    "/v1/indexes/{name}/items/{item:path}",
    response_model=ItemAnswer,
    openapi_extra=_CHANGE,
    summary="Change an item of an index",
)
async def change_item(request: Request, item: str, name: str | None = None) -> Response:
    """Change label, metadata or image of an item; what is not sent stays. Metadata is merged: null removes a key."""
    service: Service = request.app.state.service
    token = service.access.require(WRITE, request)
    image, body = await _read(request, service, ItemChangeBody)
    async with service.use(name) as served:
        index = served.loaded.index
        await service.run("change", lambda: require_item(served, item))
        vectors = None if image is None else await served.queue.embed([image])
        embeddings = None if vectors is None else Embeddings((item,), vectors, index.fingerprint)
        label: str | Unchanged | None = body.label if "label" in body.model_fields_set else UNCHANGED

        def change() -> IndexedItem:
            old = require_item(served, item)
            upload = None if image is None else _store(served, image)
            try:
                index.update(
                    item,
                    label=label,
                    metadata=body.metadata,
                    embeddings=embeddings,
                    path=UNCHANGED if upload is None else upload.path,
                    file=UNCHANGED if upload is None else upload.file,
                )
            except BaseException:
                if upload is not None:
                    upload.path.unlink(missing_ok=True)
                raise
            if upload is not None:
                _remove_upload(served, old)
            return require_item(served, item)

        changed = await service.change(served, token, "change", item, change)
    return json_response(item_answer(changed))


@router.delete("/v1/items/{item:path}", status_code=204, summary="Remove an item")
@router.delete("/v1/indexes/{name}/items/{item:path}", status_code=204, summary="Remove an item of an index")
async def remove_item(request: Request, item: str, name: str | None = None) -> Response:
    """Remove an item. The file of an upload is removed, too; a file that was indexed from a folder stays."""
    service: Service = request.app.state.service
    token = service.access.require(WRITE, request)
    async with service.use(name) as served:

        def remove() -> None:
            old = require_item(served, item)
            served.loaded.index.remove([item])
            _remove_upload(served, old)

        await service.change(served, token, "remove", item, remove)
    return Response(status_code=204)


async def _read(request: Request, service: Service, model: type[B]) -> tuple[bytes | None, B]:
    """Return image and fields of a form or a JSON body."""
    body = await read_body(request, service.options, service.monitor)
    if require_content_type(request, FORM, JSON) == FORM:
        values = parse_form(request, body, files=["image"])
        images = values.pop("image", [])
        if len(images) > 1 or not all(images):
            raise Problem("invalid-request", "the form must hold one image file as `image`.", parameter="image")
        fields = {name: texts[-1] for name, texts in values.items()}
        if "metadata" in fields:
            fields["metadata"] = parse_json_field(fields["metadata"], "metadata")
        return (images[0] if images else None), as_model(fields, model)
    parsed = parse_json(body, model)
    return (None if parsed.image is None else decode_image(parsed.image, "image")), parsed


def _checked_id(item: str) -> str:
    """Return an id in Unicode's NFC, or raise a `Problem` for one that no address can name."""
    item = unicodedata.normalize("NFC", item)
    parts = item.split("/")
    has_control = any(unicodedata.category(character) in ("Cc", "Cs") for character in item)
    if len(item) > _MAX_ID or has_control or not {"", ".", ".."}.isdisjoint(parts) or parts[-1] == "thumbnail":
        raise Problem(
            "invalid-request",
            f"`id` must have 1 to {_MAX_ID} characters, no control character, no part between slashes that is empty or "
            "dots, and not end in thumbnail.",
            parameter="id",
        )
    return item


def _in_use() -> Problem:
    return Problem("conflict", "there is an item with this id; change it with PATCH.", parameter="id")


def _store(served: ServedIndex, image: bytes) -> Upload:
    """Write an upload as a file of its own, whose name the service chooses, in the folder of the index."""
    image_format, _ = read_header("image", image)
    suffix = _SUFFIXES.get(image_format or "", f".{(image_format or 'image').lower()}")
    folder = uploads_folder(served)
    path = folder / f"{secrets.token_hex(16)}{suffix}"

    def write(temporary: Path) -> None:
        temporary.write_bytes(image)
        sync_path(temporary)

    write_file(path, write)
    sync_path(folder)
    status = path.stat()
    return Upload(path, FileState(status.st_size, status.st_mtime_ns, file_digest(path)))


def _remove_upload(served: ServedIndex, item: IndexedItem) -> None:
    """Remove the file of an item that is gone, if a client has sent it."""
    if item.path is not None and item.path.parent == uploads_folder(served):
        item.path.unlink(missing_ok=True)
