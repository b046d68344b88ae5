"""A member as one graph for other runtimes: uint8 pixels in, unit-length embeddings out."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from lookalike.errors import ModelError
from lookalike.models.class_token import split_weights
from lookalike.models.member import TrainableEncoder

INPUT = "pixels"
OUTPUT = "embeddings"


class Graph(nn.Module):
    """All that a member does to `(n, h, w, 3)` uint8 pixels, normalisation, pooling, head and L2 norm included.

    Args:
        member: is copied.
        head: whether its head and the L2 norm are in it; without them it gives the pooled features.

    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, member: TrainableEncoder, *, head: bool = True) -> None:
        super().__init__()
        self.module = copy.deepcopy(member.module).cpu().to(memory_format=torch.contiguous_format)
        self.head = copy.deepcopy(member.head).cpu() if head else nn.Identity()
        p = member.preprocessing
        _take_one_size(self.module, p.height, p.width)
        split_weights(self.module)
        self.register_buffer("mean", torch.tensor(p.mean).mul(255).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(p.std).mul(255).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return embeddings `(n, dim)` float32, or features."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        out: torch.Tensor = self.head(self.module(x))
        return out


def _take_one_size(module: nn.Module, height: int, width: int) -> None:
    """Let a transformer that resamples its position embeddings for every picture do it once and for all."""
    patches = getattr(module, "patch_embed", None)
    if getattr(module, "dynamic_img_size", False) and patches is not None:
        module.set_input_size(img_size=(height, width))  # type: ignore[operator]
        module.dynamic_img_size = False  # type: ignore[assignment]
        patches.flatten = True


def program_of(member: TrainableEncoder, *, head: bool = True) -> torch.export.ExportedProgram:
    """Trace a member's graph, with its head or without, for any number of images."""
    graph = Graph(member, head=head).eval()
    p = member.preprocessing
    example = torch.zeros(2, p.height, p.width, 3, dtype=torch.uint8)
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))


def write_onnx(member: TrainableEncoder, path: Path, *, head: bool = True) -> None:
    """Write a member's graph, with its head or without, as an ONNX file; needs the packages onnx and onnxscript.

    Raises:
        ModelError: ONNX does not know an operation of the backbone.

    """
    try:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                program_of(member, head=head),
                f=str(path),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                external_data=False,
                verbose=False,
            )
    except OSError:
        raise
    except Exception as error:  # torch raises what it likes at an operation that it does not know
        raise not_convertible(member, "ONNX", error) from error


def not_convertible(member: TrainableEncoder, target: str, error: Exception) -> ModelError:
    """Return the error for a backbone with an operation that a format does not know."""
    cause = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ModelError(f"{member.backbone} cannot be converted to {target} ({cause.rstrip('.')}); use it with torch.")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters tell of their own doings from the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
