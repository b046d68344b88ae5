"""A bundle as an MLflow model: `mlflow.pyfunc.load_model(uri).predict(paths)` returns embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import OptionError
from lookalike.runtimes.load import load_encoder
from lookalike.types import Vectors


class BundleModel:
    """A bundle with the interface that MLflow expects of a model."""

    def __init__(self, bundle: Path) -> None:
        self.encoder = load_encoder(bundle)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Vectors:  # noqa: ARG002
        """Return embeddings `(n, dim)` float32, unit length.

        Args:
            model_input: paths of n images: a list, or a table with the paths in its first column.
            params: unused.

        Raises:
            OptionError: an image cannot be read: vectors and paths would not match.

        """
        column = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else model_input
        paths: Sequence[str] = [str(path) for path in ([column] if isinstance(column, str | Path) else column)]
        embeddings = self.encoder.embed(dict.fromkeys(paths))
        if embeddings.skipped:
            count, first = len(embeddings.skipped), embeddings.skipped[0]
            raise OptionError(f"{count} images cannot be read, the first is {first}.", argument="model_input")
        rows = {path: row for row, path in enumerate(embeddings.ids)}
        vectors: Vectors = embeddings.vectors[[rows[path] for path in paths]]
        return vectors


def _load_pyfunc(data_path: str) -> BundleModel:
    """Load the bundle that MLflow stored; MLflow looks for this name."""
    return BundleModel(Path(data_path))
