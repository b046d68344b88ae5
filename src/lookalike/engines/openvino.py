"""OpenVINO: graphs compiled for this processor, several batches at once."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike.errors import MissingExtra, ModelError
from lookalike.types import Pixels, Vectors

if TYPE_CHECKING:
    from lookalike.backbones import Member

RUNTIME = "openvino"
HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
"""What a graph's layers are computed in where they are not quantised."""
BATCH_SIZE = 4
_CONVERTER = "openvino.tools.ovc"


def package() -> ModuleType:
    """Import OpenVINO.

    Without its converter, which takes as long again to import, and without the part by which that tells its makers,
    over the network, of every import and conversion.

    Raises:
        MissingExtra: it is not installed.

    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what is None cannot be imported
        sys.modules.setdefault(_CONVERTER, None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MissingExtra("openvino", "openvino", "this engine") from error
    finally:
        if sys.modules.get(_CONVERTER, sys) is None:
            del sys.modules[_CONVERTER]
    found: ModuleType = openvino
    return found


def core() -> Any:
    """Return OpenVINO's entrance.

    Raises:
        MissingExtra: it is not installed.

    """
    return package().Core()


def precisions() -> tuple[str, ...]:
    """Return the float precisions that this processor computes in, fastest first."""
    has = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("bfloat16", "float32") if "BF16" in has else ("float32",)


class OpenVINOSession:
    """A graph in OpenVINO's format, compiled for this processor.

    Args:
        model: path of the `.xml` file, or a graph in memory.
        precision: of `HINTS`.
        throughput: many batches, one thread each; else one batch on all threads, for single pictures.
        cache: folder that keeps what compiling gave, so that the next start is faster.

    Raises:
        MissingExtra: OpenVINO is not installed.
        ModelError: the file is damaged.

    """

    def __init__(
        self, model: Path | Any, precision: str, *, throughput: bool = True, cache: Path | None = None
    ) -> None:
        self._precision = precision
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "PERFORMANCE_HINT": "THROUGHPUT" if throughput else "LATENCY",
        }
        if throughput:
            config["NUM_STREAMS"] = os.cpu_count() or 1
        if cache is not None:
            config["CACHE_DIR"] = str(cache)
        entrance = core()
        try:
            self._compiled = entrance.compile_model(str(model) if isinstance(model, Path) else model, "CPU", config)
        except RuntimeError as error:
            raise ModelError(f"{model} is missing or damaged; export the model again.") from error
        # one more than it works on at once, so that none waits for its next batch
        self._in_flight = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")) + 1 if throughput else 1
        self._free = deque(self._compiled.create_infer_request() for _ in range(self._in_flight))

    @property
    def runtime(self) -> str:
        """OpenVINO's name here."""
        return RUNTIME

    @property
    def precision(self) -> str:
        """As given."""
        return self._precision

    @property
    def batch_size(self) -> int:
        """A few: more are slower, as the activations leave the cache."""
        return BATCH_SIZE

    @property
    def in_flight(self) -> int:
        """One batch for each stream, and one that waits."""
        return self._in_flight

    def submit(self, pixels: Pixels) -> Callable[[], Vectors]:
        """Begin to compute `(n, h, w, 3)` uint8 pixels."""
        request = self._free.popleft()
        request.start_async({0: np.ascontiguousarray(pixels)}, share_inputs=True)

        def wait() -> Vectors:
            request.wait()
            found: Vectors = request.get_output_tensor(0).data.astype(np.float32)  # a copy: the request is used again
            self._free.append(request)
            return found

        return wait


def convert(member: Member) -> Any:
    """Turn a member into a graph of OpenVINO's.

    Raises:
        MissingExtra: OpenVINO is not installed.

    """
    package()
    from openvino.tools.ovc import convert_model

    from lookalike.backbones.graph import INPUT, OUTPUT, program_of

    graph = convert_model(program_of(member))
    p = member.preprocessing
    graph.reshape([-1, p.height, p.width, 3])
    graph.inputs[0].set_names({INPUT})
    graph.outputs[0].set_names({OUTPUT})
    return graph


def save(graph: Any, path: Path, *, half: bool) -> None:
    """Write a graph as `.xml` with a `.bin` beside it; `half` keeps its weights in 16 bits."""
    package().save_model(graph, str(path), compress_to_fp16=half)
