"""Image models of transformers in a folder of the user, as a network from images to pooled features.

Only files of the folder are read, and no code from it is run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from lookalike.errors import LookalikeError, ModelError, describe_error, import_extra
from lookalike.models.backbone_files import BackboneFile, processor_settings
from lookalike.models.info import BackboneInfo
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.weights import SkippedInitialisation

PROJECTION = "projection"  # the image embedding of an image-text model
POOLER = "pooler"
CLASS_TOKEN = "class token"
_MAX_LAYERS = 1 << 10
_MAX_NUMBER = 1 << 24
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


class PooledModel(nn.Module):
    """A model of transformers from images `(n, 3, h, w)` to features `(n, features)`."""

    def __init__(self, model: nn.Module, pooling: str, num_features: int) -> None:
        super().__init__()
        if pooling == PROJECTION:
            _keep_image_tower(model)
        elif pooling == CLASS_TOKEN:
            setattr(model, "pooler", None)  # noqa: B010 - a module's type has no such attribute
        self.model = model
        self.pooling = pooling
        self.num_features = num_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        if self.pooling == PROJECTION:
            output = self.model.get_image_features(pixel_values=x)  # type: ignore[operator]
            features = getattr(output, "pooler_output", output)
        elif self.pooling == CLASS_TOKEN:
            features = self.model(pixel_values=x).last_hidden_state[:, 0]
        else:
            features = self.model(pixel_values=x).pooler_output
        pooled: torch.Tensor = features.flatten(1)
        return pooled


def load_transformers(file: BackboneFile) -> tuple[PooledModel, Preprocessing, str]:
    """Return the network in a folder, its preprocessing, and its configuration as JSON for `network_of`."""
    transformers = import_extra("transformers", "transformers", file.name)
    file.require()
    if not (file.path / "config.json").is_file():
        raise file.refused(f"{file.path} has no config.json; pass a folder that save_pretrained wrote")
    with _refusing(file), _quiet():
        config = transformers.AutoConfig.from_pretrained(str(file.path), **_LOCAL)
        content = config.to_dict()
        _require_small(content)
        preprocessing = _preprocessing(transformers, file)
        _require_weights(transformers, file, config)
        model, report = transformers.AutoModel.from_pretrained(
            str(file.path),
            **_LOCAL,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are reported
            output_loading_info=True,
        )
        missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
        if missing or report["mismatched_keys"]:
            name = [*missing, *(str(key[0]) for key in report["mismatched_keys"])][0]
            raise file.refused(f"its weights do not fit its config.json (first: {name})")
        pooling = _pooling(file, model, has_pooler=not report["missing_keys"])
        network = PooledModel(model.eval(), pooling, 0)
        network.num_features = _count_features(file, network, preprocessing)
    config_text = json.dumps({"config": content, "pooling": pooling}, sort_keys=True, default=str)
    return network, preprocessing, config_text


def network_of(info: BackboneInfo) -> PooledModel:
    """Return the network of a record, with weights that are to be replaced."""
    transformers = import_extra("transformers", "transformers", info.name)
    try:
        record = json.loads(info.config)
        content = dict(record["config"])
        _require_small(content)
        with SkippedInitialisation(), _quiet():
            config = transformers.AutoConfig.for_model(content.pop("model_type"), **content)
            model = transformers.AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
        return PooledModel(model.eval(), record["pooling"], info.features)
    except Exception as error:  # of many kinds, by model
        raise ModelError(
            f"transformers cannot build {info.timm_name} of {info.name} ({describe_error(error)}); install the version "
            "that the bundle was made with, or create it again."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the bars and reports of transformers, and restore its settings afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _refusing(file: BackboneFile) -> Iterator[None]:
    try:
        yield
    except LookalikeError:
        raise
    except Exception as error:  # transformers raises a dozen kinds
        raise file.refused(describe_error(error)) from error


def _require_small(value: Any, key: str = "config") -> None:
    """Raise `ValueError` for a number that no model has, with which building it would take hours or all memory."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _require_small(part, str(name))
    elif isinstance(value, list | tuple):
        for part in value:
            _require_small(part, key)
    elif isinstance(value, int):
        largest = _MAX_LAYERS if ("layer" in key and "norm" not in key) or "depth" in key else _MAX_NUMBER
        if abs(value) > largest:
            raise ValueError(f"{key} in config.json is {value}, at most {largest} is supported")


def _require_weights(transformers: Any, file: BackboneFile, config: Any) -> None:
    """Raise `ModelError` unless the folder holds safetensors that are large enough, before the model takes memory."""
    weights = [path for path in file.files() if path.suffix == ".safetensors"]
    if not weights:
        others = any(file.path.glob("*.bin")) or any(file.path.glob("*.pt*"))
        problem = "only weights in a pickle, which can run code; save them as safetensors" if others else "no weights"
        raise file.refused(f"{file.path} holds {problem}")
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config, trust_remote_code=False)
    count, size = sum(p.numel() for p in model.parameters()), sum(path.stat().st_size for path in weights)
    if count > size:  # a weight takes at least a byte
        raise file.refused(f"its config.json is of {count:,} weights, but its files have {size:,} bytes")


def _preprocessing(transformers: Any, file: BackboneFile) -> Preprocessing:
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(str(file.path), **_LOCAL)
    except OSError as error:
        problem = "it has no preprocessor_config.json, which says how images are prepared; copy it from the model"
        raise file.refused(problem) from error
    settings = processor_settings(processor.to_dict())
    if "size" not in settings:
        raise file.refused("its preprocessor_config.json has no size")
    return file.preprocessing(settings, None)


def _pooling(file: BackboneFile, model: nn.Module, *, has_pooler: bool) -> str:
    if hasattr(model, "get_image_features"):
        return PROJECTION
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise file.refused(f"{type(model).__name__} is not an image model")
    return POOLER if has_pooler and hasattr(model, "pooler") else CLASS_TOKEN


def _keep_image_tower(model: nn.Module) -> None:
    """Remove everything of an image-text model but the part that computes image embeddings."""
    for name, _ in list(model.named_children()):
        if not name.startswith(("vision", "visual")):
            delattr(model, name)
    for name, _ in list(model.named_parameters(recurse=False)):
        delattr(model, name)


@torch.inference_mode()
def _count_features(file: BackboneFile, network: PooledModel, preprocessing: Preprocessing) -> int:
    images = torch.rand(2, 3, preprocessing.height, preprocessing.width, generator=torch.Generator().manual_seed(0))
    features = network(images)
    if features.ndim != 2 or len(features) != 2:
        raise file.refused(f"for two images it returns {tuple(features.shape)}, expected one vector per image")
    if not features.isfinite().all():
        raise file.refused("it computes values that are not finite")
    return int(features.shape[1])
