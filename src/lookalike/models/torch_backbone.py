"""Backbones executed by torch, in float32 or under autocast in bfloat16, and as one graph for other runtimes."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lookalike._system import cpu_flags
from lookalike.errors import OptionError
from lookalike.models.adapt import ClassTokenBlock
from lookalike.models.heads import Head
from lookalike.models.info import BackboneInfo
from lookalike.models.pipeline import DEFAULT_BATCH_SIZE, Source
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import Progress
from lookalike.types import Pixels, Vectors

_LOGGER = logging.getLogger("lookalike")


class TorchBackbone:
    """A backbone on torch; its module maps `(n, 3, h, w)` float32 to pooled features and must not change afterwards.

    On a GPU a batch is copied and computed while the next one is decoded.
    """

    runtime = "torch"

    def __init__(self, info: BackboneInfo, module: nn.Module, precision: str = "float32") -> None:
        self.info = info
        self.module = module
        self.precision = precision
        self.device = next(module.parameters()).device
        self.device_type = self.device.type
        self.width = info.features
        on_gpu = self.device.type == "cuda"
        self.batch_size = 128 if on_gpu and precision != "float32" else DEFAULT_BATCH_SIZE  # 128 fills a GPU
        self._at_once = 1 << 30  # images per forward pass; less where memory ran out
        self.in_flight = 2 if on_gpu else 1  # on a GPU one batch is computed while one waits
        if precision == "bfloat16" and not has_bfloat16(self.device):
            raise OptionError(
                f"`precision` bfloat16 is not available: {self.device.type} has no such arithmetic on this machine; "
                "use float32.",
                argument="precision",
            )

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> TorchBackbone:  # noqa: ARG002
        """Return the backbone itself."""
        return self

    def with_precision(self, precision: str) -> TorchBackbone:
        """Return the same backbone in another precision."""
        return TorchBackbone(self.info, self.module, precision)

    def with_preprocessing(self, preprocessing: Preprocessing) -> TorchBackbone:
        """Return the same backbone for images that are cropped otherwise."""
        if preprocessing is self.info.preprocessing:
            return self
        return TorchBackbone(replace(self.info, preprocessing=preprocessing), self.module, self.precision)

    def weights(self) -> Mapping[str, np.ndarray]:
        """Return all weights by name."""
        return arrays_of(self.module)

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Compute features `(n, features)` float32 of `(n, h, w, 3)` uint8 pixels; on a CPU at once.

        When memory runs out, half as many images are computed at once from then on.
        """
        while len(pixels) <= self._at_once:
            try:
                return self._start(pixels)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or len(pixels) == 1:
                    raise
            # after the handler: the traceback of the error keeps the activations in memory
            self._at_once = len(pixels) // 2
            release_memory(self.device)
            _LOGGER.warning(
                "%s: memory runs out with %d images at once; continuing with %d",
                self.info.name,
                len(pixels),
                self._at_once,
            )
        size = self._at_once  # which a part may lower
        waits = [self.submit(pixels[start : start + size]) for start in range(0, len(pixels), size)]
        return lambda: np.concatenate([wait() for wait in waits])

    @torch.inference_mode()
    def _start(self, pixels: Pixels) -> Callable[[], Vectors]:
        lowered = self.precision != "float32"
        with torch.autocast(self.device.type, getattr(torch, self.precision) if lowered else None, enabled=lowered):
            features = self.module(normalize_pixels(pixels, self.info.preprocessing, self.device)).float()
        if features.device.type != "cuda":
            rows: Vectors = features.cpu().numpy()
            return lambda: rows
        pinned = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
        pinned.copy_(features, non_blocking=True)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()

        def wait() -> Vectors:
            copied.synchronize()
            rows: Vectors = pinned.numpy()
            return rows

        return wait


def arrays_of(module: nn.Module) -> dict[str, np.ndarray]:
    """Return all weights by name as NumPy arrays."""
    return {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in module.state_dict().items()}


def normalize_pixels(pixels: Pixels, preprocessing: Preprocessing, device: torch.device) -> torch.Tensor:
    """Turn `(n, h, w, 3)` uint8 into the normalised `(n, 3, h, w)` float32 that a module takes."""
    mean, std = _mean_and_std(preprocessing.mean, preprocessing.std, device)
    x = torch.from_numpy(pixels)
    if device.type == "cuda":
        x = x.pin_memory()  # so that copying does not wait
    x = x.to(device, non_blocking=True).permute(0, 3, 1, 2)  # already channels_last in memory
    return x.float().sub_(mean).div_(std)


@functools.lru_cache(maxsize=16)
def _mean_and_std(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as `(1, 3, 1, 1)` for pixels in 0..255; cached, since making them would wait for the device."""
    with torch.inference_mode(mode=False):
        tensors = [torch.tensor(value, device=device).mul(255).view(1, 3, 1, 1) for value in (mean, std)]
    return tensors[0], tensors[1]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left; on a CPU torch has no type for it."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    )


def release_memory(device: torch.device) -> None:
    """Give memory that torch keeps for reuse back to the device, so that pieces of other sizes fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def default_device() -> torch.device:
    """Return the first accelerator, else the CPU."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


def device_name() -> str:
    """Return the name of the first accelerator, else cpu."""
    device = default_device()
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is native there, so that mixed precision is faster."""
    if device.type == "cpu":
        return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


class Graph(nn.Module):
    """A copy of a backbone that takes `(n, h, w, 3)` uint8 pixels, with head and L2 norm unless `head` is None."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, backbone: TorchBackbone, head: Head | None) -> None:
        super().__init__()
        self.module = copy.deepcopy(backbone.module).cpu().to(memory_format=torch.contiguous_format)
        preprocessing = backbone.info.preprocessing
        patches = getattr(self.module, "patch_embed", None)
        if getattr(self.module, "dynamic_img_size", False) and patches is not None:
            # resample the position embeddings once instead of for every image
            self.module.set_input_size(img_size=(preprocessing.height, preprocessing.width))  # type: ignore[operator]
            if getattr(self.module, "rope", None) is None:  # rotary embeddings know the size of dynamic networks only
                self.module.dynamic_img_size = False  # type: ignore[assignment]
                patches.flatten = True
        for block in self.module.modules():
            if isinstance(block, ClassTokenBlock):
                block.split()
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


def trace(backbone: TorchBackbone, head: Head | None = None) -> torch.export.ExportedProgram:
    """Trace a backbone, with a head or without, for any number of images."""
    graph = Graph(backbone, head).eval()
    preprocessing = backbone.info.preprocessing
    example = torch.zeros(2, preprocessing.height, preprocessing.width, 3, dtype=torch.uint8)
    with _silent_exporters():
        return torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))


def write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a traced graph as an ONNX file; needs the packages onnx and onnxscript."""
    with _silent_exporters():
        torch.onnx.export(
            program,
            f=str(path),
            dynamo=True,
            input_names=["pixels"],
            output_names=["embeddings"],
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _silent_exporters() -> Iterator[None]:
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
