"""One contract for every engine: torch's embeddings, one picture at a time, in batches, several of these at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike.backbones import Member
from lookalike.engines import Session

Opened = Callable[[Member, Path], Session]


def by_openvino(member: Member, folder: Path, precision: str = "float32", throughput: bool = True) -> Session:
    openvino = pytest.importorskip("lookalike.engines.openvino")
    pytest.importorskip("openvino")
    graph = openvino.convert(member)
    openvino.save(graph, folder / "member.xml", half=precision != "float32")
    return openvino.OpenVINOSession(folder / "member.xml", precision, throughput=throughput)


def by_onnx(member: Member, folder: Path) -> Session:
    pytest.importorskip("onnxruntime")
    from lookalike.backbones.graph import write_onnx
    from lookalike.engines.onnx import OnnxSession

    write_onnx(member, folder / "member.onnx")
    return OnnxSession(folder / "member.onnx", "float32")


ENGINES = {
    "openvino": by_openvino,
    "openvino, one picture after the other": lambda m, f: by_openvino(m, f, throughput=False),
    "onnxruntime": by_onnx,
}
BACKBONES = ["test_efficientnet", "test_resnet", "test_vit"]


@pytest.fixture(params=BACKBONES)
def member(request, make_member) -> Member:
    return make_member(request.param)


@pytest.mark.parametrize("name", ENGINES)
def test_embeddings_are_torchs(name, member, pixels, tmp_path):
    session = ENGINES[name](member, tmp_path)
    given = pixels(member)
    expected = member.encode(given)
    found = session.submit(given)()
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_any_number_of_pictures_may_be_in_flight(name, make_member, pixels, tmp_path):
    member = make_member()
    session = ENGINES[name](member, tmp_path)
    given = pixels(member)
    whole = member.encode(given)
    for size in (1, 2, 9):
        parts = [given[start : start + size] for start in range(0, len(given), size)]
        found = []
        waiting = []
        for part in parts:
            if len(waiting) == session.in_flight:
                found.append(waiting.pop(0)())
            waiting.append(session.submit(part))
        found += [wait() for wait in waiting]
        np.testing.assert_allclose(np.concatenate(found), whole, atol=2e-5)
