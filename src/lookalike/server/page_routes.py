"""The web page: one HTML file at `/`, and its style sheet and scripts below `/page`."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse

_STATIC = Path(__file__).parent / "static"
FILES = _STATIC / "page"
# nothing from other hosts, and nothing inline: a label or an id can never become a script
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> FileResponse:
    """Return the web page; it asks for a token if the service needs one."""
    return FileResponse(_STATIC / "index.html", headers={"Content-Security-Policy": _POLICY})
