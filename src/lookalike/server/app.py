"""The ASGI application of a service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from lookalike._system import installed_versions
from lookalike.server import (
    change_routes,
    item_routes,
    model_routes,
    openai_routes,
    page_routes,
    search_routes,
    service_routes,
)
from lookalike.server.access import READ
from lookalike.server.gate import Gate
from lookalike.server.problems import Problem
from lookalike.server.service import Service

_DESCRIPTION = """Search images by an image. Errors are problem details (RFC 9457); those of `/v1/embeddings` and
`/v1/models` have OpenAI's form."""
_bearer = HTTPBearer(auto_error=False, description="a token of `lookalike token`")


async def may_read(request: Request) -> None:
    """Let the request pass if it may read."""
    request.app.state.service.access.require(READ, request)


def create_app(service: Service) -> FastAPI:
    """Return the application of a service, whose indexes are loaded when it starts, unless they are already."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if not service.indexes:
            await asyncio.to_thread(service.load)
        service.state = "ready"
        try:
            yield
        finally:
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Lookalike",
        version=installed_versions("lookalike").get("lookalike", "unknown"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    may = [Depends(may_read), Depends(_bearer)]
    app.include_router(search_routes.router, dependencies=may)
    app.include_router(model_routes.router, dependencies=may)
    app.include_router(item_routes.router, dependencies=may)
    app.include_router(change_routes.router, dependencies=[Depends(_bearer)])
    app.include_router(openai_routes.router, dependencies=may)
    app.include_router(service_routes.protected, dependencies=may)
    app.include_router(service_routes.access, dependencies=[Depends(_bearer)])
    app.include_router(service_routes.public)
    app.include_router(page_routes.router)
    app.mount("/page", StaticFiles(directory=page_routes.FILES), name="page")
    app.add_exception_handler(HTTPException, _framework_problem)
    app.add_exception_handler(RequestValidationError, _parameter_problem)
    if service.options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.cors_origins,
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type"],
        )
    app.add_middleware(Gate, service.options, service.access, service.monitor)
    return app


async def _framework_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = Problem.of_status(error.status_code, error.headers)
    return problem.response(request.url.path, request.state.request_id)


async def _parameter_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    problem = Problem("invalid-request", f"`{name}`: {first['msg']}.", parameter=name)
    return problem.response(request.url.path, request.state.request_id)
