"""The bodies of requests, multipart or JSON, limited in size and time and in memory only; and of answers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from lookalike.server.monitoring import Monitor
from lookalike.server.options import ServiceOptions
from lookalike.server.problems import Problem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

M = TypeVar("M", bound=BaseModel)
JSON, FORM = "application/json", "multipart/form-data"

_MAX_PARTS = 100  # of a form
_MAX_TEXT = 100_000  # bytes of a text field in a form
_CLOSE = {"Connection": "close"}  # what is left of the body is not read


async def read_body(request: Request, options: ServiceOptions, monitor: Monitor) -> bytes:
    """Return the body of a request; a `Problem` if it is too large or arrives too slowly."""
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > options.max_body:
        raise _too_large(options)
    body = bytearray()
    try:
        with monitor.timed("receive"):
            async with asyncio.timeout(options.receive_timeout):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > options.max_body:
                        raise _too_large(options)
    except TimeoutError:
        detail = f"the body did not arrive within {options.receive_timeout:g} s."
        raise Problem("slow-request", detail, headers=_CLOSE) from None
    except ClientDisconnect:
        raise Problem("slow-request", "the client closed the connection.", headers=_CLOSE) from None
    return bytes(body)


def _too_large(options: ServiceOptions) -> Problem:
    return Problem("body-too-large", f"the body has more than {options.max_body:,} bytes.")


def require_content_type(request: Request, *allowed: str) -> str:
    """Return the content type, JSON if there is none, without its parameters; a `Problem` if it is not allowed."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower() or JSON
    if kind not in allowed:
        raise Problem("unsupported-media-type", f"send {' or '.join(allowed)}.")
    return kind


class _Form:
    """Collects the parts of a multipart body, in memory."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes, bool]] = []  # name, data, whether it has a file name
        self.is_complete = False
        self._data = bytearray()
        self._headers: dict[str, bytes] = {}
        self._name = self._value = b""

    def callbacks(self) -> MultipartCallbacks:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self.parts) == _MAX_PARTS:
            raise Problem("invalid-request", f"the form has more than {_MAX_PARTS} fields.")
        self._data, self._headers = bytearray(), {}

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value
        self._name = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in options:
            raise Problem("malformed-body", "a part of the form has no name.")
        name = options[b"name"].decode("utf-8", "replace")
        self.parts.append((name, bytes(self._data), b"filename" in options))

    def _complete(self) -> None:
        self.is_complete = True


def parse_form(request: Request, body: bytes, files: Sequence[str], mixed: Sequence[str] = ()) -> dict[str, list[Any]]:
    """Return the values of a multipart body by name: bytes of the fields in `files`, text of all others.

    A field in `mixed` is bytes if it has a file name, else text.
    """
    _, options = parse_options_header(request.headers.get("content-type"))
    form = _Form()
    try:
        parser = MultipartParser(options[b"boundary"], form.callbacks())
        parser.write(body)
        parser.finalize()
    except KeyError:
        raise Problem("malformed-body", "the content type of the form has no boundary.") from None
    except FormParserError:
        raise Problem("malformed-body", "the form cannot be parsed.") from None
    if not form.is_complete:
        raise Problem("malformed-body", "the form ends early.")
    values: dict[str, list[Any]] = {}
    for name, data, has_file_name in form.parts:
        is_file = name in files or (has_file_name and name in mixed)
        if not is_file and len(data) > _MAX_TEXT:
            raise Problem("invalid-request", f"the field is longer than {_MAX_TEXT:,} bytes.", parameter=name)
        values.setdefault(name, []).append(data if is_file else data.decode("utf-8", "replace"))
    return values


def json_response(answer: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as JSON; ids of files whose names are not valid Unicode are escaped."""
    return Response(json.dumps(answer.model_dump()), status, headers, media_type=JSON)


def parse_json(body: bytes, model: type[M]) -> M:
    """Return a JSON body as a model; a `Problem` names the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


def as_model(values: Mapping[str, Any], model: type[M]) -> M:
    """Return the fields of a form as a model; numbers may be text."""
    try:
        return model.model_validate(values, strict=False)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Problem("malformed-body", f"the body is not valid JSON: {first['msg'].partition(': ')[2]}.")
    name = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    detail = f"`{name}`: {message}." if name else f"{message}."
    return Problem("invalid-request", detail, parameter=name or None)


def decode_image(text: str, parameter: str) -> bytes:
    """Return the bytes of an image in base64, with or without the head of a data URI."""
    if text.startswith(("http:", "https:", "ftp:", "file:")):
        raise Problem(
            "invalid-request", "URLs are not fetched; send the image in base64 or as a data URI.", parameter=parameter
        )
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64") or not head.startswith("data:image/"):
            raise Problem(
                "invalid-request", "a data URI must begin with data:image/…;base64, before the image.",
                parameter=parameter,
            )  # fmt: skip
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem("invalid-request", "the image is not valid base64.", parameter=parameter) from None
    if not data:
        raise Problem("invalid-request", "the image is empty.", parameter=parameter)
    return data


def parse_json_field(text: str | bytes, parameter: str) -> Any:
    """Return the value of a field of a form that holds JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Problem("invalid-request", f"`{parameter}` must be JSON.", parameter=parameter) from None
