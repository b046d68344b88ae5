"""A backbone and its head as torch modules that training changes; `freeze` makes the immutable encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from lookalike.errors import ModelError
from lookalike.models.adapt import adapt_network, adaptation_of, features_width, repeat_adaptation
from lookalike.models.backbone_files import BackboneFile, parse_backbone_file, require_pretrained
from lookalike.models.bundle import weights_digest
from lookalike.models.catalogue import BackboneRow
from lookalike.models.encoder import Encoder
from lookalike.models.heads import EMBEDDING_DIM, Head, random_head
from lookalike.models.info import (
    FROZEN,
    PROJECTED,
    TIMM,
    TRANSFORMERS,
    UNTRAINED,
    Adaptation,
    BackboneInfo,
    Library,
    TrainingState,
)
from lookalike.models.pipeline import FixedBackbone
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.registry import NONE, PRETRAINED, find_backbone
from lookalike.models.torch_backbone import TorchBackbone, arrays_of, default_device, normalize_pixels
from lookalike.models.transformers_backbone import load_transformers, network_of
from lookalike.models.weights import (
    load_backbone,
    resolve_repository,
    seeded_weights,
    state_difference,
    uninitialized_backbone,
)
from lookalike.types import Pixels, Vectors

State = dict[str, torch.Tensor]


class ProjectionHead(nn.Module):
    """Linear layer from pooled features `(n, features)` to `(n, 512)`, then L2 normalisation."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, EMBEDDING_DIM)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit-length float32 rows."""
        return nn.functional.normalize(self.linear(features).float(), dim=1)


class TrainableEncoder:
    """A backbone, `module`, with its head, both open to change; the other facts are those of `BackboneInfo`."""

    library: Library = TIMM
    config: str = ""

    def __init__(
        self,
        row: BackboneRow,
        module: nn.Module,
        preprocessing: Preprocessing,
        adaptation: Adaptation,  # which `module` has already
        weights: str,
        *,
        seed: int = 0,
    ) -> None:
        self.name = row.name
        self.timm_name = row.timm_name
        device = default_device()
        self.module = module.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        width = features_width(module, adaptation)
        with seeded_weights(0):  # the caller's random state is not used
            self.head = ProjectionHead(width).eval().to(device)
        self.preprocessing = preprocessing
        self.adaptation = adaptation
        self.weights = weights
        self.trained: TrainingState = UNTRAINED if weights == NONE else FROZEN
        self.set_head(random_head(width, seed=seed))

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
        """Dimensions of an embedding."""
        return self.head.linear.out_features

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides an embedding, as it is now."""
        return self.freeze().fingerprint

    def set_head(self, head: Head) -> None:
        """Replace the head's weights."""
        with torch.no_grad():
            self.head.linear.weight.copy_(torch.from_numpy(head.weight))
            self.head.linear.bias.copy_(torch.from_numpy(head.bias))
        self.head_origin = head.origin  # how it was made, in words

    def to_input(self, pixels: Pixels) -> torch.Tensor:
        """Turn `(n, h, w, 3)` uint8 into the normalised `(n, 3, h, w)` float32 that the module takes."""
        return normalize_pixels(pixels, self.preprocessing, self.device)

    @torch.inference_mode()
    def project(self, features: Vectors) -> Vectors:
        """Return the embeddings `(n, dim)` float32 of pooled features `(n, features)`."""
        with torch.autocast(self.device.type, enabled=False):  # 16 bits would make near neighbours equal
            embeddings: Vectors = self.head(torch.from_numpy(features).to(self.device).float()).cpu().numpy()
        return embeddings

    def state(self) -> State:
        """Return a copy of all weights on the CPU, `backbone.*` and `head.*`; further training does not change it."""
        return {
            f"{part}.{name}": tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for part, module in (("backbone", self.module), ("head", self.head))
            for name, tensor in module.state_dict().items()
        }

    def load_state(self, state: State) -> None:
        """Undo `state`; names and shapes must fit."""
        for part, module in (("backbone", self.module), ("head", self.head)):
            prefix = f"{part}."
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def torch_backbone(self, precision: str = "float32") -> TorchBackbone:
        """Return the backbone as it is now, for inference; it shares its weights with the module."""
        info = BackboneInfo(
            self.name,
            self.timm_name,
            self.features_width,
            self.preprocessing,
            self.adaptation,
            self.weights,
            weights_digest(arrays_of(self.module)),
            self.library,
            self.config,
        )
        return TorchBackbone(info, self.module, precision)

    def freeze(self) -> Encoder:
        """Return the encoder as it is now. It shares the backbone's weights, so do not continue training."""
        linear = self.head.linear
        weight, bias = (p.detach().cpu().numpy().copy() for p in (linear.weight, linear.bias))
        return Encoder.of(self.torch_backbone(), Head(weight, bias, self.head_origin), self.trained)


class _Vectors(nn.Module):
    """In place of a network that torch does not execute; it has no weights."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


class FixedEncoder(TrainableEncoder):
    """A backbone that is only run, with a head that is open to change."""

    def __init__(self, backbone: FixedBackbone, trained: TrainingState, *, seed: int = 0) -> None:
        info = backbone.info
        row, network = BackboneRow(info.name, info.timm_name), _Vectors(info.features)
        super().__init__(row, network, info.preprocessing, Adaptation(), info.weights, seed=seed)
        self.trained = trained
        self._backbone = backbone

    def torch_backbone(self, precision: str = "float32") -> TorchBackbone:  # noqa: ARG002 - it has one of its own
        """Return the backbone, which is not torch's, for images that are prepared as for this encoder."""
        backbone: TorchBackbone = self._backbone.with_preprocessing(self.preprocessing)
        return backbone


def load_torch_backbone(info: BackboneInfo, weights: Mapping[str, np.ndarray]) -> TorchBackbone:
    """Return a backbone with these weights on torch; raise `ModelError` if they do not fit the network."""
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    require_fit(info, {name: tensor.shape for name, tensor in state.items()})
    module = _network(info)
    module.load_state_dict(state)
    device = default_device()
    return TorchBackbone(info, module.eval().to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]


def require_fit(info: BackboneInfo, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise `ModelError` unless weights of these shapes fit the network, before it takes any memory."""
    if info.library == TIMM and not timm.is_model(info.timm_name):
        raise ModelError(f"timm has no architecture called {info.timm_name!r}, which the bundle names.")
    with torch.device("meta"):
        expected = _network(info).state_dict()
        difference = state_difference(expected, {name: torch.empty(tuple(shape)) for name, shape in shapes.items()})
    if difference:
        raise ModelError(
            f"the weights of {info.name} do not fit {info.timm_name}: {difference}; create the bundle again."
        )


def _network(info: BackboneInfo) -> nn.Module:
    if info.library == TRANSFORMERS:
        return network_of(info)
    row = BackboneRow(info.name, info.timm_name, projected=info.adaptation.pooling == PROJECTED)
    module = uninitialized_backbone(row)
    repeat_adaptation(module, info.adaptation, info.preprocessing)
    return module


def build_trainable(
    name: str,
    weights: str | Path = PRETRAINED,
    *,
    seed: int = 0,
    adapt: Callable[[nn.Module], Adaptation] | None = None,
) -> TrainableEncoder:
    """Build an encoder by the name of its backbone, with a random head.

    `adapt` returns changes to the network that are added to those of the catalogue's row.
    """
    file = parse_backbone_file(name)
    if file is not None:
        return _build_from_folder(file, weights, seed)
    row = resolve_repository(find_backbone(name))
    module, source = load_backbone(row, weights, seed=seed)
    adaptation = adaptation_of(row, module, adapt(module) if adapt is not None else Adaptation())
    preprocessing = adapt_network(module, adaptation, preprocessing_of(module))
    return TrainableEncoder(row, module, preprocessing, adaptation, source, seed=seed)


def _build_from_folder(file: BackboneFile, weights: str | Path, seed: int) -> TrainableEncoder:
    """Build an encoder from a folder of transformers; an ONNX file has no network that torch executes."""
    require_pretrained(file, weights)
    if file.library != TRANSFORMERS:
        raise ModelError(f"{file.name} cannot be trained; use it as it is.", argument="backbone")
    network, preprocessing, config = load_transformers(file)
    row = BackboneRow(file.name, type(network.model).__name__)
    encoder = TrainableEncoder(row, network, preprocessing, Adaptation(), f"folder {file.path.name}", seed=seed)
    encoder.library, encoder.config = TRANSFORMERS, config
    return encoder


def preprocessing_of(module: nn.Module) -> Preprocessing:
    """Return the preprocessing in timm's record of the weights."""
    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
    _, height, width = config["input_size"]
    return Preprocessing(
        height=int(height),
        width=int(width),
        crop_pct=float(config["crop_pct"]),
        interpolation=config["interpolation"] if config["interpolation"] != "random" else "bicubic",
        mean=_channels(config["mean"]),
        std=_channels(config["std"]),
        crop_mode=str(config["crop_mode"]),
    )


def _channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
