"""The demo's data set: overlapping views cut from the images that scikit-image ships as files."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lookalike._files import new_folder, write_csv
from lookalike.data.images import read_image
from lookalike.errors import DataError, OptionError, import_extra

# Class name and file names in scikit-image's data folder; drawings and synthetic images are not used.
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

DESCRIPTION = (
    f"Overlapping views cut from {sum(map(len, SCENES.values()))} images that scikit-image ships, one class per scene "
    f"({len(SCENES)} scenes). All views of a class come from the same image (the motorcycle from a stereo pair), so "
    "this is an easy set that demonstrates the software; it does not show how accurate a model is on your images."
)


@dataclass(frozen=True)
class Difficulty:
    """Limits for the differences between two views of a scene."""

    scale: tuple[float, float]  # smallest and largest side of a view, as a fraction of the source image's shorter side
    rotation_degrees: float  # largest rotation in either direction
    light: float  # largest relative change of brightness, contrast and gamma
    colour_cast: float  # largest relative gain of one colour channel
    quality: tuple[int, int]  # lowest and highest JPEG quality


# Hard enough that a good network makes mistakes: small views, many of which share no pixel.
DIFFICULTY = Difficulty(scale=(0.18, 0.45), rotation_degrees=30.0, light=0.35, colour_cast=0.15, quality=(35, 92))

_SHORT_SIDE = 256  # pixels of a view
_SOURCE_SHORT_SIDE = 640  # larger source images are shrunk first, so that a view is never subsampled


def is_demo_folder(folder: Path) -> bool:
    """Whether a folder has the classes that `write_demo_images` writes, and no other."""
    training = folder / "training"
    return training.is_dir() and {p.name for p in training.iterdir()} == set(SCENES)


def write_demo_images(
    out: Path,
    *,
    seed: int = 0,
    n_training: int = 16,
    n_query: int = 5,
    n_gallery: int = 10,
    difficulty: Difficulty = DIFFICULTY,
) -> Path:
    """Write the demo's data set in layout 1: `training/<scene>/*`, flat query and gallery, `labels.csv`.

    The same arguments write the same bytes with the same version of Pillow. Counts are views per scene. Query and
    gallery files are numbered in random order, so that their names do not reveal the class. Returns `out`.
    """
    for name, count in (("n_training", n_training), ("n_query", n_query), ("n_gallery", n_gallery)):
        if count < 1:
            raise OptionError(f"`{name}` must be at least 1, got {count}.", argument=name)
    sources = {scene: [_source_image(name) for name in names] for scene, names in SCENES.items()}
    labels: list[tuple[str, str]] = []
    with new_folder(Path(out)) as folder:
        for scene in SCENES:
            for number in range(n_training):
                _write_view(folder, f"training/{scene}/{number:02d}.jpg", scene, sources[scene], seed, difficulty)
        for split, count in (("query", n_query), ("gallery", n_gallery)):
            scenes = [scene for scene in SCENES for _ in range(count)]
            random.Random(f"{seed}/{split}").shuffle(scenes)
            for number, scene in enumerate(scenes):
                name = f"test/{split}/{number:03d}.jpg"
                _write_view(folder, name, scene, sources[scene], seed, difficulty)
                labels.append((name, scene))
        write_csv(folder / "labels.csv", ("path", "label"), labels)
    return Path(out)


def _source_image(name: str) -> Image.Image:
    """Read an image from the installed package, without its download machinery."""
    skimage = import_extra("skimage", "demo", "the demo's data set", "scikit-image")
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise DataError(
            f"the installed scikit-image does not contain the image {name}; install scikit-image 0.26, or use your own "
            "folder of images."
        )
    image = read_image(path)
    factor = _SOURCE_SHORT_SIDE / min(image.size)
    if factor >= 1:
        return image
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def _write_view(
    folder: Path, name: str, scene: str, sources: list[Image.Image], seed: int, difficulty: Difficulty
) -> None:
    """Cut and write one view; its random generator is seeded by its name."""
    rng = random.Random(f"{seed}/{scene}/{name}")
    view = _relight(_cut(rng.choice(sources), rng, difficulty), rng, difficulty)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    view.save(path, "JPEG", quality=rng.randint(*difficulty.quality))


def _cut(image: Image.Image, rng: random.Random, difficulty: Difficulty) -> Image.Image:
    """Cut a rotated rectangle that lies inside the image, and scale its shorter side to `_SHORT_SIDE`."""
    short = min(image.size) * math.exp(rng.uniform(*(math.log(limit) for limit in difficulty.scale)))
    aspect = rng.uniform(1.0, 4 / 3)
    width, height = (short * aspect, short) if rng.random() < 0.5 else (short, short * aspect)
    angle = math.radians(rng.uniform(-1, 1) * difficulty.rotation_degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    # Half the extent of the rotated rectangle along each axis; a rectangle that is too large for the image is shrunk.
    reach_x, reach_y = (width * cos + height * abs(sin)) / 2, (width * abs(sin) + height * cos) / 2
    fit = min(1.0, image.width / 2 / reach_x, image.height / 2 / reach_y)
    width, height, reach_x, reach_y = width * fit, height * fit, reach_x * fit, reach_y * fit
    x, y = rng.uniform(reach_x, image.width - reach_x), rng.uniform(reach_y, image.height - reach_y)
    step = min(width, height) / _SHORT_SIDE  # source pixels per pixel of the view
    size = (round(width / step), round(height / step))
    across, down = size[0] / 2, size[1] / 2
    matrix = (
        *(step * cos, -step * sin, x - step * (cos * across - sin * down)),
        *(step * sin, step * cos, y - step * (sin * across + cos * down)),
    )
    return image.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _relight(image: Image.Image, rng: random.Random, difficulty: Difficulty) -> Image.Image:
    """Change contrast, brightness, gamma and white balance by one table of 256 values per channel."""
    contrast, brightness, gamma = (1 + rng.uniform(-1, 1) * difficulty.light for _ in range(3))
    levels = np.linspace(0, 1, 256)
    curve = np.clip(((levels - 0.5) * contrast + 0.5) * brightness, 0, 1) ** gamma
    gains = [1 + rng.uniform(-1, 1) * difficulty.colour_cast for _ in range(3)]
    table = np.concatenate([np.rint(np.clip(curve * gain, 0, 1) * 255) for gain in gains]).astype(int)
    return image.point(table.tolist())
