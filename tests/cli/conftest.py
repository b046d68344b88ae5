"""A working folder with images, two bundles, embeddings and an index; `lookalike` runs a command line in it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lookalike.cli.main import run
from lookalike.index.storage import read_info, write_info

SMALL = "test_efficientnet"  # 0.1 million parameters, images of 160 × 160


@pytest.fixture(scope="session")
def original_workspace(data_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build once what `workspace` copies."""
    import timm
    import torch
    from safetensors.torch import save_file

    from lookalike import embed, index, save_bundle
    from lookalike.models.trainable import build_trainable

    folder = tmp_path_factory.mktemp("workspace")
    sample_images = Path(shutil.copytree(data_folder_original, folder / "photos"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        save_file(timm.create_model(SMALL, num_classes=0).state_dict(), folder / "small.safetensors")
    for seed, name in enumerate(("model", "other")):  # they differ by their heads
        save_bundle(build_trainable(SMALL, folder / "small.safetensors", seed=seed).freeze(), folder / name)
    embed(sample_images, folder / "model", out=folder / "photos.emb")
    index(sample_images, folder / "model", out=folder / "photos.index")  # of the 12 gallery images
    return folder


@pytest.fixture
def workspace(original_workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a working folder with photos/, model/, other/, photos.emb/, photos.index/ and small.safetensors."""
    folder = Path(shutil.copytree(original_workspace, tmp_path / "workspace"))
    index_folder = folder / "photos.index"
    write_info(index_folder, replace(read_info(index_folder), root=str(folder / "photos")))
    monkeypatch.chdir(folder)
    return folder


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The error messages on stderr."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def json(self) -> Any:
        """The value on stdout, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    @property
    def table(self) -> list[list[str]]:
        """The words of each line on stdout."""
        return [line.split() for line in self.out.splitlines() if line]


Run = Callable[[str], Outcome]


@pytest.fixture
def lookalike(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def command(line: str) -> Outcome:
        capsys.readouterr()
        code = run(shlex.split(line))
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return command


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def fails(workspace: Path, lookalike: Run) -> Callable[..., str]:
    """Check that a command line fails with one message that names all the facts, and changes nothing on disk.

    `grows` is the start of the names that may be new or changed. Returns the message.
    """

    def check(line: str, *facts: str, code: int = 2, grows: str = "") -> str:
        before = contents(workspace)
        outcome = lookalike(line)
        assert (outcome.code, outcome.out) == (code, ""), outcome.err
        assert "Traceback" not in outcome.err
        (message,) = outcome.errors
        assert not [fact for fact in facts if fact not in message], message
        assert message[-1] in ".?"
        after = contents(workspace)
        if grows:
            before, after = ({n: c for n, c in files.items() if not n.startswith(grows)} for files in (before, after))
        assert after == before
        return message

    return check


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Interrupt a command when it reports a step of this task, as Ctrl-C would."""

    def arm(task: str) -> None:
        def step(_self: object, name: str, _done: int, _total: int, _detail: str = "") -> None:
            if name == task:
                raise KeyboardInterrupt

        monkeypatch.setattr("lookalike.progress.LineProgress.step", step)

    return arm
