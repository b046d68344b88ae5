"""One member of an encoder: a backbone, its head and its preprocessing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lookalike._files import digest
from lookalike.errors import ModelError
from lookalike.models.adapt import Adaptation
from lookalike.models.devices import default_device, keep_freed_memory
from lookalike.models.encoder import Encoder
from lookalike.models.heads import ProjectionHead
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.stream import BATCH_SIZE
from lookalike.types import Vectors


class TrainableEncoder:
    """A backbone with its projection head, ready to turn pixels into unit-length vectors.

    Attributes:
        backbone: the name the user gave.
        timm_name: the architecture.
        module: maps `(n, 3, h, w)` float32 to pooled features.
        head: `ProjectionHead`.
        preprocessing: what the pixels must look like.
        origin: facts for people: where the weights come from, how the head was made, how it was trained.
        adaptation: what was changed of the network as timm builds it; `module` has it already.

    """

    def __init__(
        self,
        backbone: str,
        timm_name: str,
        module: nn.Module,
        head: ProjectionHead,
        preprocessing: Preprocessing,
        origin: dict[str, Any] | None = None,
        *,
        adaptation: Adaptation = Adaptation(),  # noqa: B008 - frozen
    ) -> None:
        self.backbone = backbone
        self.timm_name = timm_name
        keep_freed_memory()
        device = default_device()
        self.module = module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.head = head.eval().to(device)
        self.preprocessing = preprocessing
        self.origin = dict(origin or {})
        self.adaptation = adaptation
        self._fingerprint: str | None = None

    @property
    def runtime(self) -> str:
        """What computes."""
        return "torch"

    @property
    def precision(self) -> str:
        """What is computed in."""
        return "float32"

    @property
    def runs_on(self) -> str:
        """The kind of device."""
        return str(self.device.type)

    @property
    def batch_size(self) -> int:
        """Images that are best given at once."""
        return BATCH_SIZE

    @property
    def in_flight(self) -> int:
        """One: a forward pass ends before the next begins."""
        return 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.linear.weight.device

    @property
    def features_width(self) -> int:
        """Number of pooled features."""
        return self.head.linear.in_features

    @property
    def dim(self) -> int:
        """Number of dimensions of the embedding."""
        return self.head.linear.out_features

    @property
    def trained(self) -> str:
        """`untrained` (random weights), `frozen` (pretrained as it came) or `fine-tuned`."""
        return str(self.origin.get("trained", "frozen"))

    def to_input(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Turn `(n, h, w, 3)` uint8 into the normalised `(n, 3, h, w)` float32 that the module takes."""
        mean, std = _scale_of(self.preprocessing.mean, self.preprocessing.std, self.device)
        x = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            x = x.pin_memory()  # so that copying does not wait
        x = x.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # already channels_last in memory
        return x.float().sub_(mean).div_(std)

    @torch.inference_mode()
    def features(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """Return the pooled features `(n, features)` float32 of `(n, h, w, 3)` uint8 pixels."""
        out: Vectors = self.module(self.to_input(pixels)).float().cpu().numpy()
        return out

    @torch.inference_mode()
    def encode(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """Return the embeddings `(n, dim)` float32, unit length, of `(n, h, w, 3)` uint8 pixels."""
        return self._projected(self.module(self.to_input(pixels)))

    def submit(self, pixels: npt.NDArray[np.uint8]) -> Callable[[], Vectors]:
        """Do what `encode` does, at once; the function that is returned hands it over."""
        vectors = self.encode(pixels)
        return lambda: vectors

    @torch.inference_mode()
    def project(self, features: Vectors) -> Vectors:
        """Apply the head alone to pooled features `(n, features)`."""
        return self._projected(torch.from_numpy(features).to(self.device))

    def _projected(self, features: torch.Tensor) -> Vectors:
        with torch.autocast(self.device.type, enabled=False):  # 16 bits would make near neighbours equal
            out: Vectors = self.head(features.float()).cpu().numpy()
        return out

    def state(self) -> dict[str, torch.Tensor]:
        """Return a copy of all weights, on the CPU: `backbone.*` and `head.*`; training on does not change it."""
        return {
            key: value.to("cpu", copy=True, memory_format=torch.contiguous_format) for key, value in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for part, module in (("backbone", self.module), ("head", self.head)):
            for key, value in module.state_dict().items():
                yield f"{part}.{key}", value.detach()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Undo `state`; names and shapes must fit."""
        for part, module in (("backbone", self.module), ("head", self.head)):
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self._fingerprint = None

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the weights, the architecture and the preprocessing."""
        if self._fingerprint is None:
            self._fingerprint = self._digest("")
        return self._fingerprint

    @property
    def backbone_fingerprint(self) -> str:
        """The same without the head: what decides the pooled features."""
        return self._digest("backbone.")

    def _digest(self, prefix: str) -> str:
        parts: list[bytes | str] = [self.timm_name, json.dumps(self.preprocessing.to_dict(), sort_keys=True)]
        if not self.adaptation.changes_nothing:
            parts.append(json.dumps(self.adaptation.to_dict(), sort_keys=True))
        for key, value in sorted(self._tensors(), key=itemgetter(0)):
            if key.startswith(prefix):
                parts += [key, value.cpu().contiguous().numpy().tobytes()]
        return digest(*parts)

    def changed(self) -> None:
        """Say that the weights were changed in place, so that the fingerprint is taken anew."""
        self._fingerprint = None


@functools.lru_cache(maxsize=16)
def _scale_of(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both `(1, 3, 1, 1)` of pixels from 0 to 255; kept, as making them anew would wait for the device."""
    with torch.inference_mode(mode=False):
        made = [torch.tensor(value, device=device).mul(255).view(1, 3, 1, 1) for value in (mean, std)]
    return made[0], made[1]


def members_of(encoder: Encoder) -> tuple[TrainableEncoder, ...]:
    """Return an encoder's members as what can be trained and saved.

    Raises:
        ModelError: it was exported, which leaves embeddings as all that can be had of it.

    """
    members = tuple(m for m in encoder.members if isinstance(m, TrainableEncoder))
    if len(members) < len(encoder.members):
        raise ModelError(f"{encoder.name} is an exported model; give the bundle that it was exported from.")
    return members
