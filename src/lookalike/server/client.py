"""A typed client of the HTTP service. It needs neither FastAPI nor a model."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

import numpy as np
from PIL import Image

from lookalike._arguments import checked_arguments
from lookalike._files import RefusedFileError, open_regular
from lookalike.data.images import MAX_BYTES, to_rgb
from lookalike.errors import DataError, OptionError, ServiceError, import_extra
from lookalike.index.store import UNCHANGED, Unchanged
from lookalike.models.pipeline import ImageInput, InMemoryImage, as_sources
from lookalike.types import Vectors

if TYPE_CHECKING:
    import httpx2

Value = str | int | float | bool | None

_RETRIED = (429, 503)  # the service did nothing
_FIRST_WAIT_S = 0.1
_MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class ServedItem:
    """An item of a service.

    Attributes:
        id: its id.
        label: its label, if it has one.
        metadata: text, numbers and booleans by name.

    """

    id: str
    label: str | None = None
    metadata: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class ServedHit(ServedItem):
    """An item that a search returned.

    Attributes:
        score: its cosine similarity to the query; higher is better.
        probability: that it has the label of the query; None if the model of the index has no calibration.

    """

    score: float = 0.0
    probability: float | None = None


@dataclass(frozen=True)
class IndexSummary:
    """An index of a service.

    Attributes:
        name: its name in the address.
        items: the number of its items.
        model: the name of its model.
        dimensions: of its embeddings.
        calibrated: whether its hits have a probability.
        default: whether calls without an index use it.

    """

    name: str
    items: int
    model: str
    dimensions: int
    calibrated: bool
    default: bool


class Client:
    """Uses a service that `serve` runs; safe to share between threads, and best kept for many calls.

    Calls that change nothing are tried again after a lost connection and when the service is busy.

    Args:
        url: address of the service.
        token: from `lookalike token`, if the service needs one.
        index: name of one of its indexes; None for the default one.
        timeout: seconds for one request.
        retries: how often a call is tried again.
        transport: what sends the requests, for tests; None for the network.

    """

    @checked_arguments()
    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        index: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        transport: Any = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise OptionError(f"`url` must begin with http:// or https://, got {url!r}.", argument="url")
        if not timeout > 0 or retries < 0:
            raise OptionError(
                f"`timeout` must be above 0 and `retries` at least 0, got {timeout} and {retries}.", argument="timeout"
            )
        httpx2 = import_extra("httpx2", "server", "the client")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.url = url.rstrip("/")
        self._prefix = "/v1" if index is None else f"/v1/indexes/{quote(index, safe='')}"
        self._retries = retries
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, transport=transport)
        self._lost = (httpx2.ConnectError, httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError)
        self._failed = httpx2.HTTPError

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @checked_arguments()
    def search(  # noqa: PLR0913 - all but one by name, with defaults that fit
        self,
        image: ImageInput | Sequence[ImageInput] | None = None,
        *,
        item: str | None = None,
        vector: Any = None,
        crop: str | None = None,
        positive: Sequence[ImageInput] = (),
        negative: Sequence[ImageInput] = (),
        top_k: int | None = None,
        where: str | None = None,
        min_probability: float = 0.0,
    ) -> tuple[ServedHit, ...]:
        """Find the items that are most similar to an image, to an item of the index, or to an embedding.

        Args:
            image: a path, bytes, a binary file, a PIL image or a `(h, w, 3)` uint8 array; the mean of a list of
                images is searched for.
            item: the id of an item, instead of an image; it is not among its own hits.
            vector: an embedding of the model of the index, instead of an image.
            crop: the part of each of `image` that counts, such as 10,20,300,200 (x, y, width and height in pixels) or
                25%,25%,50%,50%.
            positive: further examples of what is searched for, or only these: a text is the id of an item, never a
                file; pass a file as a `Path`. Items are not among the hits.
            negative: examples of what is not searched for, like `positive`.
            top_k: number of hits; None for 10, or all items if there are fewer.
            where: a filter such as `label == 'hat' and year >= 2020`; only the items that fit are hits.
            min_probability: from 0 to 1; hits with a lower probability are dropped, so that there may be none.

        Raises:
            OptionError: nothing to search for, more than one of `image`, `item` and `vector`, or a wrong value.
            DataError: a file cannot be read.
            ServiceError: the service refuses the request, or cannot be reached.

        """
        images = _as_list(image)
        starts = sum((bool(images), item is not None, vector is not None))
        if starts > 1 or not (starts or positive):
            raise OptionError("pass one of `image`, `item` and `vector`, or `positive` examples.", argument="image")
        if not 0 <= min_probability <= 1:
            raise OptionError(
                f"`min_probability` must be from 0 to 1, got {min_probability:g}.", argument="min_probability"
            )
        parameters = {} if top_k is None else {"k": top_k}
        fields: dict[str, Any] = {
            "id": item,
            "vector": None if vector is None else _numbers(vector),
            "crop": crop,
            "where": where,
            "min_probability": min_probability or None,
            "positive": [_example(example) for example in positive] or None,
            "negative": [_example(example) for example in negative] or None,
        }
        fields = {name: value for name, value in fields.items() if value is not None}
        if images and not (positive or negative):  # a form holds the bytes as they are
            files = [("image", _encoded(image)) for image in images]
            body: dict[str, Any] = {"files": files, "data": fields}
        else:
            body = {"json": fields | ({"image": list(map(_base64, images))} if images else {})}
        answer = self._json("POST", f"{self._prefix}/search", params=parameters, **body)
        return tuple(_hit(hit) for hit in answer["hits"])

    @checked_arguments(images="if it is a single image, put it in a list")
    def embed(self, images: Iterable[ImageInput], *, model: str | None = None) -> Vectors:
        """Return the embeddings `(n, dim)` of images, float32 of unit length.

        Args:
            images: as in `search`.
            model: a name of `models`; None for the first one.

        """
        inputs = [{"image": _base64(image)} for image in images]
        body = {"model": model or self.models()[0], "input": inputs, "encoding_format": "base64"}
        answer = self._json("POST", "/v1/embeddings", json=body)
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]])

    def models(self) -> list[str]:
        """Return the names of the models that embed images."""
        return [model["id"] for model in self._json("GET", "/v1/models")["data"]]

    def indexes(self) -> list[IndexSummary]:
        """Return the indexes of the service."""
        return [IndexSummary(**index) for index in self._json("GET", "/v1/indexes")["indexes"]]

    def items(self) -> Iterator[ServedItem]:
        """Yield all items in the order of their ids."""
        after = None
        while True:
            parameters = {"limit": 1000} | ({} if after is None else {"after": after})
            page = self._json("GET", f"{self._prefix}/items", params=parameters)
            yield from (_item(item) for item in page["items"])
            after = page["next"]
            if after is None:
                return

    @checked_arguments()
    def get(self, item: str) -> ServedItem:
        """Return an item by its id."""
        return _item(self._json("GET", self._path(item)))

    @checked_arguments()
    def add(
        self,
        image: ImageInput,
        *,
        item: str | None = None,
        label: str | None = None,
        metadata: Mapping[str, Value] | None = None,
    ) -> ServedItem:
        """Add an image as an item, and return it; needs a token to write.

        It is not sent a second time after a lost connection: it may have been added.

        Args:
            image: as in `search`.
            item: its id; None for a random one.
            label: its label.
            metadata: text, numbers and booleans by name.

        Raises:
            ServiceError: the id is in use (status 409), or the request is refused.

        """
        fields = {"id": item, "label": label, "metadata": None if metadata is None else json.dumps(dict(metadata))}
        fields = {name: value for name, value in fields.items() if value is not None}
        files = {"image": _encoded(image)}
        return _item(self._json("POST", f"{self._prefix}/items", again=False, files=files, data=fields))

    @checked_arguments()
    def update(
        self,
        item: str,
        *,
        label: str | Unchanged | None = UNCHANGED,
        metadata: Mapping[str, Value] | None = None,
        image: ImageInput | None = None,
    ) -> ServedItem:
        """Change label, metadata or image of an item, and return it; needs a token to write.

        Args:
            item: its id.
            label: its new label, None for none.
            metadata: merged with what it has; a value of None removes a name.
            image: its new image; None leaves it.

        """
        body: dict[str, Any] = {} if isinstance(label, Unchanged) else {"label": label}
        if metadata is not None:
            body["metadata"] = dict(metadata)
        if image is not None:
            body["image"] = _base64(image)
        return _item(self._json("PATCH", self._path(item), json=body))

    @checked_arguments()
    def remove(self, item: str) -> None:
        """Remove an item; needs a token to write."""
        self._send("DELETE", self._path(item), again=False)

    @checked_arguments()
    def thumbnail(self, item: str) -> bytes:
        """Return the thumbnail of an item, a JPEG."""
        content: bytes = self._send("GET", f"{self._path(item)}/thumbnail").content
        return content

    def is_ready(self) -> bool:
        """Whether the service can be reached and is ready."""
        try:
            return bool(self._http.get("/readyz").status_code == 200)
        except self._failed:
            return False

    def _path(self, item: str) -> str:
        return f"{self._prefix}/items/{quote(item, safe='')}"

    def _json(self, method: str, path: str, **request: Any) -> Any:
        return self._send(method, path, **request).json()

    def _send(self, method: str, path: str, *, again: bool = True, **request: Any) -> httpx2.Response:
        """Send a request and return its answer; `again` allows to repeat it."""
        retries = self._retries if again else 0
        for attempt in range(retries + 1):
            wait_s = _FIRST_WAIT_S * 2**attempt
            try:
                response: httpx2.Response = self._http.request(method, path, **request)
            except self._lost as error:
                if attempt == retries:
                    raise self._unreachable(error) from error
            except self._failed as error:
                raise self._unreachable(error) from error
            else:
                if response.status_code not in _RETRIED or attempt == retries:
                    break
                wait_s = max(wait_s, _retry_after(response))
            time.sleep(min(wait_s, _MAX_WAIT_S))
        if response.status_code >= 400:
            raise _error(response)
        return response

    def _unreachable(self, error: Exception) -> ServiceError:
        cause = str(error) or type(error).__name__
        return ServiceError(f"no answer from {self.url} ({cause}); is the service running?")


def _encoded(image: ImageInput) -> bytes:
    """Return an image as the bytes of a file."""
    (source,) = as_sources([image])
    if not isinstance(source, InMemoryImage):
        try:
            with open_regular(source.path, MAX_BYTES) as file:
                return file.read()
        except (OSError, RefusedFileError) as error:
            cause = getattr(error, "strerror", None) or error
            raise DataError(f"{source.path} cannot be read ({cause}).", argument="image") from error
    if isinstance(source.image, bytes):
        return source.image
    image = source.image if isinstance(source.image, Image.Image) else Image.fromarray(source.image)
    buffer = io.BytesIO()
    to_rgb(image).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _base64(image: ImageInput) -> str:
    return base64.b64encode(_encoded(image)).decode("ascii")


def _as_list(image: ImageInput | Sequence[ImageInput] | None) -> list[ImageInput]:
    if image is None:
        return []
    if isinstance(image, Sequence) and not isinstance(image, str | bytes | bytearray | memoryview):
        return list(image)
    return [cast(ImageInput, image)]


def _numbers(vector: Any) -> list[float]:
    try:
        numbers = np.asarray(vector, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        raise OptionError("`vector` must be a list of numbers.", argument="vector") from None
    if not np.isfinite(numbers).all():
        raise OptionError("`vector` must hold finite numbers.", argument="vector")
    return numbers.tolist()


def _example(example: ImageInput) -> str | dict[str, str]:
    """Return an example as JSON: the id of an item, or an image."""
    return example if isinstance(example, str) else {"image": _base64(example)}


def _item(values: Mapping[str, Any]) -> ServedItem:
    return ServedItem(values["id"], values.get("label"), values.get("metadata", {}))


def _hit(values: Mapping[str, Any]) -> ServedHit:
    return ServedHit(
        values["id"], values.get("label"), values.get("metadata", {}), values["score"], values.get("probability")
    )


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0


def _error(response: httpx2.Response) -> ServiceError:
    """Return the error of an answer: problem details, or OpenAI's form."""
    try:
        values = response.json()
    except ValueError:
        values = {}
    values = values if isinstance(values, dict) else {}
    openai = values.get("error")
    values = (
        values if not isinstance(openai, dict) else {"detail": openai.get("message"), "parameter": openai.get("param")}
    )
    detail = str(values.get("detail") or response.reason_phrase).rstrip(".").replace("`k`", "`top_k`")
    parameter = values.get("parameter")
    return ServiceError(
        f"the service answered {response.status_code}: {detail}.",
        status=response.status_code,
        kind=str(values.get("type", "")).rpartition(":")[2] or None,
        argument="top_k" if parameter == "k" else parameter,
    )
