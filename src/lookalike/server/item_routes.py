"""The indexes, their items, and the thumbnails of these."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from PIL import Image
from starlette.responses import Response

from lookalike._files import RefusedFileError, open_regular
from lookalike.data.images import MAX_BYTES, image_in_turn, read_in_memory
from lookalike.errors import UnreadableImage
from lookalike.index.store import IndexedItem
from lookalike.models.backbone_files import without_folders
from lookalike.server.batching import require_acceptable
from lookalike.server.bodies import json_response
from lookalike.server.problems import PROBLEMS, Problem
from lookalike.server.schemas import IndexAnswer, IndexesAnswer, ItemAnswer, ItemsAnswer
from lookalike.server.service import ServedIndex, Service

THUMBNAIL_SIDE = 256
_THUMBNAIL_AGE_S = 60  # an image may be replaced; until then browsers need not ask again
_MAX_ITEMS = 1000
_UPLOADS = "uploads"  # in the folder of an index
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
    304: {"description": "The client has it already"},
}
router = APIRouter(tags=["items"], responses=PROBLEMS)
After = Annotated[str | None, Query(description="return the items after this id")]
Limit = Annotated[int, Query(ge=1, le=_MAX_ITEMS, description="number of items")]


@router.get("/v1/indexes", response_model=IndexesAnswer, summary="List the indexes")
async def list_indexes(request: Request) -> IndexesAnswer:
    """List the indexes of the service."""
    service: Service = request.app.state.service
    indexes = service.indexes
    counts = await service.run("read", lambda: [len(served.loaded.index) for served in indexes.values()])
    return IndexesAnswer(
        indexes=[
            IndexAnswer(
                name=name,
                items=count,
                model=without_folders(served.loaded.encoder.name),
                dimensions=served.loaded.index.dim,
                calibrated=served.loaded.calibration is not None,
                default=number == 0,
            )
            for number, ((name, served), count) in enumerate(zip(indexes.items(), counts, strict=True))
        ]
    )


@router.get("/v1/items", response_model=ItemsAnswer, summary="List the items of the first index")
@router.get("/v1/indexes/{name}/items", response_model=ItemsAnswer, summary="List the items of an index")
async def list_items(request: Request, name: str | None = None, after: After = None, limit: Limit = 100) -> Response:
    """List items in the order of their ids; pass `next` as `after` for those that follow."""
    service: Service = request.app.state.service
    async with service.use(name) as served:
        items = await service.run("read", lambda: served.loaded.index.items(after, limit + 1))
    more = len(items) > limit
    page = items[:limit]
    return json_response(ItemsAnswer(items=list(map(item_answer, page)), next=page[-1].id if more else None))


def item_answer(item: IndexedItem) -> ItemAnswer:
    """Return an item as it is answered."""
    return ItemAnswer(id=item.id, label=item.label, metadata=dict(item.metadata))


def require_item(served: ServedIndex, item: str) -> IndexedItem:
    """Return an item, or raise a `Problem`."""
    indexed = served.loaded.index.get(item)
    if indexed is None:
        raise Problem("not-found", "there is no item with this id.", parameter="id")
    return indexed


def uploads_folder(served: ServedIndex) -> Path:
    """Return the folder of the images that clients have sent to an index."""
    assert served.loaded.path is not None  # every index of a service is loaded from a folder
    return served.loaded.path.absolute() / _UPLOADS


@router.get("/v1/items/{item:path}/thumbnail", response_class=Response, summary="Show a thumbnail", responses=IMAGE)
@router.get(
    "/v1/indexes/{name}/items/{item:path}/thumbnail",
    response_class=Response,
    summary="Show a thumbnail of one of several indexes",
    responses=IMAGE,
)
async def thumbnail(request: Request, item: str, name: str | None = None) -> Response:
    """Return an item's image as a JPEG of at most 256 × 256 pixels, without EXIF data."""
    service: Service = request.app.state.service
    async with service.use(name) as served:
        data, tag = await service.run("thumbnail", lambda: _thumbnail(served, item, service))
    headers = {"ETag": tag, "Cache-Control": f"private, max-age={_THUMBNAIL_AGE_S}"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(data, media_type="image/jpeg", headers=headers)


def _thumbnail(served: ServedIndex, item: str, service: Service) -> tuple[bytes, str]:
    """Return a thumbnail and its tag.

    The path is the one that the index recorded: no part of a request becomes a path, and a file outside the folder of
    the images is not opened.
    """
    path = require_item(served, item).path
    folders = [folder for folder in (served.loaded.index.root, uploads_folder(served)) if folder is not None]
    if path is None or not any(_is_inside(path, folder) for folder in folders):
        raise Problem("not-found", "the item has no image file.", parameter="id")
    try:
        with image_in_turn(path):
            with open_regular(path, MAX_BYTES) as file:
                data = file.read()
            require_acceptable(item, data, service.options.max_pixels)
            (pixels,) = read_in_memory(item, data, [2 * THUMBNAIL_SIDE])
    except (UnreadableImage, OSError, RefusedFileError):
        raise Problem("not-found", "the item's image file is missing or cannot be read.", parameter="id") from None
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue(), f'"{hashlib.sha256(buffer.getvalue()).hexdigest()[:16]}"'


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether a path is inside a folder as it is spelled; a link in it may lead elsewhere, as its owner decided."""
    return Path(os.path.normpath(path)).is_relative_to(folder)


@router.get("/v1/items/{item:path}", response_model=ItemAnswer, summary="Show an item")
@router.get("/v1/indexes/{name}/items/{item:path}", response_model=ItemAnswer, summary="Show an item of an index")
async def show_item(request: Request, item: str, name: str | None = None) -> Response:
    """Return label and metadata of an item."""
    service: Service = request.app.state.service
    async with service.use(name) as served:
        return json_response(item_answer(await service.run("read", lambda: require_item(served, item))))
