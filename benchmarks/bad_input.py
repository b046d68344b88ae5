r"""What every command does with bad input: exit status, what it prints, time, memory, connections, what it leaves.

    python benchmarks/bad_input.py
    python benchmarks/bad_input.py --only a-class-with-a-leading-blank no-home-for-search
    python benchmarks/bad_input.py --resume

The cases are in `bad_input_cases/`. Each one's input is made in a fresh folder from the demo's images, then its
commands run in bash, one at a time, as a user without rights (`unshare`), without a network, with a time limit and
16 GB of address space. `strace` counts the attempts to use the network. Besides what the case expects, no command may
print a traceback, print more than one error, or leave anything in HOME or TMPDIR. The result is
docs/results/bad-input.json, written after each case; `python docs/make_bad_input.py` makes the page of it. Linux only;
needs unshare, strace, prlimit, script and flock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_input_cases import CASES, KINDS
from bad_input_cases.case import SCENES, Case

REPOSITORY = Path(__file__).resolve().parent.parent
RESULT = REPOSITORY / "docs" / "results" / "bad-input.json"
TOOLS = ("bash", "unshare", "strace", "prlimit", "script", "flock")
ADDRESS_SPACE = 16 << 30  # bytes of a process
USER = 54321  # has no entry in passwd
_MAX_OUTPUT = 1_000_000  # characters of an output that are searched
_MAX_LINE = 400  # characters of a line that is recorded
# how the base folder is made, after its data: model is a bundle, onnx and openvino are its exports
BASE = (
    "lookalike embed photos --model efficientnet_lite0 --runtime openvino --out first.emb",
    "cp -r first.emb/model model",
    "lookalike embed photos --model model --runtime onnxruntime --out second.emb",
    "lookalike export model --format onnx --out onnx",
    "lookalike export model --format openvino --precision float32 --out openvino",
    "lookalike embed photos --model onnx --out photos.emb",
    "lookalike index photos.emb --out photos.index",
    "lookalike embed photos --model efficientnet_lite2 --out other.emb",
    "cp -r other.emb/model other",
)
SMALL = (
    "import timm, torch; from safetensors.torch import save_file; torch.manual_seed(0); "
    "save_file(timm.create_model('test_efficientnet', num_classes=0).state_dict(), 'small.safetensors')"
)

# in another process: the peak memory of a child starts at that of its parent
MACHINE = "import json; from lookalike.benchmark.timing import machine; print(json.dumps(machine()))"


@dataclass(frozen=True)
class Folders:
    """Where cases run; all of them in the same place, because an index records the folder of its images."""

    root: Path

    @property
    def work(self) -> Path:
        """The working folder of the commands."""
        return self.root / "work"

    @property
    def base(self) -> Path:
        """What cases copy."""
        return self.root / "base"

    def environment(self) -> dict[str, str]:
        """Return all variables of a command."""
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(REPOSITORY / "src"),
            "LANG": "C.UTF-8",
            "HOME": str(self.root / "home"),
            "TMPDIR": str(self.root / "tmp"),
            "MPLCONFIGDIR": str(self.root / "cache"),
            "LOOKALIKE_CACHE": str(self.root / "cache"),
        }


@dataclass(frozen=True)
class Run:
    """What one command did."""

    exit: int | None  # None: the time limit
    output: str
    seconds: float
    peak_memory_mb: float
    connections: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="ID", choices=sorted(CASES), help="run these cases")
    parser.add_argument("--resume", action="store_true", help="keep the results that are there")
    parser.add_argument("--timeout", type=float, default=120, help="seconds of a command")
    parser.add_argument("--work", type=Path, help="keep the working folder here, and what it has of an earlier run")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--make", metavar="ID", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make = CASES[args.make].make
        assert make is not None
        make()
        return
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        sys.exit(f"this script needs {', '.join(missing)}")
    with working_folder(args.work) as root:
        folders = Folders(root)
        prepare(folders)
        run_cases(args, folders)


class working_folder:  # noqa: N801 - a context manager
    """A folder that is removed afterwards unless it is named."""

    def __init__(self, path: Path | None) -> None:
        self._keep = path is not None
        self._path = Path(tempfile.mkdtemp()) if path is None else path.resolve()

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        if not self._keep:
            remove(self._path)


def remove(path: Path) -> None:
    """Remove a folder, whatever the permissions inside it are."""
    subprocess.run(["chmod", "-R", "u+rwX", str(path)], check=False, stderr=subprocess.DEVNULL)
    shutil.rmtree(path, ignore_errors=True)


def prepare(folders: Folders) -> None:
    """Make the base folder: images, a data set, models, embeddings and an index."""
    if folders.base.exists():
        return
    from lookalike.data.samples import write_demo_images

    renew(folders)
    demo = write_demo_images(folders.work / "demo", n_training=6, n_query=2, n_gallery=3)
    labels = [line.split(",") for line in (demo / "labels.csv").read_text().splitlines()[1:]]
    counts = {"query": 1, "gallery": 2}
    for scene in SCENES:
        shutil.copytree(demo / "training" / scene, folders.work / "data" / "training" / scene)
        for number in range(2):
            copy(demo / "training" / scene / f"{number:02}.jpg", folders.work / "photos" / scene / f"{number}.jpg")
        for split, count in counts.items():
            for name in [name for name, label in labels if label == scene and f"/{split}/" in name][:count]:
                copy(demo / name, folders.work / "data" / name)
    used = [line for line in labels if (folders.work / "data" / line[0]).is_file()]
    text = "path,label\n" + "".join(f"{name},{label}\n" for name, label in used)
    (folders.work / "data" / "labels.csv").write_text(text)
    for line in (*BASE, f'python -c "{SMALL}"'):
        print(f"$ {line}", flush=True)
        result = run(folders, line, timeout=900)
        if result.exit:
            sys.exit(result.output)
    folders.work.rename(folders.base)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def renew(folders: Folders) -> None:
    """Make the working folder, HOME and TMPDIR empty."""
    for name in ("work", "home", "tmp"):
        remove(folders.root / name)
        (folders.root / name).mkdir(parents=True)
    (folders.root / "cache").mkdir(exist_ok=True)


def run_cases(args: argparse.Namespace, folders: Folders) -> None:
    from lookalike._files import write_json

    machine = json.loads(subprocess.check_output([sys.executable, "-c", MACHINE]))
    stored = json.loads(args.out.read_text(encoding="utf-8"))["cases"] if args.out.exists() else {}
    if not (args.resume or args.only):
        stored = {}
    for number, case in enumerate(CASES.values(), 1):
        if (args.only and case.id not in args.only) or (args.resume and case.id in stored):
            continue
        try:
            stored[case.id] = record(case, folders, args.timeout)
        except subprocess.CalledProcessError as error:  # --resume tries it again
            print(f"{case.id}: the input cannot be made: {error.stderr}", flush=True)
            continue
        row = stored[case.id]
        problems = f" {row['problems']}" if row["problems"] else ""
        print(
            f"{number:3}/{len(CASES)} {case.id}: {row['exit']}, {row['seconds']:.1f} s, "
            f"{row['peak_memory_mb']:.0f} MB{problems}",
            flush=True,
        )
        cases = {name: stored[name] for name in CASES if name in stored}
        result = {
            "machine": machine,
            "timeout_seconds": args.timeout,
            "cases": cases,
            "not_made": {kind.title: kind.not_made for kind in KINDS if kind.not_made},
            "not_run": [name for name in CASES if name not in stored],
        }
        write_json(args.out, result)


def record(case: Case, folders: Folders, timeout: float) -> dict[str, Any]:
    """Make the input of a case, run its commands, and return what is stored of it."""
    renew(folders)
    for name in case.uses:
        if not (folders.work / name).exists():
            shutil.copytree(folders.base / name, folders.work / name)
    if case.make is not None:
        command = [sys.executable, str(Path(__file__).resolve()), "--make", case.id]
        environment = folders.environment() | {"BAD_INPUT_BASE": str(folders.base)}
        subprocess.run(command, check=True, cwd=folders.work, env=environment, stderr=subprocess.PIPE, text=True)
        remove(folders.root / "tmp")
        (folders.root / "tmp").mkdir()
    runs: list[Run] = []
    for line in case.commands:
        runs.append(run(folders, line, timeout))
        if runs[-1].exit != 0:
            break
    text = shown(runs[-1].output, folders)
    lines = [line for line in text.splitlines() if line.strip()]
    return {
        "kind": case.kind,
        "input": case.input,
        "commands": list(case.commands),
        "expected_exit": case.expected.exit,
        "exit": runs[-1].exit,
        "first": lines[0][:_MAX_LINE] if lines else "",
        "last": lines[-1][:_MAX_LINE] if lines else "",
        "prints": main_line(case, lines)[:_MAX_LINE],
        "seconds": round(runs[-1].seconds, 2),
        "peak_memory_mb": round(max(one.peak_memory_mb for one in runs)),
        "connections": sum(one.connections for one in runs),
        "problems": list(problems(case, runs, folders)),
    }


def run(folders: Folders, line: str, timeout: float) -> Run:
    """Run a line of bash to its end, without a network."""
    trace, output = folders.root / "trace", folders.root / "output"
    guard = ["unshare", "--user", f"--map-user={USER}", f"--map-group={USER}", "--net"]
    guard += ["prlimit", f"--as={ADDRESS_SPACE}"]
    guard += ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-o", str(trace)]
    guard += ["-e", "trace=connect,sendto,sendmsg,sendmmsg", "bash", "-c", line]
    with output.open("wb") as file:
        clock = time.perf_counter()
        process = subprocess.Popen(
            guard,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folders.work,
            env=folders.environment(),
            start_new_session=True,
        )
        ended = wait(process, timeout)
        seconds = time.perf_counter() - clock
    with output.open(encoding="utf-8", errors="replace") as text:
        printed = text.read(_MAX_OUTPUT)
    connections = len(re.findall(r"sa_family=AF_INET", trace.read_text(errors="replace")))
    exit_status = None if ended is None else os.waitstatus_to_exitcode(ended[0])
    memory = 0.0 if ended is None else ended[1] * 1024 / 1e6
    return Run(exit_status, printed, seconds, memory, connections)


def wait(process: subprocess.Popen[bytes], timeout: float) -> tuple[int, int] | None:
    """Return the status and the memory in KiB of the largest process; None if the time limit ended it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return status, usage.ru_maxrss
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return None


def shown(text: str, folders: Folders) -> str:
    """Return an output without what differs between machines and runs: folders and numbers of processes."""
    names = {folders.work: "WORK", folders.base: "BASE", folders.root: "ROOT", REPOSITORY: "REPOSITORY"}
    for path, name in names.items():
        text = text.replace(str(path), name)
    text = text.replace(str(Path(sys.executable).parent), "BIN").replace(sys.prefix, "PREFIX")
    text = re.sub(r"process \d+", "process N", text)
    return "".join(char if char.isprintable() or char == "\n" else "�" for char in text.replace("\r", "\n"))


def main_line(case: Case, lines: Sequence[str]) -> str:
    """Return the line that shows what happened: the error, else the first that has an expected fact, else the last."""
    errors = [line for line in lines if line.startswith("error: ")]
    facts = [line for fact in case.expected.says for line in lines if re.search(fact, line, re.IGNORECASE)]
    return next(iter([*errors, *facts, *lines[::-1]]), "")


def problems(case: Case, runs: Sequence[Run], folders: Folders) -> Iterator[str]:
    """Yield in what a case is not as expected."""
    expected, last = case.expected, runs[-1]
    if len(runs) < len(case.commands):
        yield f"a command before the last one ended with {last.exit}"
    if last.exit is None:
        yield "the time limit ended it"
    elif expected.exit is None and last.exit not in (0, 1, 2):
        yield f"exit {last.exit}, expected 0, 1 or 2"
    elif expected.exit is not None and last.exit != expected.exit:
        yield f"exit {last.exit}, expected {expected.exit}"
    flags = re.IGNORECASE | re.MULTILINE
    flat = last.output
    yield from (f"does not say {fact!r}" for fact in expected.says if not re.search(fact, flat, flags))
    yield from (f"says {fact!r}" for fact in expected.silent if re.search(fact, flat, flags))
    for run_ in runs:
        if "Traceback (most recent call last)" in run_.output:
            yield "prints a traceback"
        if re.search("^error: unexpected error", run_.output, re.MULTILINE):
            yield "unexpected error"
    errors = len(re.findall("^error: ", last.output, re.MULTILINE))
    if last.exit == 2 and errors != 1:
        yield f"prints {errors} errors, expected one"
    yield from (f"{name} is missing" for name in expected.files if not os.path.lexists(folders.work / name))
    yield from (f"{name} exists" for name in expected.no_files if os.path.lexists(folders.work / name))
    memory = max(one.peak_memory_mb for one in runs)
    if memory > expected.max_mb:
        yield f"takes {memory:,.0f} MB, expected at most {expected.max_mb:,}"
    yield from left_behind(case, runs, folders)


def left_behind(case: Case, runs: Sequence[Run], folders: Folders) -> Iterator[str]:
    """Yield attempts to use the network without a reason, and files outside the working folder."""
    if case.expected.connects:
        return
    connections = sum(one.connections for one in runs)
    if connections:
        yield f"{connections} attempts to use the network"
    for name in ("home", "tmp"):
        files = sorted(path.relative_to(folders.root).as_posix() for path in (folders.root / name).rglob("*"))
        files = [file for file in files if not file.startswith("tmp/torchinductor_")]  # torch makes it when imported
        files = [file for file in files if not any(re.search(allowed, file) for allowed in case.expected.leaves)]
        if files:
            yield f"leaves {files[0]}"


if __name__ == "__main__":
    main()
