"""A plain FastAPI handler around `search`, which `benchmarks/service.py` compares: one image per call, in threads."""

from __future__ import annotations

import socket
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File

import lookalike as la
from lookalike.progress import SILENT


def run(folder: str) -> None:
    """Serve an index on a free port of this machine and print the address."""
    loaded = la.load_index(folder)
    app = FastAPI()

    @app.post("/v1/search")
    def search(image: Annotated[bytes, File()], k: int = 10) -> dict[str, object]:
        (hits,) = loaded.search([image], top_k=k, progress=SILENT)
        return {"hits": [{"id": hit.id, "score": hit.score} for hit in hits]}

    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
