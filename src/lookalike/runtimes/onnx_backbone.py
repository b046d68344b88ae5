"""A backbone in an ONNX file of the user: checked, then executed by OpenVINO with the normalisation in its graph."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike._files import RefusedFileError, digest, open_regular
from lookalike.errors import LookalikeError, ModelError, OptionError, describe_error, import_extra
from lookalike.models.backbone_files import POOLS, BackboneFile
from lookalike.models.bundle import weights_digest
from lookalike.models.heads import Head
from lookalike.models.info import ONNX, Adaptation, BackboneInfo
from lookalike.models.pipeline import FixedBackbone, Source
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import Progress
from lookalike.runtimes import openvino
from lookalike.runtimes.cache import GraphCache
from lookalike.runtimes.graphs import SINGLE_MAX, GraphBackbone, UnpreparedBackbone, open_graph, quantize
from lookalike.types import Pixels

if TYPE_CHECKING:
    from lookalike.models.torch_backbone import TorchBackbone

TENSOR = "onnx"  # the bytes of the file, as the one weight of the backbone
MAX_BYTES = 2**31 - 1  # of a file in this format
_EXTERNAL = b"\x0a\x08location\x12"  # the key under which the format names another file that holds weights
_MAX_FEATURES = 1 << 16


class OnnxBackbone(UnpreparedBackbone, FixedBackbone):
    """The graph of an ONNX file, compiled by OpenVINO when it is first used."""

    device_type = "cpu"
    runtime = openvino.RUNTIME

    def __init__(
        self, info: BackboneInfo, arrays: Callable[[], Mapping[str, np.ndarray]], precision: str = "float32"
    ) -> None:
        self.info = info
        self.weights = self.arrays = arrays  # the bytes of the file, as the one weight
        self.precision = precision
        self.width = info.features
        p = info.preprocessing
        # how an image is cropped does not change the graph
        parts = (info.weights_digest, info.config, repr((p.height, p.width, p.mean, p.std)))
        self._cache = GraphCache(digest("onnx backbone", *parts))
        self._opened: dict[bool, GraphBackbone] = {}  # by whether it is compiled for many batches

    def __reduce__(self) -> tuple[Any, ...]:  # a compiled graph cannot be pickled
        return OnnxBackbone, (self.info, self.arrays, self.precision)

    def prepare(self, sample: Sequence[Source], count: int, progress: Progress) -> GraphBackbone:  # noqa: ARG002
        """Return the graph compiled for `count` images."""
        throughput = count > SINGLE_MAX
        if throughput not in self._opened:
            runner = open_graph(self.graph, self.runtime, self.precision, throughput=throughput, cache=self._cache)
            self._opened[throughput] = GraphBackbone(self.info, runner, self.runtime, self.precision, source=self)
        return self._opened[throughput]

    def with_preprocessing(self, preprocessing: Preprocessing) -> OnnxBackbone:
        """Return the same graph for images that are prepared otherwise."""
        return OnnxBackbone(replace(self.info, preprocessing=preprocessing), self.arrays, self.precision)

    def with_precision(self, precision: str) -> OnnxBackbone:
        """Return the same graph computed in another precision."""
        if precision in ("auto", self.precision):
            return self
        if precision not in openvino.float_precisions():
            raise OptionError(f"`precision` {precision} is not available here; use float32.", argument="precision")
        return OnnxBackbone(self.info, self.arrays, precision)

    def load(self) -> TorchBackbone:
        """Raise `ModelError`: torch does not read ONNX files."""
        raise ModelError("an ONNX file runs on openvino only; omit `runtime`.", argument="runtime")

    def graph(self, head: Head | None = None) -> Any:
        """Return OpenVINO's graph from `(n, h, w, 3)` uint8 pixels to features, or to embeddings with a head."""
        return build_graph(self.info, self.arrays()[TENSOR].tobytes(), head)

    def write(
        self, runtime: str, file: Path, head: Head | None, *, half: bool, calibration: Sequence[Pixels] | None
    ) -> None:
        """Write the graph with its head for a runtime, as `graphs.write_graph` does for torch."""
        try:
            if runtime == openvino.RUNTIME:
                graph = self.graph(head)
                if calibration is not None:
                    kinds = {node.get_type_name() for node in graph.get_ordered_ops()}
                    graph = quantize(graph, runtime, calibration, transformer="Softmax" in kinds)
                openvino.save_graph(graph, file, half=half)
            else:
                import onnx

                model = build_onnx(self.info, self.arrays()[TENSOR].tobytes(), head)
                if calibration is not None:
                    kinds = {node.op_type for node in model.graph.node}
                    model = quantize(model, runtime, calibration, transformer="Softmax" in kinds)
                onnx.save(model, str(file))
        except (OSError, LookalikeError):
            raise
        except Exception as error:  # the converters raise various errors for an unsupported operation
            raise ModelError(
                f"{self.info.name} cannot be converted for {runtime} ({describe_error(error)})."
            ) from error


def build_onnx(info: BackboneInfo, data: bytes, head: Head | None) -> Any:
    """Do `build_graph` in the ONNX format; needs the package onnx."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    config, p = json.loads(info.config), info.preprocessing
    model = onnx.load_from_string(data)
    graph = model.graph
    version = next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx"))
    stored = {tensor.name for tensor in graph.initializer}
    (images,) = (tensor for tensor in graph.input if tensor.name not in stored)
    nodes = [
        helper.make_node("Cast", ["lookalike_pixels"], ["lookalike_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["lookalike_float"], ["lookalike_nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["lookalike_nchw", "lookalike_mean"], ["lookalike_centred"]),
        helper.make_node("Div", ["lookalike_centred", "lookalike_std"], [images.name]),
        *graph.node,
    ]
    tensors = {
        name: 255 * np.array(v, np.float32).reshape(1, 3, 1, 1) for name, v in (("mean", p.mean), ("std", p.std))
    }
    last = config["output"]
    if config["pool"] == "cls":
        tensors["first"] = np.array(0)
        nodes.append(helper.make_node("Gather", [last, "lookalike_first"], ["lookalike_pooled"], axis=1))
    elif config["pool"] == "mean":
        tensors["axes"] = np.array([1])
        axes: dict[str, Any] = {} if version >= 18 else {"axes": [1]}
        inputs = [last] if axes else [last, "lookalike_axes"]
        nodes.append(helper.make_node("ReduceMean", inputs, ["lookalike_pooled"], keepdims=0, **axes))
    last, width = ("lookalike_pooled" if config["pool"] else last), info.features
    if head is not None:
        tensors |= {"weight": head.weight, "bias": head.bias}
        inputs, width = [last, "lookalike_weight", "lookalike_bias"], len(head.bias)
        nodes += [
            helper.make_node("Gemm", inputs, ["lookalike_projected"], name="lookalike_head", transB=1),
            helper.make_node("LpNormalization", ["lookalike_projected"], ["lookalike_embeddings"], axis=1, p=2),
        ]
        last = "lookalike_embeddings"
    shape: list[str | int | None] = ["n", p.height, p.width, 3]
    changes = {
        "node": nodes,
        "input": [
            helper.make_tensor_value_info("lookalike_pixels", TensorProto.UINT8, shape),
            *(tensor for tensor in graph.input if tensor.name in stored),
        ],
        "output": [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", width])],
        "value_info": [],  # lengths of the batch that the model was exported with
    }
    for field, values in changes.items():
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del getattr(graph, field)[:]
        getattr(graph, field).extend(copies)
    graph.initializer.extend(numpy_helper.from_array(a, f"lookalike_{name}") for name, a in tensors.items())
    return model


def build_graph(info: BackboneInfo, data: bytes, head: Head | None = None) -> Any:
    """Add normalisation and pooling to the graph in an ONNX file, and a head with L2 norm if given."""
    ov = openvino.import_openvino()
    import openvino.opset13 as ops
    from openvino.preprocess import PrePostProcessor

    config, preprocessing = json.loads(info.config), info.preprocessing
    graph = ov.Core().read_model(data)
    node = graph.output(config["output"]).get_node().input_value(0)
    if config["pool"] == "cls":
        node = ops.gather(node, np.int64(0), np.int64(1)).output(0)
    elif config["pool"] == "mean":
        node = ops.reduce_mean(node, np.int64(1)).output(0)
    if head is not None:
        projected = ops.matmul(node, ops.constant(head.weight), False, True)
        node = ops.normalize_l2(ops.add(projected, ops.constant(head.bias[None])), np.array([1]), 1e-24, "max").output(
            0
        )
    graph = ov.Model([node], graph.get_parameters(), "backbone")
    graph.reshape([-1, 3, preprocessing.height, preprocessing.width])
    steps = PrePostProcessor(graph)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    mean, std = ([255 * value for value in values] for values in (preprocessing.mean, preprocessing.std))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(mean).scale(std)
    graph = steps.build()
    graph.inputs[0].set_names({openvino.INPUT})
    graph.outputs[0].set_names({openvino.OUTPUT})
    return graph


def open_onnx(file: BackboneFile) -> OnnxBackbone:
    """Return the backbone in an ONNX file, after it computed two images; one that did not change is opened once."""
    file.require()
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in file.files()]
    return _open(file, tuple(states))


@functools.lru_cache(maxsize=2)
def _open(file: BackboneFile, states: tuple[Any, ...]) -> OnnxBackbone:  # noqa: ARG001 - compared
    settings = file.read_settings()
    data = _read(file)
    size, output, pool = _signature(file, data, settings)
    if size is not None and settings.get("size", size) != size:
        sizes = [" × ".join(map(str, sides)) for sides in (size, settings["size"])]
        raise file.refused(f"its images are {sizes[0]}, but its settings say {sizes[1]}; correct the size in them")
    preprocessing = file.preprocessing(settings, size)
    tensors = {TENSOR: np.frombuffer(data, np.uint8)}
    info = BackboneInfo(
        *(file.name, ONNX, 1, preprocessing, Adaptation(), f"file {file.path.name}", weights_digest(tensors)),
        library=ONNX,
        config=json.dumps({"output": output, "pool": pool}),
    )
    return OnnxBackbone(replace(info, features=_count_features(file, info, data)), functools.partial(dict, tensors))


def _read(file: BackboneFile) -> bytes:
    try:
        with open_regular(file.path, MAX_BYTES) as handle:
            data = handle.read()
    except (OSError, RefusedFileError) as error:
        raise file.refused(describe_error(error)) from error
    return _with_external_data(file) if _EXTERNAL in data else data


def _with_external_data(file: BackboneFile) -> bytes:
    """Return the bytes of a model with the weights that it keeps in files next to it."""
    onnx = import_extra("onnx", "onnx", f"{file.name}, whose weights are in another file,")
    try:
        data: bytes = onnx.load(str(file.path)).SerializeToString()
    except Exception as error:  # of many kinds, for a missing file, a path that leads elsewhere, or more than 2 GB
        raise file.refused(
            f"the weights that it keeps in another file cannot be read ({describe_error(error)})"
        ) from error
    return data


def _signature(file: BackboneFile, data: bytes, settings: Mapping[str, Any]) -> tuple[tuple[int, int] | None, str, str]:
    """Return the size of the images that a graph takes, None for any, the output to use, and how it is pooled."""
    try:
        graph = openvino.import_openvino().Core().read_model(data)
    except RuntimeError as error:
        raise file.refused(f"it is not an ONNX model that OpenVINO reads ({describe_error(error)})") from error
    if len(graph.inputs) != 1:
        raise file.refused(f"it has {len(graph.inputs)} inputs, expected one: images (n, 3, h, w)")
    shape, element = graph.inputs[0].partial_shape, graph.inputs[0].element_type.get_type_name()
    lengths = _lengths(shape)
    if len(lengths) != 4 or lengths[1] not in (3, None) or element != "f32":
        advice = "; export it with channels first" if len(lengths) == 4 and lengths[3] == 3 else ""
        raise file.refused(f"its input is {element} of shape {shape}, expected float32 images (n, 3, h, w){advice}")
    names = [output.any_name for output in graph.outputs]
    output = settings.get("output", names[0])
    if output not in names or (len(names) > 1 and "output" not in settings):
        raise file.refused(f"it has the outputs {', '.join(names)}; choose one, as in {file.name}?output={names[0]}")
    shape, pool = graph.output(output).partial_shape, settings.get("pool", "")
    rank = len(_lengths(shape))
    if (rank, bool(pool)) not in ((2, False), (3, True)):
        problem = f"its output {output} has the shape {shape}, expected one vector per image, (n, d)"
        if rank == 3:
            problem = (
                f"its output {output} has vectors per token, {shape}; add the setting pool={' or pool='.join(POOLS)}"
            )
        raise file.refused(problem)
    height, width = lengths[2:]
    return (None if height is None or width is None else (height, width)), output, pool


def _lengths(shape: Any) -> list[int | None]:
    if shape.rank.is_dynamic:
        return []
    return [None if axis.is_dynamic else axis.get_length() for axis in shape]


def _count_features(file: BackboneFile, info: BackboneInfo, data: bytes) -> int:
    """Run two images, together and alone, and return the length of their vectors; refuse what is not usable."""
    preprocessing = info.preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (2, preprocessing.height, preprocessing.width, 3), np.uint8)
    try:
        compiled = openvino.import_openvino().Core().compile_model(build_graph(info, data), "CPU")
        rows, alone = (np.array(compiled(batch)[0]) for batch in (pixels, pixels[:1]))
    except LookalikeError:
        raise
    except Exception as error:  # OpenVINO's errors have no other common base
        raise file.refused(
            f"it does not compute two images of {preprocessing.height} × {preprocessing.width} "
            f"({describe_error(error)}); export it for any number of images of this size",
        ) from error
    if rows.shape != (2, *alone.shape[1:]) or rows.ndim != 2 or rows.dtype.kind != "f":
        raise file.refused(f"for two images it returns {rows.dtype} of shape {rows.shape}, expected floats (2, d)")
    if not 1 <= rows.shape[1] <= _MAX_FEATURES:
        raise file.refused(f"its vectors have {rows.shape[1]:,} numbers, expected from 1 to {_MAX_FEATURES:,}")
    if not np.isfinite(rows).all():
        raise file.refused("it computes values that are not finite")
    if not np.allclose(rows[:1], alone, rtol=0.01, atol=0.01 * float(np.abs(rows).max())):
        raise file.refused("an image alone gets another vector than in a batch; export it in evaluation mode")
    return int(rows.shape[1])
