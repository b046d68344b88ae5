"""What importing OpenVINO brings along, and what it must not."""

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("openvino")

ASK = "print([m for m in ('openvino', 'openvino.tools.ovc', 'openvino_telemetry', 'torch') if sys.modules.get(m)])"


def loaded(code: str) -> str:
    lines = f"import sys\n{code}\n{ASK}"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_running_graphs_needs_no_converter_and_tells_nobody():
    assert loaded("from lookalike.engines.openvino import core; core()") == "['openvino']\n"


def test_converting_tells_nobody_either():
    code = "from lookalike.engines.openvino import converter, core; core(); converter()"
    assert loaded(code) == "['openvino', 'openvino.tools.ovc']\n"


def test_what_others_import_is_left_to_them():
    code = "from lookalike.engines.openvino import core; core(); import openvino_telemetry"
    assert "'openvino_telemetry'" in loaded(code)


def test_one_that_was_imported_before_is_taken():
    assert "'openvino_telemetry'" in loaded("import openvino; from lookalike.engines.openvino import core; core()")


def test_no_pictures_have_no_embeddings(make_member):
    from lookalike.engines.openvino import OpenVINOSession, convert

    session = OpenVINOSession(convert(make_member()), "float32")
    assert session.submit(np.zeros((0, 160, 160, 3), np.uint8))().shape == (0, 512)
