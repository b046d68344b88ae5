"""A Python function as an encoder: pixels in, vectors out. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import digest
from lookalike.errors import ModelError, OptionError, describe_error, require_integer
from lookalike.models.encoder import AnyEncoder, Encoder
from lookalike.models.heads import Head
from lookalike.models.info import FROZEN, FUNCTION, Adaptation, BackboneInfo
from lookalike.models.pipeline import DEFAULT_BATCH_SIZE, FixedBackbone, Source
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import Progress
from lookalike.types import Pixels, Vectors

MAX_DIM = 8192
_TOO_LARGE = 1e18  # the square of a larger number is not finite in float32


class FunctionBackbone(FixedBackbone):
    """A function of the user that computes the features; it is called by one thread at a time."""

    runtime = "python"
    precision = "float32"
    device_type = "cpu"
    in_flight = 1

    def __init__(self, info: BackboneInfo, function: Callable[[Pixels], Any], batch_size: int) -> None:
        self.info = info
        self.function = function
        self.batch_size = batch_size
        self.width = info.features

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> FunctionBackbone:  # noqa: ARG002
        """Return the backbone itself."""
        return self

    def with_preprocessing(self, preprocessing: Preprocessing) -> FunctionBackbone:
        """Return the same function for images that are prepared otherwise."""
        return FunctionBackbone(replace(self.info, preprocessing=preprocessing), self.function, self.batch_size)

    def computes(self, info: BackboneInfo) -> bool:
        """Whether this is the function of a record: its fingerprint, dimensions and input size are the same."""
        sizes = [(i.preprocessing.height, i.preprocessing.width, i.features) for i in (info, self.info)]
        return info.weights_digest == self.info.weights_digest and sizes[0] == sizes[1]

    def weights(self) -> dict[str, np.ndarray]:
        """Return nothing: a function cannot be stored."""
        return {}

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Compute features `(n, dim)` float32 of `(n, height, width, 3)` uint8 pixels at once."""
        rows = self._compute(pixels) if len(pixels) else np.zeros((0, self.width), np.float32)
        return lambda: rows

    def _compute(self, pixels: Pixels) -> Vectors:
        try:
            result = np.asarray(self.function(np.ascontiguousarray(pixels)))
        except Exception as error:  # of any kind: the function is the user's
            raise ModelError(
                f"the function {self.info.name} failed on pixels {pixels.shape} uint8 ({describe_error(error)})."
            ) from error
        expected = (len(pixels), self.width)
        if result.shape != expected or result.dtype.kind != "f":
            raise ModelError(
                f"the function {self.info.name} must return an array of floats of shape {expected} for "
                f"{len(pixels)} images, got {result.dtype} of shape {result.shape}."
            )
        if not (np.abs(result) < _TOO_LARGE).all():  # also false for NaN
            raise ModelError(
                f"the function {self.info.name} returned values that are not finite, or larger than {_TOO_LARGE:g}."
            )
        rows: Vectors = result.astype(np.float32)
        return rows


@checked_arguments()
def as_encoder(
    function: Callable[[Pixels], Any],
    *,
    dim: int,
    name: str,
    fingerprint: str,
    size: int | tuple[int, int] = 224,
    crop_mode: str = "center",
    batch_size: int = DEFAULT_BATCH_SIZE,
) -> Encoder:
    """Wrap a Python function as an encoder, which can embed, be indexed with, evaluated and benchmarked.

    Its embeddings are the vectors of the function, scaled to unit length. The function itself is never stored: pass
    this encoder as `functions` when you load a bundle or an index that was made with it.

    Args:
        function: maps pixels, `(n, height, width, 3)` uint8, RGB, to n vectors: an array `(n, dim)` of floats. It is
            called by one thread at a time, and normalises the pixels itself.
        dim: length of a vector.
        name: shown in tables and messages; without `+` and `:`.
        fingerprint: a text that changes whenever the vectors change, such as a version, or a digest of the weights. An
            index that was made with another fingerprint refuses the encoder's queries.
        size: height and width of the pixels, or one number for both.
        crop_mode: how an image gets that size: `center` resizes until it is covered and cuts off what is beyond,
            `squash` changes the aspect ratio, `border` adds borders.
        batch_size: the most images per call.

    Raises:
        OptionError: an argument outside what is allowed.
    """
    for argument, text in (("name", name), ("fingerprint", fingerprint)):
        if not text.strip():
            raise OptionError(f"`{argument}` must be a text that is not empty, got {text!r}.", argument=argument)
    if set("+:") & set(name):
        raise OptionError(f"`name` must not contain + or :, got {name!r}.", argument="name")
    if not 1 <= dim <= MAX_DIM:
        raise OptionError(f"`dim` must be from 1 to {MAX_DIM}, got {dim}.", argument="dim")
    if batch_size < 1:
        raise OptionError(f"`batch_size` must be at least 1, got {batch_size}.", argument="batch_size")
    sides = size if isinstance(size, tuple) else (size, size)
    if len(sides) != 2:
        raise OptionError(f"`size` must be one number, or height and width, got {size!r}.", argument="size")
    height, width = (require_integer(side, "size") for side in sides)
    try:
        preprocessing = Preprocessing(height, width, crop_pct=1.0, crop_mode=crop_mode)
    except ModelError as error:
        argument = "crop_mode" if str(error).startswith("crop_mode") else "size"
        raise OptionError(f"`{argument}` is not valid: {error}", argument=argument) from error
    info = BackboneInfo(
        *(name, FUNCTION, dim, preprocessing, Adaptation(), "a Python function"),
        weights_digest=digest(name, fingerprint),
        library=FUNCTION,
    )
    head = Head(np.eye(dim, dtype=np.float32), np.zeros(dim, np.float32), "none")
    return Encoder.of(FunctionBackbone(info, function, batch_size), head, FROZEN)


def split_functions(
    backbones: Sequence[str | AnyEncoder], argument: str = "backbones"
) -> tuple[tuple[str, ...], dict[str, Encoder]]:
    """Return the names of all backbones, and by name the encoders among them, which must be from `as_encoder`."""
    functions: dict[str, Encoder] = {}
    for backbone in backbones:
        if isinstance(backbone, str):
            continue
        if not (isinstance(backbone, Encoder) and backbone.info.backbone.library == FUNCTION):
            raise OptionError(
                f"`{argument}` takes names and encoders from as_encoder, got {backbone!r}; benchmark takes others as "
                "bundles: save it with save_bundle and pass its folder in `bundles`.",
                argument=argument,
            )
        if functions.setdefault(backbone.name, backbone) is not backbone:
            raise OptionError(
                f"two functions in `{argument}` are called {backbone.name!r}; pass as_encoder another `name`.",
                argument=argument,
            )
    return tuple(b if isinstance(b, str) else b.name for b in backbones), functions
