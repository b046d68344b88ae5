"""One contract for every engine and precision: torch's embeddings, of unit length, however the pictures are given."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lookalike.backbones import Member, build_member
from lookalike.backbones.bundle import member_row
from lookalike.backbones.devices import computes_bfloat16
from lookalike.backbones.lowered import LoweredMember
from lookalike.encoding import Encoder, Engine
from lookalike.encoding.engine import LEAST_COSINE
from lookalike.engines.members import SUFFIXES, open_member

Opened = Callable[[Member, Path], Engine]


def by_openvino(precision: str, *, single: bool = False) -> Opened:
    def opened(member: Member, folder: Path) -> Engine:
        openvino = pytest.importorskip("lookalike.engines.openvino")
        if precision not in openvino.precisions():
            pytest.skip(f"this processor does not compute in {precision}")
        file = folder / "member.xml"
        openvino.save(openvino.convert(member), file, half=precision != "float32")
        return open_member(file, member_row(member), runtime="openvino", precision=precision, single=single)

    return opened


def by_torch_in_bfloat16(member: Member, _: Path) -> Engine:
    if not computes_bfloat16(member.device):
        pytest.skip("this processor does not compute in bfloat16")
    return LoweredMember(member)


def by_onnx(member: Member, folder: Path) -> Engine:
    pytest.importorskip("onnxruntime")
    from lookalike.backbones.graph import write_onnx

    write_onnx(member, folder / "member.onnx")
    return open_member(folder / "member.onnx", member_row(member), runtime="onnxruntime", precision="float32")


def in_eight_bits(runtime: str) -> Opened:
    def opened(member: Member, folder: Path) -> Engine:
        pytest.importorskip("nncf")
        pytest.importorskip(runtime)
        from lookalike.engines import onnx, openvino
        from lookalike.engines.quantise import quantise

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


ENGINES: dict[str, Opened] = {
    "torch": lambda member, _: member,
    "torch in bfloat16": by_torch_in_bfloat16,
    "openvino": by_openvino("float32"),
    "openvino, one picture after the other": by_openvino("float32", single=True),
    "openvino in bfloat16": by_openvino("bfloat16"),
    "openvino in int8": in_eight_bits("openvino"),
    "onnxruntime": by_onnx,
    "onnxruntime in int8": in_eight_bits("onnxruntime"),
}
FULL = [name for name in ENGINES if " in " not in name]
SMALL = "test_efficientnet"
BACKBONES = [SMALL, "test_resnet", "test_vit"]


@pytest.fixture(params=BACKBONES)
def member(request, make_member) -> Member:
    return make_member(request.param)


@pytest.fixture(params=ENGINES, scope="module")
def engine(request, tmp_path_factory) -> Engine:
    """Of a member as `make_member` gives it."""
    return ENGINES[request.param](build_member(SMALL, "none"), tmp_path_factory.mktemp("graphs"))


@pytest.mark.parametrize("name", FULL)
def test_embeddings_are_torchs(name, member, pixels, tmp_path):
    engine = ENGINES[name](member, tmp_path)
    given = pixels(member)
    expected = member.encode(given)
    found = engine.encode(given)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_every_precision_is_near_enough_and_of_unit_length(engine, make_member, pixels):
    member = make_member()
    given = pixels(member)
    found = engine.encode(given)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    cosines = (found * member.encode(given)).sum(1)
    assert cosines.min() >= (LEAST_COSINE[engine.precision] if engine.precision != "int8" else 0.5)  # random weights


def test_what_an_engine_says_of_itself(engine, make_member):
    member = make_member()
    assert (engine.backbone, engine.dim, engine.trained) == (member.backbone, member.dim, member.trained)
    assert engine.preprocessing == member.preprocessing
    assert (engine.fingerprint == member.fingerprint) == (engine.precision != "int8")
    assert engine.runs_on == (member.runs_on if engine.runtime == "torch" else "cpu")


def test_any_number_of_pictures_may_be_in_flight(engine, make_member, pixels):
    given = pixels(make_member())
    whole = engine.encode(given)
    for size in (1, 2, 9):
        parts = [given[start : start + size] for start in range(0, len(given), size)]
        found = []
        waiting = []
        for part in parts:
            if len(waiting) == engine.in_flight:
                found.append(waiting.pop(0)())
            waiting.append(engine.submit(part))
        found += [wait() for wait in waiting]
        assert (np.concatenate(found) * whole).sum(1).min() > 0.999


def test_pixels_may_lie_anywhere_in_memory(engine, make_member, pixels):
    given = pixels(make_member())
    np.testing.assert_allclose(engine.encode(given[::2]), engine.encode(np.ascontiguousarray(given[::2])), atol=1e-5)


def test_several_threads_may_ask_at_once(engine, make_member, pixels):
    given = pixels(make_member())
    whole = engine.encode(given)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: engine.encode(given[n % 9 : n % 9 + 1]), range(40)))
    for n, vectors in enumerate(found):
        assert float(vectors[0] @ whole[n % 9]) > 0.999


def test_an_error_takes_nothing_away(engine, make_member, pixels, pictures):
    given = pixels(make_member())
    expected = engine.encode(given)
    for _ in range(engine.in_flight + 2):
        with pytest.raises(Exception):  # noqa: B017 - each runtime has its own
            engine.encode(np.zeros((1, 7, 5, 2), np.uint8))

    class Stops:
        def step(self, *_):
            raise InterruptedError

        def say(self, text):
            pass

    for _ in range(engine.in_flight + 2):
        with pytest.raises(InterruptedError):
            Encoder([engine]).embed(pictures, batch_size=1, progress=Stops())
    np.testing.assert_allclose(engine.encode(given), expected, atol=1e-5)
