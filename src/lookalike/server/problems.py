"""Errors as answers: problem details (RFC 9457), or OpenAI's form for its routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from lookalike.errors import DataError, LookalikeError, OptionError, UnreadableImage
from lookalike.server.schemas import ProblemAnswer

# kind: status and title
KINDS = {
    "malformed-body": (400, "The body cannot be parsed"),
    "unauthorized": (401, "A token is needed"),
    "forbidden": (403, "Not allowed"),
    "not-found": (404, "Not found"),
    "method-not-allowed": (405, "The method is not allowed"),
    "slow-request": (408, "The request arrived too slowly"),
    "conflict": (409, "The id is in use"),
    "body-too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The content type is not supported"),
    "wrong-host": (421, "The host is not served here"),
    "invalid-request": (422, "The request is not valid"),
    "unreadable-image": (422, "The image cannot be read"),
    "headers-too-large": (431, "The headers are too large"),
    "busy": (429, "The service is busy"),
    "too-many-requests": (429, "Too many requests"),
    "internal-error": (500, "The service failed"),
    "stopping": (503, "The service is stopping"),
    "deadline": (504, "The deadline has passed"),
}
# the answers of a route that are errors, as OpenAPI describes them
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
        429: "Too many requests, or too many images are waiting; `Retry-After` says when to try again",
        504: "The deadline has passed",
    }.items()
}
_BY_STATUS = {status: kind for kind, (status, _) in reversed(KINDS.items())}
_OPENAI_PATHS = ("/v1/embeddings", "/v1/models")
_OPENAI_TYPES = {
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "forbidden"),
    404: ("invalid_request_error", "model_not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}


class Problem(Exception):  # noqa: N818 - the term of RFC 9457
    """An answer that is an error.

    Attributes:
        kind: a key of `KINDS`.
        detail: one sentence for the client, without paths of the server.
        parameter: the part of the request that it concerns.
        headers: of the answer.

    """

    def __init__(
        self, kind: str, detail: str, *, parameter: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.parameter = parameter
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        """The HTTP status."""
        return KINDS[self.kind][0]

    @classmethod
    def of_status(cls, status: int, headers: Mapping[str, str] | None = None) -> Problem:
        """Return the problem for a status that the framework decides, such as 404 and 405."""
        kind = _BY_STATUS.get(status, "invalid-request" if status < 500 else "internal-error")
        return cls(kind, f"{KINDS[kind][1]}.", headers=headers)

    def response(self, path: str, request_id: str) -> Response:
        """Return the answer in the form of the route."""
        title = KINDS[self.kind][1]
        body: dict[str, Any]
        if path.startswith(_OPENAI_PATHS):
            server_error = ("server_error", None) if self.status >= 500 else ("invalid_request_error", None)
            error_type, code = _OPENAI_TYPES.get(self.status, server_error)
            body = {"error": {"message": self.detail, "type": error_type, "param": self.parameter, "code": code}}
            media_type = "application/json"
        else:
            body = {
                "type": f"urn:lookalike:problem:{self.kind}",
                "title": title,
                "status": self.status,
                "detail": self.detail,
                "request_id": request_id,
            }
            if self.parameter is not None:
                body["parameter"] = self.parameter
            media_type = "application/problem+json"
        return Response(json.dumps(body), self.status, self.headers, media_type)


def as_problem(error: LookalikeError) -> Problem | None:
    """Return the problem for an error that the client can correct; None for one of the service."""
    if isinstance(error, UnreadableImage):
        return Problem("unreadable-image", f"the image cannot be read: {error.cause}.", parameter="image")
    if isinstance(error, OptionError | DataError):
        detail, parameter = str(error), error.argument
        if parameter == "top_k":
            detail, parameter = detail.replace("`top_k`", "`k`"), "k"
        return Problem("invalid-request", detail, parameter=parameter)
    return None
