"""A member whose network torch computes in bfloat16; head and L2 norm stay in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lookalike.errors import ModelError
from lookalike.models.devices import computes_bfloat16
from lookalike.models.member import TrainableEncoder
from lookalike.models.preprocessing import Preprocessing
from lookalike.types import Pixels, Vectors

_ON_GPU = 128
"""Images at once that fill a GPU."""


class LoweredMember:
    """An engine: a member under autocast. On a GPU a batch is copied and computed while the next one is decoded.

    Args:
        member: whose weights these are; they are shared.

    Raises:
        ModelError: the device does not compute in bfloat16.

    """

    def __init__(self, member: TrainableEncoder) -> None:
        if not computes_bfloat16(member.device):
            raise ModelError(f"{member.runs_on} does not compute in bfloat16 here; leave out precision.")
        self._member = member

    @property
    def backbone(self) -> str:
        """The member's."""
        return self._member.backbone

    @property
    def runtime(self) -> str:
        """What computes."""
        return self._member.runtime

    @property
    def precision(self) -> str:
        """What is computed in."""
        return "bfloat16"

    @property
    def preprocessing(self) -> Preprocessing:
        """The member's."""
        return self._member.preprocessing

    @property
    def dim(self) -> int:
        """The member's."""
        return self._member.dim

    @property
    def fingerprint(self) -> str:
        """The member's."""
        return self._member.fingerprint

    @property
    def trained(self) -> str:
        """The member's."""
        return self._member.trained

    @property
    def runs_on(self) -> str:
        """The kind of device."""
        return self._member.runs_on

    @property
    def batch_size(self) -> int:
        """As many as fill the device."""
        return _ON_GPU if self.runs_on == "cuda" else self._member.batch_size

    @property
    def in_flight(self) -> int:
        """On a GPU one batch is computed and one waits."""
        return 2 if self.runs_on == "cuda" else 1

    def encode(self, pixels: Pixels) -> Vectors:
        """Return the embeddings `(n, dim)` float32, unit length, of `(n, h, w, 3)` uint8 pixels."""
        return self.submit(pixels)()

    @torch.inference_mode()
    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Begin to do what `encode` does; on a CPU it is done at once."""
        with torch.autocast(self.runs_on, torch.bfloat16):
            features = self._member.module(self._member.to_input(pixels))
        found = self._member.head(features.float())
        if found.device.type == "cuda":
            kept = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            kept.copy_(found, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()

            def wait() -> Vectors:
                done.synchronize()
                vectors: Vectors = kept.numpy()
                return vectors

            return wait
        vectors: Vectors = found.numpy()
        return lambda: vectors
