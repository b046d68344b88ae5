"""Change a network as timm builds it: pooling and input size."""

from __future__ import annotations

from dataclasses import replace

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import nn

from lookalike.errors import OptionError
from lookalike.models.info import AS_PRETRAINED, Adaptation
from lookalike.models.preprocessing import Preprocessing


def adapt_network(module: nn.Module, adaptation: Adaptation, preprocessing: Preprocessing) -> Preprocessing:
    """Change a network in place, or raise `OptionError`; return the preprocessing that it needs then."""
    if adaptation.side != 1:
        sides = (preprocessing.height, preprocessing.width)
        height, width = (max(32, round(side * adaptation.side / 32) * 32) for side in sides)
        preprocessing = replace(preprocessing, height=height, width=width)
    repeat_adaptation(module, adaptation, preprocessing)
    return preprocessing


def repeat_adaptation(module: nn.Module, adaptation: Adaptation, preprocessing: Preprocessing) -> None:
    """Change a fresh network in place as one that was changed before; the preprocessing is the changed one."""
    if adaptation.pooling != AS_PRETRAINED:
        _replace_pooling(module, adaptation.pooling)
    if adaptation.side != 1:
        _set_input_size(module, preprocessing.height, preprocessing.width)


class GeneralizedMean(nn.Module):
    """GeM pooling `(n, c, h, w)` to `(n, c)`: the p-th root of the mean p-th power, with a learned p.

    1 is the mean, infinity the maximum. Radenović, Tolias, Chum 2019, "Fine-tuning CNN image retrieval with no human
    annotation"; p starts at 3 as in the paper. Values below zero count as zero.
    """

    def __init__(self, p: float = 3.0, *, flatten: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.flatten = flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return pooled features in float32, `(n, c, 1, 1)` where the network flattens them."""
        with torch.autocast(x.device.type, enabled=False):  # powers of small numbers vanish in bfloat16
            pooled = x.float().clamp(min=1e-6).pow(self.p).mean((2, 3), keepdim=not self.flatten)
            return pooled.pow(1 / self.p)


def family_of(module: nn.Module) -> str:
    """Return cnn, mobile-cnn (depthwise convolutions and batch norm), transformer or hybrid, judged by the layers."""
    layers = list(module.modules())
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    if any(hasattr(m, "num_heads") or "Attention" in type(m).__name__ for m in layers):
        return "hybrid" if len(convolutions) > 1 else "transformer"
    depthwise = any(m.groups == m.in_channels > 1 for m in convolutions)
    has_batch_norm = not any(isinstance(m, nn.LayerNorm) for m in layers)
    has_batch_norm &= any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in layers)
    return "mobile-cnn" if depthwise and has_batch_norm else "cnn"


def _replace_pooling(module: nn.Module, pooling: str) -> None:
    pools = [(n, m) for n, m in module.named_modules() if isinstance(m, SelectAdaptivePool2d)]
    if len(pools) != 1 or getattr(pools[0][1], "input_fmt", "NCHW") not in ("", "NCHW"):
        raise OptionError(
            f"pooling {pooling!r} needs a network that pools one feature map, which {_name(module)} does not; "
            f"use pooling {AS_PRETRAINED!r}.",
            argument="pooling",
        )
    name, old = pools[0]
    flatten = not isinstance(old.flatten, nn.Identity)
    new: nn.Module
    if pooling == "gem":
        new = GeneralizedMean(flatten=flatten)
    else:
        new = SelectAdaptivePool2d(pool_type=pooling, flatten=flatten)
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def _set_input_size(module: nn.Module, height: int, width: int) -> None:
    config = getattr(module, "pretrained_cfg", {})
    if not config.get("fixed_input_size", True):
        return
    resize = getattr(module, "set_input_size", None)
    if resize is None:
        raise OptionError(f"{_name(module)} supports one input size only; use side 1.", argument="side")
    try:
        resize(img_size=(height, width))
    except Exception as error:  # timm asserts, raises and divides, by network
        raise OptionError(
            f"{_name(module)} does not support inputs of {height} × {width}; use side 1.", argument="side"
        ) from error


def _name(module: nn.Module) -> str:
    return str(getattr(module, "pretrained_cfg", {}).get("architecture", type(module).__name__))
