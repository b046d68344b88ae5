"""A backbone as one graph for other runtimes: uint8 pixels in, pooled features or embeddings out."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from lookalike.models.class_token import split_weights
from lookalike.models.heads import Head
from lookalike.models.preprocessing import Preprocessing
from lookalike.models.torch_backbone import TorchBackbone

INPUT = "pixels"
OUTPUT = "embeddings"


class Graph(nn.Module):
    """A copy of a backbone that takes `(n, h, w, 3)` uint8 pixels, with head and L2 norm unless `head` is None."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: TorchBackbone, head: Head | None) -> None:
        super().__init__()
        self.module = copy.deepcopy(backbone.module).cpu().to(memory_format=torch.contiguous_format)
        preprocessing = backbone.info.preprocessing
        _fix_input_size(self.module, preprocessing)
        split_weights(self.module)
        self.linear: nn.Linear | None = None
        if head is not None:
            self.linear = nn.Linear(*head.weight.T.shape)
            self.linear.weight.data, self.linear.bias.data = torch.from_numpy(head.weight), torch.from_numpy(head.bias)
        self.register_buffer("mean", torch.tensor(preprocessing.mean).mul(255).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).mul(255).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features `(n, features)` or embeddings `(n, dim)`, float32."""
        x = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        features: torch.Tensor = self.module(x)
        return features if self.linear is None else nn.functional.normalize(self.linear(features), dim=1)


def _fix_input_size(module: nn.Module, preprocessing: Preprocessing) -> None:
    """Resample the position embeddings of a transformer once instead of for every image."""
    patches = getattr(module, "patch_embed", None)
    if getattr(module, "dynamic_img_size", False) and patches is not None:
        module.set_input_size(img_size=(preprocessing.height, preprocessing.width))  # type: ignore[operator]
        module.dynamic_img_size = False  # type: ignore[assignment]
        patches.flatten = True


def trace(backbone: TorchBackbone, head: Head | None = None) -> torch.export.ExportedProgram:
    """Trace a backbone, with a head or without, for any number of images."""
    graph = Graph(backbone, head).eval()
    preprocessing = backbone.info.preprocessing
    example = torch.zeros(2, preprocessing.height, preprocessing.width, 3, dtype=torch.uint8)
    with torch.no_grad(), _silent_exporters():
        return torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a traced graph as an ONNX file; needs the packages onnx and onnxscript."""
    with torch.no_grad(), _silent_exporters():
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _silent_exporters() -> Iterator[None]:
    """Hide what the exporters print."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
