"""A working folder with photographs, two bundles, embeddings and an index; `lookalike` runs a command line in it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lookalike.cli.main import run

SMALL = "test_efficientnet"  # 0.1 million parameters, pictures of 160 × 160


@pytest.fixture(scope="session")
def made(photo_folder_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build once what `world` copies."""
    import timm
    import torch
    from safetensors.torch import save_file

    from lookalike import embed, index, save_bundle
    from lookalike.models.encoder import Encoder
    from lookalike.models.pretrained import build_trainable

    place = tmp_path_factory.mktemp("made")
    photos = Path(shutil.copytree(photo_folder_original, place / "photos"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        save_file(timm.create_model(SMALL, num_classes=0).state_dict(), place / "small.safetensors")
    for seed, name in enumerate(("model", "other")):  # they differ by their heads
        save_bundle(Encoder([build_trainable(SMALL, place / "small.safetensors", seed=seed)]), place / name)
    embed(photos, place / "model", out=place / "photos.emb")
    index(photos, place / "model", out=place / "photos.index")  # of the 12 gallery images
    return place


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the working folder, yours to change: photos/, model/, other/, photos.emb/, photos.index/ and weights."""
    place = Path(shutil.copytree(made, tmp_path / "world"))
    facts = place / "photos.index" / "index.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "root": str(place / "photos")}))
    monkeypatch.chdir(place)
    return place


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The sentences that stderr calls errors."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]

    @property
    def json(self) -> Any:
        """What stdout holds, which must be one JSON value and nothing else."""
        return json.loads(self.out)


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
def refused(world: Path, lookalike: Run) -> Callable[..., None]:
    """Check that a command line is refused with this sentence, and that nothing on disk is other than before.

    `…` in the sentence stands for any text; `grows` names what may have grown.
    """

    def check(line: str, sentence: str, *, code: int = 2, grows: str = "") -> None:
        before = contents(world)
        found = lookalike(line)
        assert len(found.errors) == 1, found.err
        assert re.fullmatch(".+".join(map(re.escape, sentence.split("…"))), found.errors[0]), found.errors[0]
        assert sentence[-1] in ".?"
        assert found.code == code
        assert found.out == ""
        assert "Traceback" not in found.err
        after = contents(world)
        if grows:
            before, after = ({n: c for n, c in files.items() if not n.startswith(grows)} for files in (before, after))
        assert after == before

    return check


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Interrupt whatever runs when it reports a step of this task, as Ctrl-C would."""

    def arm(task: str) -> None:
        def step(self: object, name: str, done: int, total: int, detail: str = "") -> None:
            if name == task:
                raise KeyboardInterrupt

        monkeypatch.setattr("lookalike.cli.terminal.Terminal.step", step)

    return arm
