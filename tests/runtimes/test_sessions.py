"""One contract for every runtime and precision: torch's embeddings, of unit length, however images are given."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lookalike.models.devices import computes_bfloat16
from lookalike.models.engine import LEAST_COSINE, Engine
from lookalike.models.lowered import LoweredMember
from lookalike.models.torch_bundle import member_row
from lookalike.runtimes.members import SUFFIXES, open_member

from lookalike.models.encoder import Encoder
from lookalike.models.trainable import TrainableEncoder, build_trainable

Opened = Callable[[TrainableEncoder, Path], Engine]


def by_openvino(precision: str, *, single: bool = False) -> Opened:
    def opened(member: TrainableEncoder, folder: Path) -> Engine:
        openvino = pytest.importorskip("lookalike.runtimes.openvino")
        if precision not in openvino.precisions():
            pytest.skip(f"this processor does not compute in {precision}")
        file = folder / "member.xml"
        openvino.save(openvino.convert(member), file, half=precision != "float32")
        return open_member(file, member_row(member), runtime="openvino", precision=precision, single=single)

    return opened


def by_torch_in_bfloat16(member: TrainableEncoder, _: Path) -> Engine:
    if not computes_bfloat16(member.device):
        pytest.skip("this processor does not compute in bfloat16")
    return LoweredMember(member)


def by_onnx(member: TrainableEncoder, folder: Path) -> Engine:
    pytest.importorskip("onnxruntime")
    from lookalike.models.graph import write_onnx

    write_onnx(member, folder / "member.onnx")
    return open_member(folder / "member.onnx", member_row(member), runtime="onnxruntime", precision="float32")


def in_eight_bits(runtime: str) -> Opened:
    def opened(member: TrainableEncoder, folder: Path) -> Engine:
        pytest.importorskip("nncf")
        pytest.importorskip(runtime)
        from lookalike.runtimes.quantise import quantise

        from lookalike.runtimes import onnx, openvino

        p = member.preprocessing
        random = np.random.default_rng(0)
        shown = [random.integers(0, 256, (1, p.height, p.width, 3), dtype=np.uint8) for _ in range(8)]
        file = folder / f"member{SUFFIXES[runtime]}"
        if runtime == openvino.RUNTIME:
            openvino.save(quantise(openvino.convert(member), runtime, shown, transformer=False), file, half=True)
        else:
            onnx.write(member, file)
            onnx.rewrite(file, lambda graph: quantise(graph, runtime, shown, transformer=False))
        return open_member(file, member_row(member), runtime=runtime, precision="int8")

    return opened


RUNTIMES: dict[str, Opened] = {
    "torch": lambda member, _: member,
    "torch in bfloat16": by_torch_in_bfloat16,
    "openvino": by_openvino("float32"),
    "openvino, one picture after the other": by_openvino("float32", single=True),
    "openvino in bfloat16": by_openvino("bfloat16"),
    "openvino in int8": in_eight_bits("openvino"),
    "onnxruntime": by_onnx,
    "onnxruntime in int8": in_eight_bits("onnxruntime"),
}
FULL = [name for name in RUNTIMES if " in " not in name]
SMALL = "test_efficientnet"
BACKBONES = [SMALL, "test_resnet", "test_vit"]


@pytest.fixture(params=BACKBONES)
def member(request, make_trainable) -> TrainableEncoder:
    return make_trainable(request.param)


@pytest.fixture(params=RUNTIMES, scope="module")
def runtime(request, tmp_path_factory) -> Engine:
    """Of a member as `make_trainable` gives it."""
    return RUNTIMES[request.param](build_trainable(SMALL, "none"), tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("name", FULL)
def test_embeddings_are_torchs(name, member, pixels, tmp_path):
    runtime = RUNTIMES[name](member, tmp_path)
    given = pixels(member)
    expected = member.encode(given)
    found = runtime.encode(given)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_precision_is_near_enough_and_of_unit_length(runtime, make_trainable, pixels):
    member = make_trainable()
    given = pixels(member)
    found = runtime.encode(given)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (found * member.encode(given)).sum(1)
    assert cosines.min() >= (LEAST_COSINE[runtime.precision] if runtime.precision != "int8" else 0.5)  # random weights


def test_what_an_engine_says_of_itself(runtime, make_trainable):
    member = make_trainable()
    assert (runtime.backbone, runtime.dim, runtime.trained) == (member.backbone, member.dim, member.trained)
    assert runtime.preprocessing == member.preprocessing
    assert (runtime.fingerprint == member.fingerprint) == (runtime.precision != "int8")
    assert runtime.runs_on == (member.runs_on if runtime.runtime == "torch" else "cpu")


def test_any_number_of_pictures_may_be_in_flight(runtime, make_trainable, pixels):
    given = pixels(make_trainable())
    whole = runtime.encode(given)
    for size in (1, 2, 9):
        parts = [given[start : start + size] for start in range(0, len(given), size)]
        found = []
        waiting = []
        for part in parts:
            if len(waiting) == runtime.in_flight:
                found.append(waiting.pop(0)())
            waiting.append(runtime.submit(part))
        found += [wait() for wait in waiting]
        assert (np.concatenate(found) * whole).sum(1).min() > 0.999


def test_pixels_may_lie_anywhere_in_memory(runtime, make_trainable, pixels):
    given = pixels(make_trainable())
    np.testing.assert_allclose(runtime.encode(given[::2]), runtime.encode(np.ascontiguousarray(given[::2])), atol=1e-5)


def test_several_threads_may_ask_at_once(runtime, make_trainable, pixels):
    given = pixels(make_trainable())
    whole = runtime.encode(given)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: runtime.encode(given[n % 9 : n % 9 + 1]), range(40)))
    for n, vectors in enumerate(found):
        assert float(vectors[0] @ whole[n % 9]) > 0.999


def test_an_error_takes_nothing_away(runtime, make_trainable, pixels, image_files):
    given = pixels(make_trainable())
    expected = runtime.encode(given)
    for _ in range(runtime.in_flight + 2):
        with pytest.raises(Exception):  # noqa: B017 - each runtime has its own
            runtime.encode(np.zeros((1, 7, 5, 2), np.uint8))

    class Stops:
        def step(self, *_):
            raise InterruptedError

        def info(self, text):
            pass

    for _ in range(runtime.in_flight + 2):
        with pytest.raises(InterruptedError):
            Encoder([runtime]).embed(image_files, batch_size=1, progress=Stops())
    np.testing.assert_allclose(runtime.encode(given), expected, atol=1e-5)
