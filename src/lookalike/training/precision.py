"""Mixed precision where the device has it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from lookalike.models.devices import computes_bfloat16


def is_lowered(device: torch.device, precision: str) -> bool:
    """Whether forward passes are in 16 bits: asked for, or native where `auto` is."""
    return precision in ("bfloat16", "float16") or (precision == "auto" and computes_bfloat16(device))


def resolved_precision(device: torch.device, precision: str) -> str:
    """Return what `auto` is there; another precision is what it says."""
    if precision != "auto":
        return precision
    return "bfloat16" if is_lowered(device, precision) else "float32"


def is_scaled(precision: str) -> bool:
    """Whether the loss must be scaled up, so that small gradients do not vanish: float16 has a short exponent."""
    return precision == "float16"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context for forward passes in that precision."""
    kind = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, kind, enabled=is_lowered(device, precision))


class _Float32(nn.Module):
    """Runs one layer in float32 inside an autocast region."""

    def __init__(self, layer: nn.Module, device_type: str) -> None:
        super().__init__()
        self.layer = layer
        self.device_type = device_type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(self.device_type, enabled=False):
            out: torch.Tensor = self.layer(x.float()).to(x.dtype)
        return out


def keep_slow_layers_float32(module: nn.Module, device: torch.device) -> None:
    """On a CPU, take wide or strided depthwise convolutions out of bfloat16: their backward pass is slower there.

    Measured in docs/log.md. Wraps layers in place; `unwrap` puts the module back.
    """
    if device.type != "cpu":
        return
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if _is_slow(layer) and not isinstance(parent, _Float32):
                setattr(parent, name, _Float32(layer, device.type))


def unwrap(module: nn.Module) -> None:
    """Undo `keep_slow_layers_float32`."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, _Float32):
                setattr(parent, name, layer.layer)


def _is_slow(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.groups == layer.in_channels > 1
        and (layer.kernel_size[0] >= 5 or layer.stride[0] > 1)
    )
