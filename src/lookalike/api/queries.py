"""What a search looks for: images, parts of them, items of the index, vectors, and examples for and against.

Examples are combined by Rocchio's formula (Rocchio 1971, "Relevance feedback in information retrieval"): the query plus
the mean of positive examples minus that of negative ones, with the usual weights (Manning, Raghavan and Schütze 2008,
"Introduction to Information Retrieval", section 9.1.1).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lookalike._files import RefusedFileError, file_identity, open_regular
from lookalike.errors import DataError, OptionError, UnreadableImage, renamed_argument
from lookalike.index.index import Index
from lookalike.models.pipeline import File, ImageInput, ImagePart, InMemoryImage, Source, as_sources
from lookalike.types import Pixels, Skipped, Vectors, l2_normalize

POSITIVE_WEIGHT = 0.75  # of the mean of positive examples, where the query has 1
NEGATIVE_WEIGHT = 0.15
_MAX_VECTOR_BYTES = 1 << 20
_ZERO = 1e-6  # length of a vector whose parts cancel out


@dataclass(frozen=True)
class CropBox:
    """A part of an upright image: its left top corner and its size, in pixels or shares of the image's sides.

    Attributes:
        x, y, width, height: at least 0; the sizes above 0.
        is_share: whether they are shares from 0 to 1.

    """

    x: float
    y: float
    width: float
    height: float
    is_share: bool = False

    def __post_init__(self) -> None:
        sides = (self.x, self.y, self.width, self.height)
        if not (all(math.isfinite(side) and side >= 0 for side in sides) and self.width > 0 and self.height > 0):
            raise OptionError(
                f"`crop` must have a corner of at least 0 and a size above 0, got {self}.", argument="crop"
            )

    @classmethod
    def parse(cls, text: str) -> CropBox:
        """Read x,y,width,height: pixels, such as 10,20,300,200, or shares, such as 10%,5%,50%,50%."""
        parts = [part.strip() for part in text.split(",")]
        shares = [part.endswith("%") for part in parts]
        try:
            sides = [float(part.removesuffix("%")) for part in parts]
        except ValueError:
            sides = []
        if len(sides) != 4 or len(set(shares)) > 1:
            raise OptionError(
                "`crop` must be x,y,width,height, all in pixels or all in %, such as 10,20,300,200 or 0%,0%,50%,50%, "
                f"got {text[:60]!r}.",
                argument="crop",
            )
        x, y, width, height = (side / 100 if shares[0] else side for side in sides)
        return cls(x, y, width, height, is_share=shares[0])

    def __str__(self) -> str:
        sides = (self.x, self.y, self.width, self.height)
        return ",".join(f"{100 * side:g}%" if self.is_share else f"{side:g}" for side in sides)

    def cut(self, pixels: Pixels) -> Pixels:
        """Return the part of an image `(h, w, 3)`; what is outside of it is dropped."""
        height, width = pixels.shape[:2]
        across, down = (width, height) if self.is_share else (1, 1)
        left, top = round(self.x * across), round(self.y * down)
        right, bottom = round((self.x + self.width) * across), round((self.y + self.height) * down)
        part = pixels[top : max(bottom, top + 1), left : max(right, left + 1)]
        if not part.size:
            raise OptionError(
                f"the crop {self} is outside of an image of {width} × {height} pixels; choose a part of it.",
                argument="crop",
            )
        return np.ascontiguousarray(part)


@dataclass(frozen=True)
class ItemId:
    """The id of an item as an example. Unlike a plain text it never names a file."""

    id: str


@dataclass(frozen=True, eq=False)
class Query:
    """One query of a search, made of examples; an image, an item or a vector that occurs in it is not its own hit.

    Attributes:
        images: images whose mean is searched for; of one, the image itself.
        id: the id of an item of the index, instead of images.
        vector: `(dim,)` in the space of the index's embeddings, of any length but 0, instead of images.
        crop: the part of each of `images` that counts: a `CropBox`, or text such as 10,20,300,200 or 0%,0%,50%,50%.
        positive: further examples of what is searched for: images, or ids of items.
        negative: examples of what is not searched for: images, or ids of items.

    Raises:
        OptionError: nothing to search for, more than one of `images`, `id` and `vector`, or a wrong value.

    """

    images: Sequence[ImageInput] = ()
    id: str | None = None
    vector: npt.ArrayLike | None = None
    crop: CropBox | str | None = None
    positive: Sequence[ImageInput | ItemId] = ()
    negative: Sequence[ImageInput | ItemId] = ()
    _vector: Vectors | None = field(init=False, repr=False, default=None)  # (1, dim)

    def __post_init__(self) -> None:
        for name in ("images", "positive", "negative"):
            value = getattr(self, name)
            if isinstance(value, str | bytes) or not isinstance(value, Sequence):
                raise OptionError(f"`{name}` must be a list, got {type(value).__name__}.", argument=name)
        if self.id is not None and not isinstance(self.id, str):
            raise OptionError(f"`id` must be a text, got {type(self.id).__name__}.", argument="id")
        has = {"images": len(self.images) > 0, "id": self.id is not None, "vector": self.vector is not None}
        starts = [name for name, is_passed in has.items() if is_passed]
        if len(starts) > 1:
            raise OptionError(f"a query takes `{starts[0]}` or `{starts[1]}`, got both.", argument=starts[1])
        if not (starts or self.positive):
            raise OptionError("a query needs an image, an id, a vector or a positive example.", argument="images")
        if self.crop is not None and not self.images:
            raise OptionError("`crop` is for images, got none.", argument="crop")
        if isinstance(self.crop, str):
            object.__setattr__(self, "crop", CropBox.parse(self.crop))
        if self.vector is not None:
            object.__setattr__(self, "_vector", _checked_vector(self.vector))


def _checked_vector(vector: npt.ArrayLike) -> Vectors:
    """Return a vector as `(1, dim)` of unit length, or raise `OptionError`."""
    try:
        array = np.asarray(vector, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise OptionError("`vector` must be a list of numbers.", argument="vector") from None
    if array.ndim == 2 and len(array) == 1:
        array = array[0]
    if array.ndim != 1:
        raise OptionError(f"`vector` must have one dimension, got an array of shape {array.shape}.", argument="vector")
    if not np.isfinite(array).all() or not array.any():
        raise OptionError("`vector` must hold finite numbers, not all of them 0.", argument="vector")
    return l2_normalize((array / np.abs(array).max())[None])


def read_vector(path: Path) -> npt.NDArray[np.float64]:
    """Read a vector from an .npy file or a JSON list."""
    try:
        with open_regular(path, _MAX_VECTOR_BYTES) as file:
            if path.suffix.lower() == ".npy":
                return np.asarray(np.load(file, allow_pickle=False), dtype=np.float64)
            return np.asarray(json.loads(file.read()), dtype=np.float64)
    except (OSError, RefusedFileError, ValueError, TypeError, EOFError, OverflowError, RecursionError) as error:
        raise DataError(
            f"{path} holds no vector that can be read; pass an .npy file or a JSON list of numbers.", argument="vector"
        ) from error


def make_queries(
    images: Sequence[ImageInput] = (),
    *,
    ids: Sequence[str] = (),
    vectors: Sequence[npt.ArrayLike] = (),
    crop: CropBox | str | None = None,
    mean: bool = False,
    positive: Sequence[ImageInput] = (),
    negative: Sequence[ImageInput] = (),
) -> list[ImageInput | Query]:
    """Return a query per image, id and vector, or one of all images with `mean`; the examples belong to each."""
    for name, value in (("crop", crop), ("mean", mean)):
        if value and not images:
            raise OptionError(f"`{name}` is for images, got none.", argument=name)
    if crop is None and not (mean or positive or negative):
        queries: list[ImageInput | Query] = [*images]
    else:
        groups = [images] if mean and images else [[image] for image in images]
        queries = [Query(group, crop=crop, positive=positive, negative=negative) for group in groups]
    queries += [Query(id=item, positive=positive, negative=negative) for item in ids]
    queries += [Query(vector=vector, positive=positive, negative=negative) for vector in vectors]
    return queries or [Query(positive=positive, negative=negative)]


@dataclass(frozen=True)
class _Group:
    """Examples that are averaged: images to embed, and vectors."""

    sources: tuple[Source, ...] = ()
    vectors: tuple[Vectors, ...] = ()  # each (1, dim)

    def __bool__(self) -> bool:
        return bool(self.sources or self.vectors)

    def mean(self, embedded: Mapping[str, Vectors]) -> Vectors:
        """Return the mean `(1, dim)` of unit length; `embedded` holds the vector of each image by id."""
        vectors = [*(embedded[source.id] for source in self.sources), *self.vectors]
        return vectors[0] if len(vectors) == 1 else _unit(np.mean(vectors, axis=0))


def _unit(vector: Vectors) -> Vectors:
    if np.linalg.norm(vector) < _ZERO:
        raise OptionError("the examples of a query cancel out; remove some of them.", argument="images")
    return l2_normalize(vector)


@dataclass(frozen=True)
class ResolvedQuery:
    """A query whose files, items and crops are looked up.

    Attributes:
        id: its id in the result; an item's id for an item.
        path: what is shown as its file.
        image: what is shown as its image, or None.
        item_ids: items that are not hits.
        files: files whose items are not hits, also under another name; see `file_identity`.

    """

    id: str
    path: Path
    image: Source | None
    item_ids: frozenset[str]
    files: frozenset[tuple[int, int]]
    start: _Group
    positive: _Group = _Group()
    negative: _Group = _Group()

    @property
    def sources(self) -> Iterator[Source]:
        """The images to embed."""
        for group in (self.start, self.positive, self.negative):
            yield from group.sources

    def vector(self, embedded: Mapping[str, Vectors]) -> Vectors:
        """Return its embedding `(1, dim)`, where `embedded` holds those of its images."""
        groups = (self.start, 1.0), (self.positive, POSITIVE_WEIGHT), (self.negative, -NEGATIVE_WEIGHT)
        if not (self.positive or self.negative):
            return self.start.mean(embedded)
        return _unit(np.sum([weight * group.mean(embedded) for group, weight in groups if group], axis=0))


class _Examples:
    """Looks up the examples of one query: a text that is an item's id is that item, anything else an image."""

    def __init__(self, index: Index, number: int) -> None:
        self._index = index
        self._number = number
        self._in_memory = 0
        self.item_ids: set[str] = set()
        self.files: set[tuple[int, int]] = set()
        self.name = ""

    def add_name(self, name: str, sign: str = "+") -> None:
        """Add an example to the name of the query, such as `a.jpg + b.jpg - c.jpg`."""
        self.name = f"{self.name} {sign} {name}" if self.name else name

    def item(self, item_id: str, sign: str = "+") -> Vectors:
        """Return the vector `(1, dim)` of an item."""
        if item_id not in self._index:
            raise OptionError(f"`id` must be an item of the index, got {item_id!r}.", argument="id")
        self.add_name(item_id, sign)
        self.item_ids.add(item_id)
        self._exclude(self._index.path_of(item_id))
        return self._index.vectors_of([item_id])

    def group(self, examples: Sequence[ImageInput | ItemId], sign: str = "+") -> _Group:
        """Look up images and ids of items."""
        sources, vectors = [], []
        for example in examples:
            if isinstance(example, ItemId):
                vectors.append(self.item(example.id, sign))
            elif isinstance(example, str) and example in self._index:
                vectors.append(self.item(example, sign))
            else:
                sources.append(self.image(example, None, sign))
        return _Group(tuple(sources), tuple(vectors))

    def image(self, image: ImageInput, crop: CropBox | None, sign: str = "+") -> Source:
        """Return an image or a part of it, under an id that no other has."""
        (source,) = as_sources([image])
        if isinstance(source, InMemoryImage):
            if not isinstance(image, str | os.PathLike):  # a pipe has its path
                source = replace(source, id=f"image {self._in_memory} of query {self._number}")
                self._in_memory += 1
        else:
            source = File(query_id(source.path, self._index), source.path)
            self.item_ids.add(source.id)
            self._exclude(source.path)
        self.add_name(str(source.path) if crop is None else f"{source.path} [{crop}]", sign)
        return source if crop is None else ImagePart(f"{source.id} [{crop}]", source, crop.cut)

    def _exclude(self, path: Path | None) -> None:
        identity = None if path is None else file_identity(path)
        if identity is not None:
            self.files.add(identity)


def resolve_queries(
    images: Sequence[ImageInput | Query], index: Index
) -> tuple[dict[str, ResolvedQuery], tuple[Skipped, ...]]:
    """Look up queries, by their ids; of those with the same file, the first counts. Also returns unreadable files."""
    plain = iter(as_sources(image for image in images if not isinstance(image, Query)))
    queries: dict[str, ResolvedQuery] = {}
    skipped: list[Skipped] = []
    for number, entry in enumerate(images):
        if not isinstance(entry, Query):
            resolved = _resolve_image(next(plain), index)
            queries.setdefault(resolved.id, resolved)
            continue
        try:
            resolved = _resolve(entry, index, number)
        except UnreadableImage as error:
            skipped.append(Skipped(error.path, error.cause, error.temporary))
            continue
        while resolved.id in queries or (resolved.id in index and resolved.id != entry.id):
            resolved = replace(resolved, id=f"{resolved.id} (query {number})")
        queries[resolved.id] = resolved
    return queries, tuple(skipped)


def _resolve_image(source: Source, index: Index) -> ResolvedQuery:
    if isinstance(source, InMemoryImage):
        return ResolvedQuery(source.id, source.path, source, frozenset(), frozenset(), _Group((source,)))
    source = File(query_id(source.path, index), source.path)
    identity = file_identity(source.path)
    files = frozenset() if identity is None else frozenset({identity})
    return ResolvedQuery(source.id, source.path, source, frozenset(), files, _Group((source,)))


def _resolve(query: Query, index: Index, number: int) -> ResolvedQuery:
    examples = _Examples(index, number)
    path: Path | None = None
    image: Source | None = None
    if query.id is not None:
        start = _Group(vectors=(examples.item(query.id),))
        path = index.path_of(query.id)
        image = None if path is None else File(query.id, path)
    elif query._vector is not None:
        if query._vector.shape[1] != index.dim:
            raise OptionError(
                f"`vector` must have {index.dim} dimensions as the index has, got {query._vector.shape[1]}.",
                argument="vector",
            )
        start = _Group(vectors=(query._vector,))
        examples.add_name(f"vector {number}")
    else:
        crop = query.crop if isinstance(query.crop, CropBox) else None
        start = _Group(tuple(examples.image(example, crop) for example in query.images))
    with renamed_argument("positive", "images", "id"):
        positive = examples.group(query.positive)
    with renamed_argument("negative", "images", "id"):
        negative = examples.group(query.negative, "-")
    if image is None:
        image = next(iter((*start.sources, *positive.sources)), None)
    if path is None or examples.name != query.id:
        path = Path(examples.name)
    excluded = frozenset(examples.item_ids), frozenset(examples.files)
    return ResolvedQuery(examples.name, path, image, *excluded, start, positive, negative)


def query_id(path: Path, index: Index) -> str:
    """Return the item id of a file in the index, else an id that no item has.

    A file inside the index's root gets its path relative to it, whether it was indexed or not; any other its path.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link to the file
    spellings = dict.fromkeys((absolute, absolute.parent.resolve() / absolute.name, absolute.resolve()))
    root = index.root
    relative = [p.relative_to(root).as_posix() for p in spellings if root is not None and p.is_relative_to(root)]
    items = [name for name in (*relative, *(p.as_posix() for p in spellings)) if name in index]
    if items or relative:
        return (items or relative)[0]
    return absolute.as_posix() if path.as_posix() in index else path.as_posix()
