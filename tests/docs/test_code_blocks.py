"""The code blocks of README, tutorials and how-to pages run, in their order, next to a folder `photos` of real images.

A block whose first line is `# not tested: REASON` is not run; neither are lines that install Lookalike.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/index.md"]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/tutorials/*.md"))]
PAGES += [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/how-to/*.md"))]
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INSTALLS = re.compile(r"^(python3 -m venv|\. \.venv/bin/activate|\.venv/bin/(pip|uv) |uvx -c )")
NOT_TESTED = re.compile(r"# not tested: \w.*")
LANGUAGES = {"sh", "python", "text"}
LIMIT_SECONDS = 300
SHORTER = {
    "--backbone efficientnet_lite0 --backbone efficientnet_lite2 --max-minutes 10": (
        "--backbone efficientnet_lite0 --epochs 1 --max-minutes 10"  # 150 s less, most of it to time ensembles
    ),
    "--deadline 2h": "--deadline 30s",
    'la.train(data, out="model")': 'la.train(data, out="model", epochs=1)',
}


def code_blocks(page: str) -> list[tuple[str, str]]:
    """Return language and text of the blocks of a page that run."""
    blocks = []
    for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        language, text = match[2], match[3]
        lines = [line for line in text.splitlines() if not INSTALLS.match(line)]
        if language != "text" and lines and not NOT_TESTED.fullmatch(lines[0]):
            blocks.append((language, "\n".join(lines) + "\n"))
    return blocks


def test_blocks_are_found_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "a.md").write_text(
        "```sh\npython3 -m venv .venv && x\nls\n```\n```text\nno\n```\n"
        "```python\n# not tested: no network\n1 / 0\n```\n```python\n# not tested\nprint()\n```\n"
        "```sh\npython3 -m venv .venv\n```\n"
    )
    assert code_blocks("a.md") == [("sh", "ls\n"), ("python", "# not tested\nprint()\n")]


@pytest.mark.parametrize("path", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.name)
def test_every_block_names_its_language(path):
    fences = re.findall(r"^ *```(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {*LANGUAGES, "json"}
    assert set(fences[1::2]) <= {""}


@pytest.fixture(scope="module")
def folder(data_folder_original, tmp_path_factory):
    """One folder and one cache for all pages: what an earlier page has measured or compiled is not done again."""
    folder = tmp_path_factory.mktemp("pages") / "work"
    shutil.copytree(data_folder_original, folder / "photos")
    shutil.copy(next((folder / "photos" / "test" / "query").glob("*.jpg")), folder / "query.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page)])
def test_the_code_blocks_run(page, folder, programs, monkeypatch):
    for path in folder.iterdir():
        if path.name not in ("photos", "query.jpg", "runs"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setenv("LOOKALIKE_CACHE", str(folder.parent / "cache"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]))
    for language, block in code_blocks(page):
        text = block
        for long, short in SHORTER.items():
            text = text.replace(long, short)
        command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [programs / "run-code", text]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
        assert run.returncode == 0, f"{page}:\n{text}\n{run.stdout}\n{run.stderr}"
