"""The last block of a transformer of which only the class token is used: what no one reads is not computed."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn import functional


class ClassTokenBlock(Block):
    """timm's block for the first token alone: `(n, tokens, width)` to `(n, 1, width)`, the same weights and values.

    The other tokens are its keys and values; their own queries and everything after the attention are left out, which
    of a ViT-B/16 is 7 % of all.
    """

    attn: Any
    query: nn.Linear
    others: nn.Linear

    def forward(self, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
        """Return the first token after the block; a mask, which would be cut likewise, is for callers of other kinds.

        Raises:
            NotImplementedError: given a mask.

        """
        if attn_mask is not None or is_causal:
            raise NotImplementedError("the class token attends to all tokens; build the network with timm for a mask.")
        first = x[:, :1]
        first = first + self.drop_path1(self.ls1(self._attended(self.norm1(x))))
        out: torch.Tensor = first + self.drop_path2(self.ls2(self.mlp(self.norm2(first))))
        return out

    def split(self) -> None:
        """Keep the weights of queries apart from those of keys and values, for exporters that cannot cut a matrix."""
        with torch.no_grad():
            for name, (weight, bias) in zip(("query", "others"), _parts(self.attn), strict=True):
                layer = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, device="meta").to_empty(
                    device="cpu"
                )
                layer.weight.copy_(weight)
                if bias is not None:
                    layer.bias.copy_(bias)
                setattr(self, name, layer)

    def _attended(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the first token is given by all, `(n, 1, width)`.

        Written out: the sums of one query are few, and torch's own attention goes wrong on some devices for so few.
        """
        attention = self.attn
        n, tokens, _ = x.shape
        heads = attention.num_heads
        if hasattr(self, "query"):
            asked, given = self.query(x[:, :1]), self.others(x)
        else:
            own, others = _parts(attention)
            asked, given = functional.linear(x[:, :1], *own), functional.linear(x, *others)
        query = attention.q_norm(asked.reshape(n, 1, heads, -1).transpose(1, 2))
        key, value = given.reshape(n, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * attention.scale) @ attention.k_norm(key).transpose(-2, -1)
        found = attention.attn_drop(weights.softmax(-1)) @ value
        found = attention.norm(found.transpose(1, 2).reshape(n, 1, -1))
        out: torch.Tensor = attention.proj_drop(attention.proj(found))
        return out


_Part = tuple[torch.Tensor, torch.Tensor | None]


def _parts(attention: Any) -> tuple[_Part, _Part]:
    """Return weights and biases of queries, and of keys and values together."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    width = len(weight) // 3
    own, others = ((weight[cut], None if bias is None else bias[cut]) for cut in (slice(width), slice(width, None)))
    return own, others


_ATTENTION = "Attention"
"""timm's plain one, wherever a version of it keeps it; other kinds have other names."""
_NEEDED = ("num_heads", "scale", "qkv", "q_norm", "k_norm", "attn_drop", "norm", "proj", "proj_drop")


def drop_unread_tokens(module: nn.Module) -> None:
    """Let a network whose features are its class token compute only that in its last block; leave any other as it is.

    Weights, their names and the features, up to rounding, are the same.
    """
    if type(module) is not VisionTransformer or module.global_pool != "token" or module.attn_pool is not None:
        return
    last = module.blocks[-1]
    known = type(last) is Block and type(last.attn).__name__ == _ATTENTION
    known = known and all(hasattr(last.attn, name) for name in _NEEDED)
    if known and getattr(last.attn, "gate", None) is None:
        last.__class__ = ClassTokenBlock


def split_weights(module: nn.Module) -> None:
    """Prepare a network for exporters; what it computes is the same, the names of its weights are not."""
    for block in module.modules():
        if isinstance(block, ClassTokenBlock):
            block.split()
