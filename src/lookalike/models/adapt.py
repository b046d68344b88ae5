"""Changes to a network as timm builds it: pooling and input side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import nn

from lookalike.errors import OptionError
from lookalike.models.preprocessing import Preprocessing

PRETRAINED = "pretrained"
FAMILIES = ("cnn", "mobile-cnn", "transformer", "hybrid")


@dataclass(frozen=True)
class Adaptation:
    """What is changed of a network; the default changes nothing.

    Attributes:
        pooling: of the feature map: pretrained (that of the network), avg, max, avgmax or gem.
        side: of the pictures, over what the weights were trained at.

    """

    pooling: str = PRETRAINED
    side: float = 1.0

    @property
    def changes_nothing(self) -> bool:
        """Whether the network stays as timm builds it."""
        return self == Adaptation()

    def apply(self, module: nn.Module, preprocessing: Preprocessing) -> Preprocessing:
        """Change a network in place and return the preprocessing that it wants now.

        Raises:
            OptionError: the network cannot be changed so.

        """
        if self.side != 1:
            p = preprocessing
            height, width = (max(32, round(side * self.side / 32) * 32) for side in (p.height, p.width))
            preprocessing = replace(p, height=height, width=width)
        self.repeat(module, preprocessing)
        return preprocessing

    def repeat(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        """Change a fresh network in place as one that was changed before; the preprocessing is that one's."""
        if self.pooling != PRETRAINED:
            _replace_pooling(module, self.pooling)
        if self.side != 1:
            _take_side(module, preprocessing.height, preprocessing.width)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any] | None) -> Adaptation:
        """Undo `to_dict`; None is the default."""
        return cls(**(value or {}))


class GeneralizedMean(nn.Module):
    """GeM pooling `(n, c, h, w)` to `(n, c)`: the p-th root of the mean p-th power, p learnt.

    1 is the mean, infinity the maximum. Radenović, Tolias, Chum 2019, "Fine-tuning CNN image retrieval with no human
    annotation"; p starts at their 3. What is below zero counts as zero.
    """

    def __init__(self, p: float = 3.0, *, flatten: bool = True) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.flatten = flatten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return pooled features in float32, `(n, c, 1, 1)` where the network flattens them itself."""
        with torch.autocast(x.device.type, enabled=False):  # powers of small numbers vanish in bfloat16
            pooled = x.float().clamp(min=1e-6).pow(self.p).mean((2, 3), keepdim=not self.flatten)
            return pooled.pow(1 / self.p)


def family_of(module: nn.Module) -> str:
    """Tell cnn, mobile-cnn (depthwise convolutions and batch norm), transformer and hybrid apart by their layers."""
    layers = list(module.modules())
    convolutions = [m for m in layers if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    if any(hasattr(m, "num_heads") or "Attention" in type(m).__name__ for m in layers):
        return "hybrid" if len(convolutions) > 1 else "transformer"
    depthwise = any(m.groups == m.in_channels > 1 for m in convolutions)
    normal = not any(isinstance(m, nn.LayerNorm) for m in layers)
    normal &= any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in layers)
    return "mobile-cnn" if depthwise and normal else "cnn"


def _replace_pooling(module: nn.Module, pooling: str) -> None:
    places = [(n, m) for n, m in module.named_modules() if isinstance(m, SelectAdaptivePool2d)]
    if len(places) != 1 or getattr(places[0][1], "input_fmt", "NCHW") not in ("", "NCHW"):
        raise OptionError(
            f"pooling {pooling!r} needs a network that pools one feature map, which {_name(module)} does not; "
            f"leave the pooling {PRETRAINED!r}."
        )
    name, old = places[0]
    flatten = not isinstance(old.flatten, nn.Identity)
    new: nn.Module
    if pooling == "gem":
        new = GeneralizedMean(flatten=flatten)
    else:
        new = SelectAdaptivePool2d(pool_type=pooling, flatten=flatten)
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


def _take_side(module: nn.Module, height: int, width: int) -> None:
    config = getattr(module, "pretrained_cfg", {})
    if not config.get("fixed_input_size", True):
        return
    resize = getattr(module, "set_input_size", None)
    if resize is None:
        raise OptionError(f"{_name(module)} takes pictures of one size only; leave side at 1.")
    try:
        resize(img_size=(height, width))
    except Exception as error:  # timm asserts, raises and divides, by network
        raise OptionError(f"{_name(module)} does not take pictures of {height} × {width}; leave side at 1.") from error


def _name(module: nn.Module) -> str:
    return str(getattr(module, "pretrained_cfg", {}).get("architecture", type(module).__name__))
