"""The built-in data set: overlapping views cut from the photographs that scikit-image ships as files."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lookalike._files import new_folder, write_csv
from lookalike.data.images import read_image
from lookalike.errors import DataError, MissingExtra, OptionError

SCENES: dict[str, tuple[str, ...]] = {
    "astronaut": ("astronaut.png",),
    "brick": ("brick.png",),
    "camera": ("camera.png",),
    "cat": ("chelsea.png",),
    "cell": ("cell.png",),
    "clock": ("clock_motion.png",),
    "coffee": ("coffee.png",),
    "coins": ("coins.png",),
    "galaxies": ("hubble_deep_field.jpg",),
    "grass": ("grass.png",),
    "gravel": ("gravel.png",),
    "moon": ("moon.png",),
    "motorcycle": ("motorcycle_left.png", "motorcycle_right.png"),
    "page": ("page.png",),
    "retina": ("retina.jpg",),
    "rocket": ("rocket.jpg",),
    "text": ("text.png",),
    "tissue": ("ihc.png",),
}
"""Class name and file names in scikit-image's data folder; drawings and synthetic pictures are left out."""

_PHOTOGRAPHS = sum(len(names) for names in SCENES.values())

DESCRIPTION = (
    f"Overlapping views cut from the {_PHOTOGRAPHS} photographs that scikit-image ships, one class for each of the "
    f"{len(SCENES)} scenes. Views of one class come from the same picture (the motorcycle from a stereo pair), so this "
    "is an easy set that shows the machinery at work; it does not measure how good a model is on photographs of yours."
)
"""What the set is, in words for the user."""


@dataclass(frozen=True)
class Difficulty:
    """How far two views of one scene may differ.

    Attributes:
        scale: smallest and largest side of a view, as a fraction of the photograph's short side.
        rotation_degrees: largest turn to either side.
        light: largest relative change of brightness and contrast, and of gamma.
        colour_cast: largest relative gain of one colour channel.
        quality: lowest and highest JPEG quality.

    """

    scale: tuple[float, float]
    rotation_degrees: float
    light: float
    colour_cast: float
    quality: tuple[int, int]


DIFFICULTY = Difficulty(scale=(0.18, 0.45), rotation_degrees=30.0, light=0.35, colour_cast=0.15, quality=(35, 92))
"""Hard enough that a good network is not right every time: small views, many of which share no pixel."""

_SHORT_SIDE = 256  # pixels of a view
_SOURCE_SHORT_SIDE = 640  # larger photographs are shrunk first, so that cutting a view never has to skip pixels


def is_builtin(folder: Path) -> bool:
    """Whether a folder has the scenes that `make_builtin` writes, and no other class."""
    training = folder / "training"
    return training.is_dir() and {p.name for p in training.iterdir()} == set(SCENES)


def make_builtin(
    out: Path,
    *,
    seed: int = 0,
    n_training: int = 16,
    n_query: int = 5,
    n_gallery: int = 10,
    difficulty: Difficulty = DIFFICULTY,
) -> Path:
    """Write the built-in data set as a folder of layout 1: `training/<scene>/*`, flat test part, `labels.csv`.

    The same arguments give the same bytes with one version of Pillow. The files of the test part are numbered over all
    scenes in a random order, so that their names do not give the class away.

    Args:
        out: the folder to make; it appears only when complete.
        seed: decides every view.
        n_training: views of each scene for training.
        n_query: views of each scene to search with.
        n_gallery: views of each scene to search in.
        difficulty: how far the views of one scene differ.

    Returns:
        `out`, for `load_dataset`.

    Raises:
        MissingExtra: when scikit-image is not installed.
        DataError: when it is, but without its photographs.
        OptionError: for a count below one.
        StorageError: when `out` holds something or cannot be written.

    """
    counts = {"n_training": n_training, "n_query": n_query, "n_gallery": n_gallery}
    for name, count in counts.items():
        if count < 1:
            raise OptionError(f"{name} must be at least 1, got {count}.")
    photographs = {scene: [_photograph(name) for name in names] for scene, names in SCENES.items()}
    labels: list[tuple[str, str]] = []
    with new_folder(Path(out)) as folder:
        for scene, sources in photographs.items():
            places = [f"training/{scene}/{number:02d}.jpg" for number in range(n_training)]
            _write_views(folder, [(place, scene, sources) for place in places], seed, difficulty)
        for part, count in (("query", n_query), ("gallery", n_gallery)):
            scenes = [scene for scene in photographs for _ in range(count)]
            random.Random(f"{seed}/{part}").shuffle(scenes)
            rows = [(f"test/{part}/{number:03d}.jpg", scene) for number, scene in enumerate(scenes)]
            _write_views(folder, [(place, scene, photographs[scene]) for place, scene in rows], seed, difficulty)
            labels.extend(rows)
        write_csv(folder / "labels.csv", ("path", "label"), labels)
    return Path(out)


def _photograph(name: str) -> Image.Image:
    """Read one photograph from the installed package, without its download machinery."""
    try:
        import skimage
    except ImportError as error:
        raise MissingExtra("scikit-image", "demo", "the built-in data set") from error
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise DataError(
            f"the installed scikit-image does not ship the photograph {name}; "
            "install scikit-image 0.26, or give a folder of images of your own."
        )
    image = read_image(path)
    shrink = _SOURCE_SHORT_SIDE / min(image.size)
    if shrink >= 1:
        return image
    return image.resize((round(image.width * shrink), round(image.height * shrink)), Image.Resampling.LANCZOS)


def _write_views(
    folder: Path, views: list[tuple[str, str, list[Image.Image]]], seed: int, difficulty: Difficulty
) -> None:
    """Cut and write the views `(path, scene, photographs)`; each has its own generator, seeded by its path."""
    for place, scene, sources in views:
        rng = random.Random(f"{seed}/{scene}/{place}")
        view = _relight(_cut(rng.choice(sources), rng, difficulty), rng, difficulty)
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        view.save(path, "JPEG", quality=rng.randint(*difficulty.quality))


def _cut(image: Image.Image, rng: random.Random, difficulty: Difficulty) -> Image.Image:
    """Cut a turned rectangle that lies wholly inside the picture, and scale its short side to `_SHORT_SIDE`."""
    short = min(image.size) * math.exp(rng.uniform(*(math.log(limit) for limit in difficulty.scale)))
    aspect = rng.uniform(1.0, 4 / 3)
    width, height = (short * aspect, short) if rng.random() < 0.5 else (short, short * aspect)
    angle = math.radians(rng.uniform(-1, 1) * difficulty.rotation_degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Half the extent of the turned rectangle along each axis; a view too large to turn in the picture is shrunk.
    reach_x, reach_y = (width * cos + height * abs(sin)) / 2, (width * abs(sin) + height * cos) / 2
    fit = min(1.0, image.width / 2 / reach_x, image.height / 2 / reach_y)
    width, height, reach_x, reach_y = width * fit, height * fit, reach_x * fit, reach_y * fit
    x, y = rng.uniform(reach_x, image.width - reach_x), rng.uniform(reach_y, image.height - reach_y)
    step = min(width, height) / _SHORT_SIDE  # source pixels for one pixel of the view
    size = (round(width / step), round(height / step))
    across, down = size[0] / 2, size[1] / 2
    matrix = (
        *(step * cos, -step * sin, x - step * (cos * across - sin * down)),
        *(step * sin, step * cos, y - step * (sin * across + cos * down)),
    )
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _relight(image: Image.Image, rng: random.Random, difficulty: Difficulty) -> Image.Image:
    """Change contrast, brightness, gamma and the colour of the light, by one table of 256 values for each channel."""
    contrast, brightness, gamma = (1 + rng.uniform(-1, 1) * difficulty.light for _ in range(3))
    levels = np.linspace(0, 1, 256)
    curve = np.clip(((levels - 0.5) * contrast + 0.5) * brightness, 0, 1) ** gamma
    gains = [1 + rng.uniform(-1, 1) * difficulty.colour_cast for _ in range(3)]
    table = np.concatenate([np.rint(np.clip(curve * gain, 0, 1) * 255) for gain in gains]).astype(int)
    return image.point(table.tolist())
