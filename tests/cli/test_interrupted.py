"""Runs that were stopped: what was finished is kept, and the sentence says how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = (
    "train photos --backbone test_efficientnet --weights none --epochs 2 --batch-size 8 --precision float32 "
    "--optimizer sgd --out new"
)
AGAIN = "interrupted; start the same command again."
GOES_ON = "interrupted; start the same command again, and it goes on with what was finished."
RESUMES = "interrupted; start the same command again with --resume, and it goes on with what was finished."

STOPPED = {
    "check": ("check photos", "checking", AGAIN),
    "evaluate": ("evaluate photos --model model", "queries", AGAIN),
    "submit": ("submit photos --model model --out s.json", "gallery", AGAIN),
    "search": ("search photos.index photos/test/query/cat0.jpg", "queries", AGAIN),
    "train, before the first epoch": (TRAIN, "test_efficientnet: features", RESUMES),
    "embed": ("embed photos --model model --out new.emb", "embedding", GOES_ON),
    "index": ("index photos --model model --out new", "embedding", GOES_ON),
}


@pytest.mark.parametrize(("line", "task", "sentence"), STOPPED.values(), ids=STOPPED)
def test_ctrl_c(line, task, sentence, refused, stop_at):
    stop_at(task)
    refused(line, sentence, code=130, grows="new.")  # a folder beside --out that a later run goes on with


@pytest.fixture
def unfinished(world, lookalike, stop_at):
    """Leave a run of training that was stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:

        def step(self: object, name: str, done: int, total: int, detail: str = "") -> None:
            if name == "epoch 2/2":
                raise KeyboardInterrupt

        patch.setattr("lookalike.cli.terminal.Terminal.step", step)
        found = lookalike(TRAIN)
    assert (found.code, found.errors) == (130, [RESUMES])
    assert [p.name for p in world.glob("new*")] == ["new.training"]
    assert (world / "new.training" / "0" / "checkpoint.pt").is_file()


@pytest.mark.usefixtures("unfinished")
def test_training_that_was_stopped_goes_on(refused, lookalike, world):
    refused(TRAIN, "new.training holds an unfinished run; go on with --resume, or remove it to start anew.")
    refused(
        f"{TRAIN} --resume --seed 1",
        "the checkpoint in new.training/0 belongs to a run with other data, weights or options; resume with the "
        "options it was started with (learning rates may be others), or remove it.",
    )
    found = lookalike(f"{TRAIN} --resume")
    assert (found.code, found.out) == (0, "new\n")
    assert "test_efficientnet: going on after epoch 1" in found.err.splitlines()
    assert [p.name for p in world.glob("new*")] == ["new"]
    again = lookalike(f"{TRAIN} --resume")
    assert (again.code, again.out) == (0, "new\n")
    assert "new is the finished bundle of this run, there is nothing to go on with" in again.err


@pytest.mark.usefixtures("unfinished")
@pytest.mark.parametrize("damage", [b"half", b"\x00" * 40, b""])
def test_a_damaged_checkpoint(damage, refused):
    Path("new.training/0/checkpoint.pt").write_bytes(damage)
    refused(
        f"{TRAIN} --resume",
        "the checkpoint new.training/0/checkpoint.pt is damaged; remove new.training/0 and start again.",
    )


def test_a_benchmark_out_of_another_run(refused, stop_at):
    stop_at("model: validation")
    refused("benchmark photos --bundle model --out new", GOES_ON, code=130, grows="new/")
    refused(
        "benchmark photos --bundle model --seed 3 --out new",
        "new holds a benchmark with other … and options; choose another --out or remove it.",
    )


def test_embeddings_that_are_not_finished(refused, stop_at):
    stop_at("embedding")
    refused("embed photos --model model --out new.emb", GOES_ON, code=130, grows="new.emb/")
    refused(
        "index new.emb --out new",
        "new.emb holds embeddings that are not finished; run the same 'lookalike embed' again to finish them.",
    )


def test_an_interruption_while_the_command_is_loaded():
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from lookalike.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"error: {AGAIN}\n")


_UNIGNORED = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lookalike.cli import main; main()"
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_real_process(number, world):
    line = TRAIN.replace("--epochs 2", "--epochs 500 --patience 500")
    process = subprocess.Popen(
        # a shell starts what it puts in the background with SIGINT ignored, and children inherit that: undone here
        [sys.executable, "-c", _UNIGNORED, *line.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = world / "new.training" / "0" / "checkpoint.pt"
    until = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert [line for line in err.splitlines() if line.startswith("error: ")] == [f"error: {RESUMES}"]
    assert "Traceback" not in err
    assert checkpoint.is_file()
    assert sorted(p.name for p in world.iterdir() if p.name.startswith((".", "new"))) == ["new.training"]
    assert [p.name for p in checkpoint.parent.iterdir()] == ["checkpoint.pt"]  # nothing half-written beside it
