"""Two processes compute what one does; if one dies the other reports it, and the run can be resumed."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from lookalike.models.bundle import read_bundle_info
from lookalike.runtimes.load import load_encoder
from lookalike.training.distributed import open_distributed
from lookalike.training.train import train

SMALL = "test_efficientnet"
pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, json
import torch
torch.set_num_threads(1)
from lookalike.errors import LookalikeError
from lookalike import train
arguments = json.loads(sys.argv[1])

class Dies:
    def step(self, task, done, total, detail=""):
        if task == arguments.get("dies_in"):
            os._exit(9)
    def info(self, text):
        print(text, flush=True)

try:
    train(arguments["data"], "test_efficientnet", weights=arguments["weights"], out=arguments["out"], progress=Dies(),
          resume=arguments.get("resume", False), **arguments["options"])
except LookalikeError as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    sys.exit(2)
"""
OPTIONS = {"epochs": 2, "batch_size": 10, "precision": "float32", "resolution": 0.5, "label_smoothing": 0.1}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start_two(programs):
    """Return a function that starts two processes as a launcher does, and returns their exit codes and outputs."""

    def start(arguments):
        port = str(free_port())
        processes = []
        for rank in range(2):
            environment = {
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            command = [programs / "run-code", textwrap.dedent(SCRIPT), json.dumps(arguments)]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        ended = [p.communicate(timeout=300) for p in processes]
        return [p.returncode for p in processes], ended

    return start


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "cross-entropy+0.5*supervised-contrastive", "per_class": 5},
        {"accumulate": 2, "batch_size": 9},  # shares of 5 and 4, and the last batch of 6 moves the weights by itself
        {"accumulate": 2, "batch_size": 23},  # one image is left over
    ],
    ids=["compares", "uneven", "left over"],
)
def test_two_processes_make_the_model_of_one(changes, start_two, crops, weights, tmp_path):
    options = {**OPTIONS, **changes}
    arguments = {"data": str(crops), "weights": str(weights), "out": str(tmp_path / "two"), "options": options}
    codes, ended = start_two(arguments)
    assert codes == [0, 0], ended
    assert ended[1][0] == ""  # only the main process reports
    train(crops, SMALL, weights=weights, out=tmp_path / "one", **options)
    reports = [read_bundle_info(tmp_path / name).training[0] for name in ("one", "two")]
    losses = [[epoch.loss for epoch in report.epochs] for report in reports]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)
    paths = sorted((crops / "test" / "gallery").iterdir())
    vectors = [load_encoder(tmp_path / name).embed(paths).vectors for name in ("one", "two")]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999


def test_the_launcher_that_the_docs_name_starts_two(crops, weights, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    ours = ["lookalike", "train", str(crops), "--backbone", SMALL, "--weights", str(weights)]
    options = ["--epochs", "1", "--batch-size", "10", "--precision", "float32", "--out", str(tmp_path / "two")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [*launcher, *ours, *options], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 processes train together, each on its share of every batch" in ended.stderr
    assert "Warning" not in ended.stderr
    train(crops, SMALL, weights=weights, out=tmp_path / "one", epochs=1, batch_size=10, precision="float32")
    losses = [read_bundle_info(tmp_path / name).training[0].epochs[0].loss for name in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_a_launcher_that_started_one_process_is_reported(monkeypatch):
    with open_distributed() as distributed:
        assert distributed.description == ""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # as accelerate launch sets it
    with open_distributed() as distributed:
        assert distributed.description.startswith("accelerate started a single process")


def test_a_process_that_dies_is_reported_and_the_run_resumes(start_two, crops, weights, tmp_path):
    arguments = {"data": str(crops), "weights": str(weights), "out": str(tmp_path / "model"), "options": OPTIONS}
    codes, ended = start_two({**arguments, "dies_in": "epoch 2/2"})
    assert codes[0] == 9
    assert codes[1] == 2, ended
    assert "another process died; start all of them again" in ended[1][0]
    codes, ended = start_two({**arguments, "resume": True})
    assert codes == [0, 0], ended
    assert f"{SMALL}: resuming after epoch 1" in ended[0][0]
    train(crops, SMALL, weights=weights, out=tmp_path / "unbroken", **OPTIONS)
    paths = sorted((crops / "test" / "gallery").iterdir())
    vectors = [load_encoder(tmp_path / name).embed(paths).vectors for name in ("model", "unbroken")]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() > 0.999


def test_trained_batch_statistics_are_averaged_over_the_processes(start_two, crops, tmp_path):
    """Each process embeds its share of the validation images, and the bundle that one writes measures the same."""
    options = {**OPTIONS, "posthoc_head": "trained", "batch_size": 16}
    arguments = {"data": str(crops), "weights": "none", "out": str(tmp_path / "two"), "options": options}
    codes, ended = start_two(arguments)
    assert codes == [0, 0], ended
    info = read_bundle_info(tmp_path / "two")
    expected = info.training[0].measures.fine_tuned
    assert info.measures["validation"]["map@r"].mean == pytest.approx(expected, abs=1e-6)
