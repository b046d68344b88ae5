"""The last block of a transformer, computed for the class token alone in networks that use no other token.

7 % less work of a ViT-B/16 for the same features up to rounding (benchmarks/embedding.py --backbone vit_b_16).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional

# timm's plain attention, wherever a version keeps it; other attention classes have other names
_ATTENTION = "Attention"
_ATTENTION_ATTRIBUTES = ("num_heads", "scale", "qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop")


class ClassTokenBlock(Block):
    """timm's block for the first token alone: `(n, tokens, width)` to `(n, 1, width)`, the same weights and values.

    The other tokens are its keys and values; their own queries and everything after the attention are not computed.
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
                layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta").to_empty(
                    device="cpu"
                )
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


_WeightBias = tuple[torch.Tensor, torch.Tensor | None]


def _split_qkv(attention: Any) -> tuple[_WeightBias, _WeightBias]:
    """Return weight and bias of the queries, and of keys and values together."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    width = len(weight) // 3
    query, key_value = ((weight[s], None if bias is None else bias[s]) for s in (slice(width), slice(width, None)))
    return query, key_value


def drop_unread_tokens(module: nn.Module) -> None:
    """Compute only the class token in the last block of a network whose feature it is; others are not changed.

    Weights, their names and the features, up to rounding, are the same.
    """
    if type(module) is not VisionTransformer or module.global_pool != "token" or module.attn_pool is not None:
        return
    last = module.blocks[-1]
    plain = type(last) is Block and type(last.attn).__name__ == _ATTENTION
    plain = plain and all(hasattr(last.attn, name) for name in _ATTENTION_ATTRIBUTES)
    if plain and getattr(last.attn, "gate", None) is None:
        last.__class__ = ClassTokenBlock


def split_weights(module: nn.Module) -> None:
    """Prepare a network for exporters: it computes the same with other weight names."""
    for block in module.modules():
        if isinstance(block, ClassTokenBlock):
            block.split()
