"""ONNX Runtime: graphs in the format that most runtimes read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookalike._cores import cores
from lookalike.errors import MissingExtra, ModelError
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.models.member import TrainableEncoder

RUNTIME = "onnxruntime"
BATCH_SIZE = 8
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_packages(what: str = "this runtime") -> None:
    """Raise `MissingExtra` unless all packages are there that write and run such graphs; `what` needs them."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise MissingExtra(package, "onnx", what)


def is_installed() -> bool:
    """Whether all packages are there."""
    try:
        require_packages()
    except MissingExtra:
        return False
    return True


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
            raise MissingExtra("onnxruntime", "onnx", "this runtime") from error
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
        try:
            found: Vectors = self._session.run(None, {self._input: pixels})[0]
        except Exception as error:  # as above
            raise ModelError(f"ONNX Runtime cannot compute these pictures ({error}).") from error
        return lambda: found


def write(member: TrainableEncoder, file: Path, *, head: bool = True) -> None:
    """Turn a member, with its head or without, into a graph in a file.

    Raises:
        ModelError: ONNX does not know an operation of the backbone.

    """
    from lookalike.models.graph import write_onnx

    write_onnx(member, file, head=head)


def rewrite(file: Path, change: Callable[[Any], Any]) -> None:
    """Put a changed graph in the place of the one in a file."""
    import onnx

    onnx.save(change(onnx.load(str(file))), str(file))
