"""A small index with labels in its folders, and clients of a service of it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from lookalike.api.index import index
from lookalike.models.bundle import describe_encoder, save_bundle
from lookalike.models.encoder import Encoder
from lookalike.server.access import Token, read_tokens, token
from lookalike.server.app import create_app
from lookalike.server.options import ServiceOptions
from lookalike.server.service import Service
from lookalike.types import Calibration


@pytest.fixture(scope="session")
def served_original(data_folder_original: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `images` and their index `small.index`; never change it."""
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(data_folder_original / "test" / "gallery", folder / "images" / "more")
    for path in sorted((folder / "images" / "more").iterdir())[:4]:
        path.rename(folder / "images" / path.name)
    index(folder / "images", encoder, out=folder / "small.index")
    return folder


@pytest.fixture(scope="module")
def folder(served_original, tmp_path_factory) -> Path:
    """A folder with an index, `small.index`, that the tests of a file may change."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(served_original / "small.index", folder / "small.index")
    return folder


@pytest.fixture
def images(served_original: Path) -> Path:
    """Twelve images; never change them."""
    return served_original / "images"


@pytest.fixture
def index_folder(served_original: Path, tmp_path: Path) -> Path:
    """An index of `images`, yours to change."""
    return Path(shutil.copytree(served_original / "small.index", tmp_path / "small.index"))


@pytest.fixture
def calibrated_folder(images: Path, encoder: Encoder, tmp_path: Path) -> Path:
    """An index of `images` whose model has a calibration."""
    info = describe_encoder(encoder, calibration=Calibration(20.0, -10.0, 100, 0.01))
    index(images, save_bundle(encoder, tmp_path / "calibrated", info), out=tmp_path / "calibrated.index")
    return tmp_path / "calibrated.index"


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    """A read and a write token by scope, and the path of their file as `file`."""
    file = tmp_path / "tokens"
    return {scope: token(file, scope=scope, name=f"{scope}er") for scope in ("read", "write")} | {"file": str(file)}


MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client(index_folder: Path) -> Iterator[MakeClient]:
    """Start a service: options of `ServiceOptions`, `indexes` by name, `token_file`; returns a client."""
    with ExitStack() as stack:

        def make(
            indexes: dict[str, Path] | None = None, token_file: str | None = None, **options: object
        ) -> TestClient:
            read: tuple[Token, ...] = () if token_file is None else read_tokens(Path(token_file))
            service = Service(indexes or {"small": index_folder}, ServiceOptions(**options), read)
            client = TestClient(create_app(service), base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A client of a service with the defaults."""
    return make_client()


@pytest.fixture(scope="session")
def jpeg(sample_images: dict[str, Image.Image]) -> bytes:
    """An image that is not in the index, as a file."""
    buffer = io.BytesIO()
    sample_images["rocket"].save(buffer, format="JPEG")
    return buffer.getvalue()
