"""ONNX Runtime: graphs in the format that most runtimes read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lookalike.cores import cores
from lookalike.errors import MissingExtra, ModelError
from lookalike.types import Pixels, Vectors

RUNTIME = "onnxruntime"
BATCH_SIZE = 8


class OnnxSession:
    """A graph in ONNX's format.

    Args:
        model: path of the `.onnx` file.
        precision: float32, or int8 where its layers are quantised.

    Raises:
        MissingExtra: ONNX Runtime is not installed.
        ModelError: the file is damaged.

    """

    def __init__(self, model: Path, precision: str) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtra("onnxruntime", "onnx", "this engine") from error
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = cores()
            self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base but this
            raise ModelError(f"{model} is missing or damaged; export the model again.") from error
        self._input = self._session.get_inputs()[0].name
        self._precision = precision

    @property
    def runtime(self) -> str:
        """ONNX Runtime's name here."""
        return RUNTIME

    @property
    def precision(self) -> str:
        """As given."""
        return self._precision

    @property
    def batch_size(self) -> int:
        """A few."""
        return BATCH_SIZE

    @property
    def in_flight(self) -> int:
        """One: it takes all threads for a batch."""
        return 1

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Compute at once."""
        found: Vectors = self._session.run(None, {self._input: pixels})[0]
        return lambda: found


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Put a changed graph in the place of the one in a file."""
    import onnx

    onnx.save(change(onnx.load(str(file))), str(file))
