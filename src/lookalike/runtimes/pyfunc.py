"""A bundle as an MLflow model: `mlflow.pyfunc.load_model(uri).predict(paths)` returns embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookalike.errors import OptionError
from lookalike.runtimes.bundle import load_bundle
from lookalike.types import Vectors


class BundleModel:
    """What MLflow asks of a model.

    Attributes:
        encoder: of the bundle.

    """

    def __init__(self, bundle: Path) -> None:
        self.encoder = load_bundle(bundle)

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Vectors:  # noqa: ARG002
        """Return embeddings `(n, dim)` float32, unit length.

        Args:
            model_input: paths of n images: a list, or a table whose first column has them.
            params: none are known.

        Raises:
            OptionError: an image cannot be read, so that rows and paths would not match.

        """
        column = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else model_input
        paths: Sequence[str] = [str(path) for path in ([column] if isinstance(column, str | Path) else column)]
        found = self.encoder.embed(dict.fromkeys(paths))
        rows = {name: row for row, name in enumerate(found.ids)}
        if found.skipped:
            raise OptionError(f"{len(found.skipped)} images cannot be read, the first is {found.skipped[0]}.")
        vectors: Vectors = found.vectors[[rows[path] for path in paths]]
        return vectors


def _load_pyfunc(data_path: str) -> BundleModel:
    """Load the bundle that MLflow kept; it looks for this name."""
    return BundleModel(Path(data_path))
