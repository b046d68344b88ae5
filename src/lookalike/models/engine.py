"""The protocol of what computes embeddings: uint8 pixels in, unit-length float32 vectors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lookalike.models.preprocessing import Preprocessing
from lookalike.types import Pixels, Vectors

LEAST_COSINE = {"float32": 0.9999, "bfloat16": 0.98, "int8": 0.90}
"""The smallest cosine to torch's float32 embedding of the same picture that an engine may have, by precision."""


class Computes(Protocol):
    """Anything that turns batches of pixels into rows of numbers, several at once if need be."""

    @property
    def batch_size(self) -> int:
        """Images that are best given at once."""

    @property
    def in_flight(self) -> int:
        """How many batches may be submitted before the first of them is asked for."""

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Begin to compute; the function that is returned waits for it, and is called once."""


class Engine(Computes, Protocol):
    """A backbone with its head on one runtime.

    Normalisation, pooling, head and L2 norm are its own: all that it is fed is what `preprocessing.pixels` made of a
    picture.
    """

    @property
    def backbone(self) -> str:
        """The name that the user gave."""

    @property
    def runtime(self) -> str:
        """What computes: torch, openvino or onnxruntime."""

    @property
    def precision(self) -> str:
        """What is computed in: float32, bfloat16 or int8."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What the pixels must look like."""

    @property
    def dim(self) -> int:
        """Number of dimensions of an embedding."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model; the same on every engine that gives its embeddings."""

    @property
    def trained(self) -> str:
        """`untrained` (random weights), `frozen` (pretrained as it came) or `fine-tuned`."""

    @property
    def runs_on(self) -> str:
        """The kind of device: cpu, cuda, ..."""

    def encode(self, pixels: Pixels) -> Vectors:
        """Return the embeddings `(n, dim)` float32, unit length, of `(n, h, w, 3)` uint8 pixels."""
