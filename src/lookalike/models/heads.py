"""The projection head."""

from __future__ import annotations

import torch
from torch import nn

from lookalike.models.projection import EMBEDDING_DIM
from lookalike.types import Vectors


class ProjectionHead(nn.Module):
    """Linear layer from pooled features `(n, features)` to `(n, dim)`, then L2 normalisation."""

    def __init__(self, features: int, dim: int = EMBEDDING_DIM) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return unit-length float32 rows `(n, dim)`."""
        return nn.functional.normalize(self.linear(features).float(), dim=1)

    def set(self, weight: Vectors, bias: Vectors) -> None:
        """Put a fitted projection in place of the random one."""
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(weight))
            self.linear.bias.copy_(torch.from_numpy(bias))
