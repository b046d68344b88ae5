r"""Whole commands, each a process from its start to its end: time, and the memory of the largest process.

    python benchmarks/commands.py --rounds 5
    python benchmarks/commands.py --backbone resnet50 --weights resnet50_imagenet.safetensors

The training images of `clothing` in $LOOKALIKE_SHARED/data, as links in one folder, are embedded by `lookalike embed`
with a bundle, in the precision of the fastest runtime and in float32, and with a backbone by name, whose head it fits
to the images; and by `benchmarks/plain_embedding.py`, a script with timm and a DataLoader in float32. All take turns in
each round, and the embeddings are deleted before each run; ratios are to the script. Then `embed`, `index`, `search`
and `evaluate` run on ten images each. An earlier run has selected the runtime, and a round that is not counted fills
the caches: a first use takes longer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import add_out_option, save_result, shared_folder, summarize

BASELINE = "timm + DataLoader"
SELECTION_IMAGES = 400  # with fewer images no runtime is selected
START_IMAGES = 10
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Command:
    """A command, and what it writes, which is deleted before each run."""

    arguments: Sequence[str]
    output: Path | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained", help="'pretrained', 'none' or a file")
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--images", type=int, default=0, help="number of images at most; 0 for all training images")
    parser.add_argument("--rounds", type=int, default=5)
    add_out_option(parser)
    args = parser.parse_args()
    images = sorted(p for p in (args.data / "training").rglob("*") if p.suffix.lower() in SUFFIXES)
    selected = images[:: -(-len(images) // args.images)] if args.images else images
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["LOOKALIKE_CACHE"] = str(work / "cache")
        prepare(args, work, images)
        contenders = run_in_turn(embed_commands(args, work, selected), args.rounds)
        starts = run_in_turn(start_commands(work, images), args.rounds)
        from lookalike.embeddings.folder import (
            read_embeddings_info,
        )  # not earlier: a child's peak starts at its parent's

        precision = read_embeddings_info(work / "images.emb").run.precision
    for name, row in contenders.items():
        row["ratio"] = contenders[BASELINE]["seconds"]["median"] / row["seconds"]["median"]
        print(f"{name}: {row['seconds']['median']:.2f} s, {row['ratio']:.2f} times {BASELINE}")
    from lookalike.benchmark.timing import machine

    result: dict[str, Any] = {
        "machine": machine(),
        "backbone": args.backbone,
        "weights": Path(args.weights).stem,
        "data": args.data.name,
        "images": len(selected),
        "precision": precision,
        "rounds": args.rounds,
        "rate": "seconds",
        "baseline": BASELINE,
        "contenders": contenders,
        "skipped": {},
        "start_images": START_IMAGES,
        "starts": starts,
    }
    save_result("commands", result, complete=not args.images, folder=args.out)


def prepare(args: argparse.Namespace, work: Path, images: Sequence[Path]) -> None:
    """Select the runtime with `lookalike embed`, and save the bundle and the weights for the script."""
    link_images(images[:SELECTION_IMAGES], work / "selection")
    command = lookalike("embed", work / "selection", "--out", work / "selection.emb", *model_by_name(args))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(work / "selection.emb" / "model", work / "bundle")
    code = (
        "import sys; from safetensors.numpy import load_file, save_file; prefix = 'members.0.backbone.'; "
        "save_file({n.removeprefix(prefix): t for n, t in load_file(sys.argv[1]).items() if n.startswith(prefix)}, "
        "sys.argv[2])"
    )
    files = [str(work / "bundle" / "model.safetensors"), str(work / "weights.safetensors")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)


def model_by_name(args: argparse.Namespace) -> list[str]:
    weights = [] if args.weights == "pretrained" else ["--weights", args.weights]
    return ["--model", args.backbone, *weights]


def embed_commands(args: argparse.Namespace, work: Path, images: Sequence[Path]) -> dict[str, Command]:
    folder = link_images(images, work / "images")
    out, array = work / "images.emb", work / "images.npy"
    embed, bundle = ("embed", folder, "--out", out), ("--model", work / "bundle")
    info = json.loads((work / "bundle" / "bundle.json").read_text(encoding="utf-8"))
    script = [sys.executable, str(Path(__file__).with_name("plain_embedding.py")), str(folder)]
    script += [info["members"][0]["backbone"]["timm_name"], str(work / "weights.safetensors"), str(array)]
    return {
        "lookalike embed, bundle": Command(lookalike(*embed, *bundle), out),
        "lookalike embed, bundle, float32": Command(lookalike(*embed, *bundle, "--precision", "float32"), out),
        "lookalike embed, backbone by name": Command(
            lookalike("embed", folder, "--out", out, *model_by_name(args)), out
        ),
        BASELINE: Command(script, array),
    }


def start_commands(work: Path, images: Sequence[Path]) -> dict[str, Command]:
    few = images[:: len(images) // START_IMAGES][:START_IMAGES]
    folder, data = link_images(few, work / "few"), work / "data"
    half = images[: START_IMAGES // 2]  # of one class
    data.joinpath("test").mkdir(parents=True)
    for split, paths in (("query", half), ("gallery", images[len(half) : START_IMAGES])):
        link_images(paths, data / "test" / split / "first")
    bundle, index = ["--model", work / "bundle"], work / "first.index"
    subprocess.run(lookalike("index", folder, "--out", index, *bundle), check=True, stdout=subprocess.DEVNULL)
    emb, other_index = work / "few.emb", work / "few.index"
    return {
        "lookalike embed": Command(lookalike("embed", folder, "--out", emb, *bundle), emb),
        "lookalike index": Command(lookalike("index", folder, "--out", other_index, *bundle), other_index),
        "lookalike search": Command(lookalike("search", index, images[1], "-k", "3", "--json")),
        "lookalike evaluate": Command(lookalike("evaluate", data, *bundle, "-k", "1", "--json")),
    }


def lookalike(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "lookalike", *map(str, arguments)]


def link_images(images: Sequence[Path], folder: Path) -> Path:
    """Link images into a new folder."""
    folder.mkdir(parents=True)
    for number, path in enumerate(images):
        (folder / f"image {number:06}{path.suffix}").symlink_to(path.resolve())
    return folder


def run_in_turn(commands: Mapping[str, Command], rounds: int) -> dict[str, dict[str, Any]]:
    """Run all commands in turn, after a round that is not counted; return the summary of each."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            figures = run(command)
            print(
                f"  {number}/{rounds} {name}: {figures['seconds']:.2f} s, {figures['peak_memory_mb']:.0f} MB",
                flush=True,
            )
            if number:
                runs[name].append(figures)
    return {name: summarize(figures) for name, figures in runs.items()}


def run(command: Command) -> dict[str, float]:
    """Run a command to its end; its memory is that of the largest of its processes, in MB of 10^6 bytes."""
    if command.output is not None:
        delete(command.output)
    with tempfile.TemporaryFile() as errors:
        clock = time.perf_counter()
        process = subprocess.Popen(command.arguments, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - clock
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command.arguments)} failed:\n{errors.read().decode(errors='replace')}")
    if command.output is not None and not command.output.exists():
        sys.exit(f"{' '.join(command.arguments)} did not write {command.output}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": seconds, "peak_memory_mb": usage.ru_maxrss * unit / 1e6}


def delete(path: Path) -> None:
    remove: Callable[[Path], object] = shutil.rmtree if path.is_dir() else Path.unlink
    if path.exists():
        remove(path)


if __name__ == "__main__":
    main()
