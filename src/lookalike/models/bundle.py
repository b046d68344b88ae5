"""Bundles: the folder in which an encoder or an ensemble is saved. Needs no torch.

- `bundle.json`: a `BundleInfo`
- `model.safetensors`: `members.N.backbone.*`, `members.N.head.weight`, `members.N.head.bias`, `members.N.alignment`
- nothing of the backbone of a function, which only its user has
- in the same file `reranking.class_means`, if the re-ranking needs them
- of an exported bundle, graphs instead of backbones and heads: `member-N.xml` with `member-N.bin`, or `member-N.onnx`
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lookalike._arguments import checked_arguments
from lookalike._files import digest, file_digest, new_folder, read_json, require_regular, write_json
from lookalike._system import installed_versions
from lookalike.errors import LookalikeError, ModelError, OptionError, StorageError
from lookalike.models.encoder import AnyEncoder, Ensemble
from lookalike.models.heads import Head
from lookalike.models.info import BUNDLE_FORMAT, BundleInfo, EncoderInfo, RerankingInfo
from lookalike.reranking.reranker import Reranker
from lookalike.types import Vectors

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_FOLDER = "model"  # the bundle inside a folder of embeddings or an index
MAX_ALIGNED_DIM = 1 << 13  # of an alignment, which is square
_MAX_CLASS_MEANS = 1 << 28  # values
_CLASS_MEANS = "reranking.class_means"
_PACKAGES = ("lookalike", "torch", "timm", "numpy", "pillow", "pytorch-metric-learning")


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a bundle, which may be damaged: what its record is, `read_bundle_info` finds out."""
    return os.path.lexists(path / BUNDLE_FILE)


def find_bundle(model: Path | str) -> Path | None:
    """Return the bundle that a path means: the path, or the bundle inside a folder of embeddings or an index."""
    path = Path(model)
    return next((folder for folder in (path, path / MODEL_FOLDER) if is_bundle(folder)), None)


def read_bundle_info(path: Path | str) -> BundleInfo:
    """Read a bundle's record without loading its weights."""
    path = Path(path)
    file = path / BUNDLE_FILE
    if not is_bundle(path):
        raise ModelError(
            f"{path} is not a bundle: it has no {BUNDLE_FILE}; create one with 'lookalike train'.", argument="model"
        )
    try:
        value = read_json(file, "bundle record")
    except StorageError as error:
        raise ModelError(f"{file} is damaged; create the bundle again.", argument="model") from error
    version = value.get("format") if isinstance(value, dict) else None
    if version != BUNDLE_FORMAT:
        raise ModelError(
            f"{path} has bundle format {version}, this version reads {BUNDLE_FORMAT}; create the bundle again.",
            argument="model",
        )
    try:
        return BundleInfo.from_dict(value)
    except (LookalikeError, TypeError, ValueError) as error:
        cause = str(error).rstrip(".")
        raise ModelError(f"{file} is damaged ({cause}); create the bundle again.", argument="model") from error


@dataclass(frozen=True)
class WeightsFile:
    """The tensors in a safetensors file whose names start with a prefix: those of one backbone or head."""

    path: Path
    prefix: str

    def read(self, suffix: str = "") -> dict[str, np.ndarray]:
        """Return the tensors whose names end in `suffix`, by name without the prefix."""
        with self._open() as file:
            return {name.removeprefix(self.prefix): file.get_tensor(name) for name in self._names(file, suffix)}

    def shapes(self, suffix: str = "") -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that `read` returns, from the header of the file."""
        with self._open() as file:
            return {
                name.removeprefix(self.prefix): tuple(file.get_slice(name).get_shape())
                for name in self._names(file, suffix)
            }

    def _names(self, file: Any, suffix: str) -> list[str]:
        return [name for name in file.keys() if name.startswith(self.prefix) and name.endswith(suffix)]  # noqa: SIM118

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            require_regular(self.path)
            with safe_open(str(self.path), framework="np") as file:
                yield file
        except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:  # of types NumPy lacks
            raise ModelError(
                f"{self.path} is missing or damaged ({error}); create the bundle again.", argument="model"
            ) from error


def describe_encoder(encoder: AnyEncoder, base: BundleInfo | None = None, **changes: Any) -> BundleInfo:
    """Return the record of a bundle with this encoder; the rest is from `base` and from `changes`, fields by name."""
    versions = {"python": platform.python_version(), **installed_versions(*_PACKAGES)}
    content = {
        "name": encoder.name,
        "dim": encoder.dim,
        "fingerprint": encoder.fingerprint,
        "members": tuple(member.info for member in encoder.members),
        "combination": encoder.combination if isinstance(encoder, Ensemble) else None,
        "weights": encoder.weights if isinstance(encoder, Ensemble) else (),
        "versions": versions if base is None else {**base.versions, **versions},
        **changes,
    }
    return BundleInfo(**content) if base is None else replace(base, **content)


@checked_arguments()
def save_bundle(
    encoder: AnyEncoder,
    out: Path | str,
    info: BundleInfo | None = None,
    *,
    reranker: Reranker | None = None,
    replace_existing: bool = False,
    write_extra: Callable[[Path], object] | None = None,
) -> Path:
    """Write a bundle in one step.

    Args:
        encoder: what to save: its weights, or if it was exported its graphs.
        out: the folder; must not exist unless `replace_existing`.
        info: from `describe_encoder`; None for a record without further content.
        reranker: what `evaluate` and `submit` apply to its embeddings.
        replace_existing: overwrite an existing bundle.
        write_extra: writes further files into the folder before it is put in place.

    Raises:
        StorageError: `out` exists or cannot be written.
        ModelError: an ensemble of which some members were exported and others not.
    """
    info = describe_encoder(encoder, info, reranking=None if reranker is None else _describe_reranker(reranker))
    exported = [member.info.graph is not None for member in encoder.members]
    if any(exported) and not all(exported):
        raise ModelError(f"of {encoder.name} some members were exported and others not; export all of them or none.")
    out = Path(out)
    with new_folder(out, replace=replace_existing) as folder:
        tensors: dict[str, np.ndarray] = {}
        for number, member in enumerate(encoder.members):
            if member.head is None:
                source: Path = member.backbone.folder  # type: ignore[attr-defined]  # of a graph backbone
                for name in member.info.graph.digests if member.info.graph else ():
                    shutil.copyfile(source / name, folder / name)
                continue
            prefix = f"members.{number}"
            tensors |= {f"{prefix}.backbone.{name}": array for name, array in member.backbone.weights().items()}
            tensors |= {f"{prefix}.head.weight": member.head.weight, f"{prefix}.head.bias": member.head.bias}
        if isinstance(encoder, Ensemble):
            tensors |= {f"members.{n}.alignment": r for n, r in enumerate(encoder.alignments) if r is not None}
        if reranker is not None and reranker.class_means is not None:
            tensors[_CLASS_MEANS] = reranker.class_means
        if tensors:
            write_tensors(folder / WEIGHTS_FILE, tensors)
        write_json(folder / BUNDLE_FILE, info.to_dict())
        if write_extra is not None:
            write_extra(folder)
    return out


def _describe_reranker(reranker: Reranker) -> RerankingInfo:
    means = reranker.class_means
    return RerankingInfo(reranker.reranking, "" if means is None else weights_digest({_CLASS_MEANS: means}))


def read_reranker(bundle: Path) -> Reranker | None:
    """Read the re-ranking of a bundle, None if it has none; raise `ModelError` if it was changed after it was saved."""
    info = read_bundle_info(bundle)
    if info.reranking is None:
        return None
    means = None
    if info.reranking.class_means:
        file = WeightsFile(bundle / WEIGHTS_FILE, _CLASS_MEANS)
        shape = file.shapes().get("", (0,))
        if len(shape) == 2 and shape[1] == info.dim and shape[0] * shape[1] <= _MAX_CLASS_MEANS:
            means = file.read()[""]
    reranker = None
    with contextlib.suppress(OptionError):  # class means that a step needs are missing
        reranker = Reranker(info.reranking.steps, means)
    if reranker is None or _describe_reranker(reranker) != info.reranking:
        raise ModelError(f"{bundle} was changed after it was saved (its re-ranking differs); create the bundle again.")
    return reranker


def weights_digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return the digest of all weights, by name."""
    return digest(*(part for name in sorted(tensors) for part in (name, tensors[name].tobytes())))


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file; an error is always an `OSError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path.touch()
    mode = path.stat().st_mode  # the user's permissions; safetensors writes a private file
    try:
        save_file({name: np.require(array, requirements="C") for name, array in tensors.items()}, path)
    except SafetensorError as error:  # its writer wraps the errors of the operating system
        raise OSError(str(error)) from error
    path.chmod(mode)


def checked_graph_file(folder: Path, info: EncoderInfo) -> Path:
    """Return the file to load of an exported member; raise `ModelError` if its files are not the exported ones."""
    graph = info.graph
    assert graph is not None
    for name, expected in graph.digests.items():
        file = folder / name
        if not file.is_file() or file_digest(file) != expected:
            raise ModelError(f"{folder} was changed after it was exported ({name} differs); export the model again.")
    if graph.backbone != info.backbone.fingerprint:
        raise ModelError(f"{folder} was changed after it was exported (its record differs); export the model again.")
    return folder / next(iter(graph.digests))


def read_head(bundle: Path, number: int, info: EncoderInfo) -> Head:
    """Read the head of a member; raise `ModelError` if it was changed after it was saved."""
    file = WeightsFile(bundle / WEIGHTS_FILE, f"members.{number}.head.")
    shapes = file.shapes()
    if not {"weight", "bias"} <= set(shapes):
        raise ModelError(f"{file.path} lacks the head of {info.backbone.name}.")
    if shapes == {"weight": (info.dim, info.backbone.features), "bias": (info.dim,)}:  # before anything is read
        tensors = file.read()
        head = Head(tensors["weight"], tensors["bias"], info.head)
        if head.fingerprint(info.backbone.fingerprint) == info.fingerprint:
            return head
    raise ModelError(f"{bundle} was changed after it was saved (its fingerprint differs); create the bundle again.")


def read_alignments(bundle: Path, count: int) -> tuple[Vectors | None, ...]:
    """Read the rotations of an ensemble of `count` members."""
    if not (bundle / WEIGHTS_FILE).is_file():
        return (None,) * count
    file = WeightsFile(bundle / WEIGHTS_FILE, "members.")
    if any(max(shape, default=0) > MAX_ALIGNED_DIM for shape in file.shapes(".alignment").values()):
        raise ModelError(f"{file.path} is damaged (the alignment is too large); create the bundle again.")
    tensors = file.read(".alignment")
    return tuple(tensors.get(f"{number}.alignment") for number in range(count))
