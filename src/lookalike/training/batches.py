"""Training batches: the order of an epoch, random views of each image, and decoding ahead of the network.

All randomness depends on seed, epoch and item alone, so that a resumed run sees the same batches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from lookalike.data.dataset import Item
from lookalike.data.images import image_in_turn, read_pixels
from lookalike.models.pipeline import map_ahead
from lookalike.models.preprocessing import PILLOW_FILTERS, Preprocessing
from lookalike.models.trainable import TrainableEncoder
from lookalike.training.config import Recipe
from lookalike.training.distributed import DistributedContext
from lookalike.types import Skipped

Indices = npt.NDArray[np.int64]

_ASPECT_RATIOS = (3 / 4, 4 / 3)

# index and turn of a blank image, which does not count
_PADDING = (-1, 0)


def epoch_order(targets: Indices, recipe: Recipe, *, seed: int, epoch: int) -> Indices:
    """Return the order in which an epoch, counted from 0, shows the images, as many indices as there are images."""
    generator = np.random.default_rng([seed, epoch])
    if recipe.resolved_sampler == "pk":
        return _pk_order(targets, recipe.batch_size, recipe.per_class, generator)
    return generator.permutation(len(targets)).astype(np.int64)


def _pk_order(targets: Indices, batch_size: int, per_class: int, generator: np.random.Generator) -> Indices:
    """Return batches of P classes with K images each (Hermans et al. 2017); each class and each image in turn.

    The sampler of pytorch-metric-learning draws from NumPy's global state, which a resumed run cannot restore.
    """
    images = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    remaining: list[list[int]] = [[] for _ in images]

    def draw(c: int, count: int) -> Iterator[int]:
        for _ in range(count):
            if not remaining[c]:
                remaining[c] = generator.permutation(images[c]).tolist()
            yield remaining[c].pop()

    order: list[int] = []
    queue: list[int] = []
    while len(order) < len(targets):
        if len(queue) < batch_size // per_class:
            queue += [int(c) for c in generator.permutation(len(images)) if c not in queue]
        classes, queue = queue[: batch_size // per_class], queue[batch_size // per_class :]
        # with fewer classes than fit into a batch, each contributes more images
        count, rest = divmod(batch_size, len(classes))
        for n, c in enumerate(classes):
            order += draw(c, count + (n < rest))
    return np.array(order[: len(targets)], dtype=np.int64)


def repetitions(order: Indices) -> Indices:
    """Return for each position of an order how often its index occurred before."""
    counts: dict[int, int] = {}
    result = np.zeros(len(order), np.int64)
    for position, index in enumerate(order.tolist()):
        result[position] = counts.get(index, 0)
        counts[index] = counts.get(index, 0) + 1
    return result


def training_preprocessing(encoder: TrainableEncoder, resolution: float) -> Preprocessing:
    """Return the preprocessing of training views: sides times `resolution`, in steps of 32, if the network allows it.

    A random resized crop magnifies objects relative to the inference crop; training with fewer pixels offsets that
    and is faster (Touvron et al. 2019, "Fixing the train-test resolution discrepancy").
    """
    p = encoder.preprocessing
    if getattr(encoder.module, "pretrained_cfg", {}).get("fixed_input_size", True):
        return p
    height, width = (max(32, round(side * resolution / 32) * 32) for side in (p.height, p.width))
    return replace(p, height=min(height, p.height), width=min(width, p.width))


def random_view(
    image: Image.Image, preprocessing: Preprocessing, recipe: Recipe, *, seed: int, epoch: int, item_id: str, turn: int
) -> npt.NDArray[np.uint8]:
    """Return a view `(height, width, 3)` uint8: random resized crop (Szegedy et al. 2015), flip, and colour jitter.

    `turn` counts how often the epoch has shown this item before, so that each time is another view.
    """
    generator = random.Random(f"{seed}/{epoch}/{item_id}" + (f"/{turn}" if turn else ""))
    keep_aspect = preprocessing.crop_mode == "squash"
    box = _random_crop(image.size, recipe.crop_scale, generator, keep_aspect=keep_aspect)
    size = (preprocessing.width, preprocessing.height)
    view = image.resize(size, PILLOW_FILTERS[preprocessing.interpolation], box=box, reducing_gap=2.0)
    if generator.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if recipe.jitter:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            view = enhance(view).enhance(1 + generator.uniform(-recipe.jitter, recipe.jitter))
    return np.array(view, dtype=np.uint8)


def _random_crop(
    size: tuple[int, int], min_area: float, generator: random.Random, *, keep_aspect: bool = False
) -> tuple[float, float, float, float]:
    """Draw a rectangle that is roughly square, or with `keep_aspect` roughly of the image's own aspect ratio."""
    width, height = size
    aspect = width / height if keep_aspect else 1.0
    for _ in range(10):
        area = width * height * generator.uniform(min_area, 1)
        ratio = aspect * math.exp(generator.uniform(math.log(_ASPECT_RATIOS[0]), math.log(_ASPECT_RATIOS[1])))
        w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if w <= width and h <= height:
            left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
            return left, top, min(left + w, width), min(top + h, height)  # rounding may exceed the edge
    if keep_aspect:
        return 0, 0, width, height
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


@dataclass(frozen=True)
class Batch:
    """The share of a batch that this process trains on."""

    done: int  # images of the epoch that all processes have seen, this batch included
    pixels: npt.NDArray[np.uint8]  # `(n, h, w, 3)`
    indices: Indices  # of the items
    valid: int  # only the first `valid` images count


def iterate_batches(
    items: Sequence[Item],
    order: Indices,
    preprocessing: Preprocessing,
    recipe: Recipe,
    distributed: DistributedContext,
    *,
    seed: int,
    epoch: int,
) -> Iterator[Batch]:
    """Yield the batches of an epoch; a single process skips a batch with fewer than two readable images."""
    positions = np.stack([order, repetitions(order)], axis=1)
    starts = range(0, len(order), recipe.batch_size)
    shards = [distributed.shard(positions[start : start + recipe.batch_size]) for start in starts]
    # a process without an image of the last batch takes part with a blank image that does not count
    shards = [shard if len(shard) else np.array([_PADDING]) for shard in shards]

    def prepare(position: tuple[int, int]) -> npt.NDArray[np.uint8]:
        index, turn = position
        if index < 0:
            return np.zeros((preprocessing.height, preprocessing.width, 3), np.uint8)
        item = items[index]
        with image_in_turn(item.path):
            image = Image.fromarray(preprocessing.cropped(read_pixels(item.path, preprocessing.min_side)))
            return random_view(image, preprocessing, recipe, seed=seed, epoch=epoch, item_id=item.id, turn=turn)

    shown = [(int(index), int(turn)) for shard in shards for index, turn in shard]
    for number, results in enumerate(map_ahead([shown], prepare, max(map(len, shards)))):
        readable = [(index, pixels) for (index, _), pixels in results if not isinstance(pixels, Skipped)]
        valid = sum(index >= 0 for index, _ in readable)
        if distributed.world_size > 1 and not readable:
            readable = [(_PADDING[0], prepare(_PADDING))]
        if len(readable) >= 2 or distributed.world_size > 1:
            done = min(len(order), (number + 1) * recipe.batch_size)
            pixels = np.stack([p for _, p in readable])
            yield Batch(done, pixels, np.array([max(index, 0) for index, _ in readable]), valid)
