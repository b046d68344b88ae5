"""Whether the service is alive and ready, its counts and times, and the page that describes it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from lookalike._html import page_environment
from lookalike.server.problems import PROBLEMS
from lookalike.server.schemas import AccessAnswer, StateAnswer
from lookalike.server.service import Service

_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
public = APIRouter(tags=["service"])
_PROBLEMS: dict[int | str, dict[str, Any]] = {status: PROBLEMS[status] for status in (401, 429)}
protected = APIRouter(tags=["service"], responses=_PROBLEMS)
access = APIRouter(tags=["service"], responses=_PROBLEMS)


@public.get("/healthz", response_model=StateAnswer, summary="Is the process alive?")
async def healthz() -> StateAnswer:
    """Answer as long as the process is alive."""
    return StateAnswer(status="alive")


@public.get(
    "/readyz", response_model=StateAnswer, summary="Is the service ready?", responses={503: {"model": StateAnswer}}
)
async def readyz(request: Request) -> Response:
    """Answer 200 when every index and model is loaded, and 503 before that and while the service stops."""
    state = request.app.state.service.state
    return JSONResponse({"status": state}, 200 if state == "ready" else 503)


@access.get("/v1/access", response_model=AccessAnswer, summary="What may this client do?")
async def show_access(request: Request) -> AccessAnswer:
    """Say what the token of the request may do, or what may be done without one."""
    service: Service = request.app.state.service
    return AccessAnswer(scope=service.access.scope(request))


@protected.get("/metrics", summary="Counts and times, for Prometheus", response_class=Response)
async def show_measurements(request: Request) -> Response:
    """Return requests, time per stage, sizes of batches and the length of the queue."""
    service: Service = request.app.state.service
    return Response(service.monitor.text(), media_type=service.monitor.content_type)


@public.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Return the page made of the OpenAPI description; it loads nothing from other hosts."""
    page = page_environment().get_template("service.html.j2").render(api=request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})
