"""Change a network as timm builds it: pooling, input size, and the last block of a transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional

from lookalike.errors import OptionError
from lookalike.models.catalogue import BackboneRow
from lookalike.models.info import AS_PRETRAINED, PROJECTED, TOKEN, TOKEN_AVG, Adaptation
from lookalike.models.preprocessing import Preprocessing

_TOKEN_NETWORKS = (VisionTransformer, Eva)
_ATTENTION_ATTRIBUTES = ("num_heads", "scale", "qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop")


def adaptation_of(row: BackboneRow, module: nn.Module, changes: Adaptation) -> Adaptation:
    """Return what a row of the catalogue changes in the network that timm builds, with further changes."""
    pooling, side = changes.pooling, changes.side
    if pooling == AS_PRETRAINED and row.projected:
        pooling = PROJECTED
    elif pooling == AS_PRETRAINED and type(module) in _TOKEN_NETWORKS and row.pooling:
        pooling = AS_PRETRAINED if module.global_pool == row.pooling else row.pooling
    if row.trained_size:
        side *= row.input_size / row.trained_size
    return Adaptation(pooling, side)


def features_width(module: nn.Module, adaptation: Adaptation) -> int:
    """Return the number of features of a network that was changed so."""
    if adaptation.pooling == PROJECTED:
        return int(module.num_classes)  # type: ignore[arg-type]
    width = int(getattr(module, "head_hidden_size", None) or module.num_features)  # type: ignore[arg-type]
    return 2 * width if adaptation.pooling == TOKEN_AVG else width


def adapt_network(module: nn.Module, adaptation: Adaptation, preprocessing: Preprocessing) -> Preprocessing:
    """Change a network in place, or raise `OptionError`; return the preprocessing that it needs then."""
    if adaptation.side != 1:
        sides = (preprocessing.height, preprocessing.width)
        patch = getattr(getattr(module, "patch_embed", None), "patch_size", None) or (32,)
        step = 32 if 32 % patch[0] == 0 else patch[0]
        height, width = (max(step, round(side * adaptation.side / step) * step) for side in sides)
        preprocessing = replace(preprocessing, height=height, width=width)
    repeat_adaptation(module, adaptation, preprocessing)
    return preprocessing


def repeat_adaptation(module: nn.Module, adaptation: Adaptation, preprocessing: Preprocessing) -> None:
    """Change a fresh network in place as one that was changed before; the preprocessing is the changed one."""
    if adaptation.pooling not in (AS_PRETRAINED, PROJECTED):  # a projected network is built so
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


class TokenAndMean(nn.Module):
    """The class token joined with the mean of the patches' tokens: `(n, tokens, width)` to `(n, 2 · width)`."""

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return both in one row, the class token first."""
        return torch.cat((x[:, 0], x[:, self.prefix_tokens :].mean(1)), 1)


def _replace_token_pooling(module: Any, pooling: str) -> None:
    """Change the pooling of a transformer whose final norm comes before it."""
    advice = f"use pooling {AS_PRETRAINED!r}"
    problem = ""
    if pooling == "gem":
        problem = f"pools tokens, which may be negative; use token, token+avg, avg or max, or {advice}"
    elif module.attn_pool is not None:
        problem = f"has learned its pooling; {advice}"
    elif pooling in (TOKEN, TOKEN_AVG) and (module.cls_token is None or not isinstance(module.fc_norm, nn.Identity)):
        problem = f"was not trained with the class token; {advice}"
    if problem:
        raise OptionError(f"pooling {pooling!r} does not fit {_name(module)}, which {problem}.", argument="pooling")
    module.reset_classifier(0)
    if isinstance(module.blocks[-1], ClassTokenBlock):
        module.blocks[-1].__class__ = cast("Any", Block)
    module.global_pool = "" if pooling == TOKEN_AVG else pooling
    if pooling == TOKEN_AVG:
        module.fc_norm = TokenAndMean(module.num_prefix_tokens)
    drop_unread_tokens(module)


def _replace_pooling(module: nn.Module, pooling: str) -> None:
    if type(module) in _TOKEN_NETWORKS:
        _replace_token_pooling(module, pooling)
        return
    pools = [(n, m) for n, m in module.named_modules() if isinstance(m, SelectAdaptivePool2d)]
    if (
        pooling in (TOKEN, TOKEN_AVG)
        or len(pools) != 1
        or getattr(pools[0][1], "input_fmt", "NCHW") not in ("", "NCHW")
    ):
        needed = "has a class token" if pooling in (TOKEN, TOKEN_AVG) else "pools one feature map"
        raise OptionError(
            f"pooling {pooling!r} needs a network that {needed}, which {_name(module)} does not; "
            f"use pooling {AS_PRETRAINED!r}.",
            argument="pooling",
        )
    name, old = pools[0]
    flatten = not isinstance(old.flatten, nn.Identity)
    gem = pooling == "gem"
    new = GeneralizedMean(flatten=flatten) if gem else SelectAdaptivePool2d(pool_type=pooling, flatten=flatten)
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


def drop_unread_tokens(module: nn.Module) -> None:
    """Compute only the class token in the last block of a network whose feature it is; others are not changed.

    Weights, their names and the features, up to rounding, are the same.
    """
    if type(module) is not VisionTransformer or module.global_pool != "token" or module.attn_pool is not None:
        return
    last = module.blocks[-1]
    # timm's plain attention, wherever a version keeps it; other attention classes have other names
    plain = type(last) is Block and type(last.attn).__name__ == "Attention"
    plain = plain and all(hasattr(last.attn, name) for name in _ATTENTION_ATTRIBUTES)
    if plain and getattr(last.attn, "gate", None) is None:
        last.__class__ = ClassTokenBlock


class ClassTokenBlock(Block):
    """timm's block for the first token alone: `(n, tokens, width)` to `(n, 1, width)`, the same weights and values.

    The other tokens are its keys and values; their own queries and everything after the attention are not computed,
    which saves 7 % of the work of a ViT-B/16 (benchmarks/embedding.py --backbone vit_b_16).
    """

    attn: Any
    query: nn.Linear
    key_value: nn.Linear

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """Return the first token after the block."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("the class token attends to all tokens; build the network with timm for a mask.")
        first = x[:, :1]
        first = first + self.drop_path1(self.ls1(self._attend(self.norm1(x))))
        out: torch.Tensor = first + self.drop_path2(self.ls2(self.mlp(self.norm2(first))))
        return out

    def split(self) -> None:
        """Store the weights of queries apart from those of keys and values, for exporters that cannot cut a matrix."""
        with torch.no_grad():
            for name, (weight, bias) in zip(("query", "key_value"), _split_qkv(self.attn), strict=True):
                layer = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), bias=bias is not None)  # type: ignore[no-untyped-call]
                layer.weight.copy_(weight)
                if bias is not None:
                    layer.bias.copy_(bias)
                setattr(self, name, layer)

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention output of the first token, `(n, 1, width)`.

        Written out: one query needs few sums, and torch's own attention is wrong on some devices for so few.
        """
        attention = self.attn
        n, tokens, _ = x.shape
        heads = attention.num_heads
        if hasattr(self, "query"):
            query, key_value = self.query(x[:, :1]), self.key_value(x)
        else:
            query_weights, key_value_weights = _split_qkv(attention)
            query, key_value = functional.linear(x[:, :1], *query_weights), functional.linear(x, *key_value_weights)
        query = attention.q_norm(query.reshape(n, 1, heads, -1).transpose(1, 2))
        key, value = key_value.reshape(n, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * attention.scale) @ attention.k_norm(key).transpose(-2, -1)
        mixed = attention.attn_drop(weights.softmax(-1)) @ value
        mixed = attention.norm(mixed.transpose(1, 2).reshape(n, 1, -1))
        out: torch.Tensor = attention.proj_drop(attention.proj(mixed))
        return out


def _split_qkv(attention: Any) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    weight, bias = attention.qkv.weight, attention.qkv.bias
    width = len(weight) // 3
    return [(weight[s], None if bias is None else bias[s]) for s in (slice(width), slice(width, None))]
