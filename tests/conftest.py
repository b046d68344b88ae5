"""Fixtures of the whole suite: one thread, real images, a small data folder of them, and the shared data sets."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import fork_server
from lookalike.index import autotune
from lookalike.models import auto, pipeline
from lookalike.models.encoder import Encoder, Ensemble
from lookalike.models.heads import fit_alignment
from lookalike.models.trainable import TrainableEncoder, build_trainable
from lookalike.runtimes import select
from lookalike.training import estimate
from lookalike.types import Pixels

pytest_plugins = ["score_server", "small_benchmark"]  # fixtures of several test folders

_FILES = {"astronaut": "astronaut.png", "cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
_SIDE = 160
_VIEWS = {"training": 6, "test/query": 2, "test/gallery": 3}  # of each class
SMALL = "test_efficientnet"  # 0.1 million parameters, images of 160 × 160
OTHER = "test_resnet"
_cache_numbers = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests, the code blocks of the pages, first: at the end, one process would wait for another."""
    items.sort(key=lambda item: item.path.name != "test_code_blocks.py")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute in one thread: work this small only waits for itself in several, for minutes on a busy machine."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use an empty cache for fixtures that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty cache for each test."""
    # mktemp would look through thousands of folders for a free number
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(_cache_numbers))
    folder.mkdir(parents=True)
    monkeypatch.setenv("LOOKALIKE_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session", autouse=True)
def little_timing() -> Iterator[None]:
    """Time runtimes and approximate indexes for moments, once: to few tests it matters which is the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (autotune, select):
            patch.setattr(module, "_TIMED_SECONDS", 0.01)
        for module in (auto, estimate):
            patch.setattr(module, "_SECONDS", 0.01)
        patch.setattr(select, "_MAX_SPREAD", float("inf"))
        yield


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """Load a script of `docs/` or `benchmarks/` as a module, by its path in the repository."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).resolve().parents[1] / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """Folder with `lookalike`, and `run-code` for `python -c`: as the real ones, but torch is imported already."""
    with tempfile.TemporaryDirectory(prefix="lookalike-") as name:  # a socket's path must be short
        folder, address = Path(name), str(Path(name) / "socket")
        for program in ("lookalike", "run-code"):
            fork_server.write_client(folder / program, address)
        command = [sys.executable, str(Path(fork_server.__file__)), address]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield folder
            server.terminate()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets `clothing`, `caltech` and `trashnet`; skips where they are absent."""
    repository = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("LOOKALIKE_SHARED", repository.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data sets are not at {folder}; set LOOKALIKE_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def sample_images() -> dict[str, Image.Image]:
    """Four images that scikit-image ships, RGB, 160 pixels on the longer side; copy one before changing it."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image, whose images the tests use, is not installed; install the extra test")
    folder = Path(spec.origin).parent / "data"
    images = {}
    for name, file in _FILES.items():
        with Image.open(folder / file) as image:
            images[name] = image.convert("RGB")
        images[name].thumbnail((_SIDE, _SIDE))
    return images


@pytest.fixture(scope="session")
def data_folder_original(sample_images: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the data folder of `data_folder` once; never change it."""
    root = tmp_path_factory.mktemp("original") / "photos"
    labels = ["path,label"]
    for name, image in sample_images.items():
        random_crop = random.Random(name)
        for part, count in _VIEWS.items():
            folder = root / part / name if part == "training" else root / part
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / f"{name}{number}.jpg"
                _crop(image, random_crop).save(path, quality=90)
                if part != "training":
                    labels.append(f"{part}/{path.name},{name}")
    (root / "labels.csv").write_text("\n".join(labels) + "\n")
    return root


def _crop(image: Image.Image, chance: random.Random) -> Image.Image:
    """Cut out 50 to 80 % of each side."""
    width, height = (round(side * chance.uniform(0.5, 0.8)) for side in image.size)
    left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


@pytest.fixture
def data_folder(data_folder_original: Path, tmp_path: Path) -> Path:
    """Data folder of layout 1, yours to change: 4 classes with 6 training, 2 query and 3 gallery crops of one image."""
    return Path(shutil.copytree(data_folder_original, tmp_path / "photos"))


@pytest.fixture
def close_folder(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let a folder refuse to be listed, as by its permissions, which do not bind a superuser."""
    closed: set[Path] = set()
    scandir = os.scandir

    def guarded(path: int | str | Path = ".") -> Iterator[os.DirEntry[str]]:
        if not isinstance(path, int) and Path(path).resolve() in closed:  # shutil gives open folders by number
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    return lambda folder: closed.add(folder.resolve())


class RecordingProgress:
    """A progress that records what it receives, and interrupts the run when enough images are embedded."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.messages: list[str] = []
        self.steps: list[tuple[int, int]] = []
        self.stop_at = stop_at

    def step(self, task: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG002
        self.steps.append((done, total))
        if task == "embedding" and self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt

    def info(self, text: str) -> None:
        self.messages.append(text)


@pytest.fixture
def recording_progress() -> type[RecordingProgress]:
    return RecordingProgress


@pytest.fixture
def make_trainable() -> Callable[..., TrainableEncoder]:
    """Build a small encoder with random weights; `name` and `seed` may be given."""

    def make(name: str = SMALL, seed: int = 0) -> TrainableEncoder:
        return build_trainable(name, "none", seed=seed)

    return make


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """A small encoder on torch with seeded random weights; do not change it."""
    return build_trainable(SMALL, "none").freeze()


@pytest.fixture(scope="session")
def other_encoder() -> Encoder:
    """The same architecture with other weights."""
    return build_trainable(SMALL, "none", seed=1).freeze()


@pytest.fixture(scope="session")
def image_files(sample_images: dict[str, Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine images: each of the four sample images, mirrored too, and one of them on its side."""
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for name, original in sample_images.items():
        for variant, image in (("plain", original), ("mirrored", original.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            paths.append(folder / f"{name}_{variant}.png")
            image.save(paths[-1])
    paths.append(folder / "rocket_turned.png")
    sample_images["rocket"].transpose(Image.Transpose.ROTATE_90).save(paths[-1])
    return paths


@pytest.fixture
def make_ensemble(
    make_trainable: Callable[..., TrainableEncoder], image_files: list[Path]
) -> Callable[[str], Ensemble]:
    """Build an ensemble of two different small encoders with a combination."""

    def make(combination: str) -> Ensemble:
        members = (make_trainable().freeze(), make_trainable(OTHER, seed=1).freeze())
        if combination != "aligned":
            return Ensemble(members, combination)
        first, second = (member.embed(image_files).vectors for member in members)
        return Ensemble(members, combination, (None, fit_alignment(second, first)))

    return make


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the images in the order in which they are decoded to be embedded, not to time runtimes."""
    ids: list[str] = []
    decode = pipeline.decode

    def recorded(source: pipeline.Source, min_sides: Sequence[int]) -> list[Pixels]:
        ids.append(source.id)
        return decode(source, min_sides)

    monkeypatch.setattr(pipeline, "decode", recorded)
    return ids
