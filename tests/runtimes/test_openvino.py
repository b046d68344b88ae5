"""What importing OpenVINO brings along, and what it must not."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lookalike.runtimes import cache

pytest.importorskip("openvino")

ASK = "print([m for m in ('openvino', 'openvino.tools.ovc', 'openvino_telemetry', 'torch') if sys.modules.get(m)])"


def loaded(code: str) -> str:
    lines = f"import sys\n{code}\n{ASK}"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_running_graphs_needs_no_converter_and_tells_nobody():
    assert loaded("from lookalike.runtimes.openvino import core; core()") == "['openvino']\n"


def test_converting_tells_nobody_either():
    code = "from lookalike.runtimes.openvino import converter, core; core(); converter()"
    assert loaded(code) == "['openvino', 'openvino.tools.ovc']\n"


def test_what_others_import_is_left_to_them():
    code = "from lookalike.runtimes.openvino import core; core(); import openvino_telemetry"
    assert "'openvino_telemetry'" in loaded(code)


def test_one_that_was_imported_before_is_taken():
    assert "'openvino_telemetry'" in loaded("import openvino; from lookalike.runtimes.openvino import core; core()")


def test_no_pictures_have_no_embeddings(make_trainable):
    from lookalike.runtimes.openvino import OpenVINOSession, convert

    session = OpenVINOSession(convert(make_trainable()), "float32")
    assert session.submit(np.zeros((0, 160, 160, 3), np.uint8))().shape == (0, 512)


@pytest.mark.parametrize("quantised", [False, True])
def test_what_sees_the_picture_computes_in_float32(make_trainable, image_files, tmp_path, quantised):
    from lookalike.data.images import read_pixels
    from lookalike.runtimes import openvino

    if "bfloat16" not in openvino.precisions():
        pytest.skip("this processor does not compute in bfloat16")
    member = make_trainable()
    graph = openvino.convert(member)
    if quantised:
        pytest.importorskip("nncf")
        from lookalike.runtimes.quantise import quantise

        shown = [member.preprocessing.pixels(read_pixels(path))[None] for path in image_files]
        graph = quantise(graph, openvino.RUNTIME, shown, transformer=False)
    openvino.save(graph, tmp_path / "graph.xml", half=True)
    session = openvino.OpenVINOSession(tmp_path / "graph.xml", "int8" if quantised else "bfloat16")
    ran = [node.get_rt_info() for node in session._compiled.get_runtime_model().get_ordered_ops()]
    first, *others = [
        r["primitiveType"].astype(str).split("_")[-1] for r in ran if r["layerType"].astype(str) == "Convolution"
    ]
    assert first == "f32"
    assert set(others) >= ({"bf16", "I8"} if quantised else {"bf16"})


def test_first_layers_end_before_the_second_dense_one(make_trainable):
    from lookalike.runtimes import openvino

    graph = openvino.convert(make_trainable())
    kinds = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ordered_ops()}
    found = [kinds[name] for name in openvino.first_layers(graph)]
    assert found.count("Convolution") == 1
    assert "MatMul" not in found and "Constant" not in found


def test_of_many_compiled_models_the_oldest_are_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "_MOST", 250)
    place = cache.compiled_cache()
    assert place == tmp_path / "compiled"
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        (place / name).write_bytes(bytes(100))
        os.utime(place / name, (1_000_000 - age, 1_000_000 - age))
    assert cache.compiled_cache() == place
    assert sorted(file.name for file in place.iterdir()) == ["middle", "new"]
