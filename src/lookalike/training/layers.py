"""A network's layers in order: which are trained, at what rate, and which are passed over by chance."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from timm.layers.drop import DropPath
from timm.models import group_parameters
from torch import nn

from lookalike.errors import OptionError
from lookalike.models.adapt import GeneralizedMean


def layer_numbers(module: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter, 0 for the first; as timm groups them, else by their top-level parts.

    A pooling that learns its exponent is no layer of its own: it belongs to the last.
    """
    matcher = getattr(module, "group_matcher", None)
    if matcher is not None:
        found: dict[str, int] = group_parameters(module, matcher(coarse=False), reverse=True)
    else:
        parts = list(dict.fromkeys(name.partition(".")[0] for name, _ in module.named_parameters()))
        found = {name: parts.index(name.partition(".")[0]) for name, _ in module.named_parameters()}
    exponents = {f"{name}.p" for name, part in module.named_modules() if isinstance(part, GeneralizedMean)}
    last = max(number for name, number in found.items() if name not in exponents)
    return {name: last if name in exponents else number for name, number in found.items()}


def freeze_first_layers(module: nn.Module, share: float) -> None:
    """Let the last `share` of the layers be trained, at least one, and no other."""
    numbers = layer_numbers(module)
    last = max(numbers.values())
    first = last + 1 - max(1, math.ceil(share * (last + 1) - 1e-9))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(numbers[name] >= first)


def rate_shares(module: nn.Module, decay: float) -> dict[str, float]:
    """Return each parameter's share of the rate: `decay` to the power of its depth from the end.

    Clark et al. 2020 ("ELECTRA"), Bao et al. 2021 ("BEiT").
    """
    numbers = layer_numbers(module)
    last = max(numbers.values())
    return {name: decay ** (last - number) for name, number in numbers.items()}


def shortcuts(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return the blocks with a shortcut, each with the name of its part that can pass it over."""
    return [
        (parent, name)
        for parent in module.modules()
        for name in ("drop_path", "drop_path1", "drop_path2")
        if hasattr(parent, name) and (getattr(parent, name) is None or isinstance(getattr(parent, name), nn.Identity))
    ]


def no_shortcuts(module: nn.Module) -> OptionError:
    """Return the error of a network in which stochastic depth has no place."""
    return OptionError(
        f"drop_path needs a network of residual blocks, which {type(module).__name__} is not; set it to 0."
    )


@contextlib.contextmanager
def stochastic_depth(module: nn.Module, rate: float) -> Iterator[None]:
    """Inside, blocks with a shortcut are passed over by chance: the last with `rate`, those before it less, evenly.

    Huang et al. 2016, "Deep networks with stochastic depth".

    Raises:
        OptionError: the network has no such blocks, or none that can be found.

    """
    if rate == 0:
        yield
        return
    places = shortcuts(module)
    blocks = list(dict.fromkeys(id(parent) for parent, _ in places))
    if not blocks:
        raise no_shortcuts(module)
    before = [getattr(parent, name) for parent, name in places]
    for parent, name in places:
        depth = blocks.index(id(parent)) / max(1, len(blocks) - 1)
        setattr(parent, name, DropPath(rate * depth).train(module.training))
    try:
        yield
    finally:
        for (parent, name), old in zip(places, before, strict=True):
            setattr(parent, name, old)
