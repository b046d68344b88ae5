"""No command uses the network, and none writes outside the folders that it was given and the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike.cli.app import COMMANDS

pytestmark = pytest.mark.slow

# run by Python at its start: every attempt to use the network is refused and written down, as is every file written
_GUARD = """
import os, sys

_LOG = open(os.environ["GUARD_LOG"], "a", buffering=1)
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

def _audit(event, arguments):
    local = event == "socket.connect" and isinstance(arguments[1], (str, bytes))  # a socket of this machine, of wandb
    local |= event == "socket.getaddrinfo" and arguments[0] == "127.0.0.1"
    if event in _NETWORK and not local:
        _LOG.write(f"network {event} {arguments[1:]!r}\\n")
        raise OSError("the network is denied")
    if event == "open" and isinstance(arguments[0], (str, bytes)) and isinstance(arguments[2], int):
        if arguments[2] & _WRITING:
            _LOG.write(f"file {os.path.realpath(os.fsdecode(arguments[0]))}\\n")

sys.addaudithook(_audit)
"""

_COMMANDS = """
check photos
train photos --backbone test_efficientnet --weights small.safetensors --epochs 1 --track mlflow --out trained
benchmark photos --backbone test_efficientnet --weights small.safetensors --no-finetune --out benchmark
refit photos --model trained --weights small.safetensors --track wandb --out again
embed photos --model model --out fresh.emb
index photos --model model --out fresh.index
search photos.index photos/test/query/cat0.jpg --html page.html
evaluate photos --model model --runtime onnxruntime
add photos.index photos/test/query/cat0.jpg --label cat
update photos.index test/query/cat0.jpg --set year=2024
remove photos.index test/query/cat0.jpg
sync photos.index
compete photos --deadline 30s --backbone test_efficientnet --weights small.safetensors --group us --out competition
submit photos --model model --group us --out submission.json
submit photos --model model --group us --out dry.json --post https://host.invalid/ --dry-run
post submission.json https://host.invalid/ --dry-run
export trained --format openvino --int8 --data photos --tolerance 1 --out openvino8
export trained --format onnx --out onnx
backbones
recipes
token tokens --scope read --name us
completion bash
serve photos.index --port 0
"""

_RUN = """
import os, shlex, signal, sys, threading
from lookalike.cli.main import run
for line in sys.argv[1].split("\\n"):
    if line.startswith("serve"):
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    code = run(shlex.split(line))
    if code:
        sys.exit(f"{line} ended with {code}")
"""


def test_every_command_is_tried():
    """`demo` runs minutes of `benchmark`, on images from an installed package."""
    assert {line.split()[0] for line in _COMMANDS.strip().splitlines()} == set(COMMANDS) - {"demo"}


def test_no_command_uses_the_network_or_writes_elsewhere(workspace: Path, tmp_path: Path) -> None:
    home, cache, temporary, guard = (tmp_path / name for name in ("home", "cache", "temporary", "guard"))
    for folder in (home, cache, temporary, guard):
        folder.mkdir()
    (guard / "sitecustomize.py").write_text(_GUARD)
    log = guard / "log"
    log.touch()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.endswith("_TELEMETRY") and name != "CI"},
        "PYTHONPATH": os.pathsep.join([str(guard), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GUARD_LOG": str(log),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(cache),
        "XDG_CONFIG_HOME": str(cache),  # of matplotlib
        "LOOKALIKE_CACHE": str(cache),
        "TMPDIR": str(temporary),
        "XDG_DATA_HOME": str(cache),  # of wandb, for artifacts that are not uploaded yet
        "WANDB_MODE": "offline",
    }
    process = subprocess.run(
        [sys.executable, "-c", _RUN, _COMMANDS.strip()],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    lines = log.read_text().splitlines()
    assert not [line for line in lines if line.startswith("network ")]
    allowed = tuple(str(folder.resolve()) for folder in (workspace, cache, temporary, Path(os.devnull).parent))
    files = [line.removeprefix("file ") for line in lines if line.startswith("file ")]
    assert not [file for file in files if not file.startswith((*allowed, "/proc/"))]
    assert not list(home.rglob("*"))  # written without Python, as ONNX Runtime does
    assert not (cache / "Microsoft").exists()
