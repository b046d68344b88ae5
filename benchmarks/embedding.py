r"""From a folder of JPEGs to embeddings: ours by each runtime beside what people use.

    python benchmarks/embedding.py --backbone efficientnet_lite0 --rounds 5
    python benchmarks/embedding.py --backbone resnet50 --weights resnet50_imagenet.safetensors

Every contender embeds the same photographs, those of `clothing` in $LOOKALIKE_SHARED/data by default, in a process of
its own, all in turn in each round. Loading the model is not counted, the pass over the images is, from opening the
first file to the last vector, after a pass over 32 of them. int8 is calibrated on the training images before the
rounds; `model only` is shown pictures that are decoded already, `decoding only` has no model, `written` is what
`lookalike embed` does: it finds the files in a folder and writes embeddings and the model to another. Ratios are to
timm's model fed by a DataLoader in float32 (`timm + DataLoader`). The machine's matrix products are measured before the
rounds and after them (`benchmarks/limits.py`, without its turns); the better of both is the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from contest import answer, contest, keep, shared_folder

PRECISIONS = ("float32", "bfloat16", "int8")
DECODING = "ours, decoding only"
ONNX = "ours, onnxruntime float32"
OURS = (
    "ours, torch",
    ONNX,
    *(f"ours, openvino {p}{only}" for only in ("", ", written", ", model only") for p in PRECISIONS),
    DECODING,
)
THEIRS = (
    "Pillow + torch, one by one",
    "timm + DataLoader",
    "timm + DataLoader, bfloat16",
    "img2vec-pytorch",
    "transformers",
)
AGAINST = "timm + DataLoader"
WARM_UP = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--images", type=int, default=0, help="at most; 0 for all of the gallery")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", help="a contender; may be repeated")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    files = gallery(given.data, given.images)
    if given.contender:
        run = CONTENDERS[given.contender]
        run(given, files)
        return
    with tempfile.TemporaryDirectory() as work:
        chosen = given.only or [*THEIRS, *OURS]
        eight = {name for name in chosen if "int8" in name}
        gflops, refused = prepare(given, Path(work), bool(eight))
        arguments = ["--backbone", given.backbone, "--weights", given.weights, "--data", str(given.data)]
        arguments += ["--images", str(given.images), "--work", work]
        facts = {
            "backbone": given.backbone,
            "weights": Path(given.weights).stem,
            "images": len(files),
            "data": given.data.name,
            "gflops_per_image": gflops,
        }
        before = limits()
        result = contest(
            __file__,
            [name for name in chosen if not (refused and name in eight)],
            given.rounds,
            arguments=arguments,
            against=AGAINST,
            facts=facts,
            environment=lambda name: (
                {"LOOKALIKE_CACHE": f"{work}/cache", "OMP_WAIT_POLICY": "PASSIVE"} if name in OURS else {}
            ),
        )
        result["skipped"] |= dict.fromkeys(eight, refused) if refused else {}
        result["limits"] = {"gflops": {name: max(rate, before[name]) for name, rate in limits().items()}}
    keep(f"embedding-{given.backbone}", result, whole=not given.only)


def gallery(data: Path, most: int) -> list[Path]:
    from lookalike.data.layouts import load_dataset

    files = [item.path for item in load_dataset(data).gallery]
    return files[:most] if most else files


def limits() -> dict[str, float]:
    """Return this machine's matrix products, measured in a process of its own: torch and OpenVINO keep threads."""
    code = "import json, limits; print(json.dumps(limits.products()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    print(", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in found.items()), flush=True)
    return found


def prepare(given: argparse.Namespace, work: Path, int8: bool) -> tuple[float, str]:
    """Make the bundle, and what is exported of it.

    Returns:
        The operations of a picture in units of 10^9 (a multiplication and an addition are two), and why int8 was
        refused, if it was.

    """
    import torch
    from lookalike.embeddings.fit import fitted_encoder
    from lookalike.models.pretrained import build_trainable
    from lookalike.models.torch_bundle import save_bundle
    from torch.utils.flop_counter import FlopCounterMode

    from lookalike.api.export import export
    from lookalike.data.layouts import load_dataset
    from lookalike.errors import MissingExtra, ModelError
    from lookalike.models.registry import find_row

    data = load_dataset(given.data)
    encoder = fitted_encoder(
        [build_trainable(given.backbone, given.weights)], data.training[:: max(1, len(data.training) // 500)]
    )
    save_bundle(encoder, work / "bundle")
    member = encoder.members[0]
    p = member.preprocessing
    transform = {"input_size": (3, p.height, p.width), "interpolation": p.interpolation, "crop_pct": p.crop_pct}
    transform |= {"mean": p.mean, "std": p.std}
    name = find_row(given.backbone).timm_name
    torch.save({"name": name, "state": member.module.state_dict(), "transform": transform}, work / "timm.pt")
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        member.module(torch.zeros(1, 3, p.height, p.width))
    gflops = counted.get_total_flops() / 1e9
    for precision in ("float32", "bfloat16"):
        export(work / "bundle", out=work / precision, precision=precision)
    with contextlib.suppress(MissingExtra):  # the contender is left out then
        export(work / "bundle", out=work / "onnx", format="onnx")
    if int8:
        try:
            export(work / "bundle", out=work / "int8", precision="int8", data=data)
        except ModelError as error:
            return gflops, str(error)
    return gflops, ""


def timed(files: list[Path], run: Callable[[list[Path]], object]) -> None:
    run(files[:WARM_UP])
    clock = time.perf_counter()
    run(files)
    seconds = time.perf_counter() - clock
    answer(per_second=len(files) / seconds, seconds=seconds)


def ours(folder: str, given: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.runtimes.bundle import load_bundle

    encoder = load_bundle(given.work / folder)
    if folder == "bundle":
        import torch  # noqa: F401
    timed(files, encoder.embed)


def written(folder: str, given: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.runtimes.bundle import load_bundle

    from lookalike.api.embed import embed

    encoder = load_bundle(given.work / folder)
    with tempfile.TemporaryDirectory() as work:
        for name, some in (("few", files[:WARM_UP]), ("all", files)):
            (Path(work) / name).mkdir()
            for number, file in enumerate(some):
                (Path(work) / name / f"photograph {number:06}.jpg").symlink_to(file.resolve())
        embed(Path(work) / "few", encoder, out=Path(work) / "few embeddings")
        clock = time.perf_counter()
        embed(Path(work) / "all", encoder, out=Path(work) / "embeddings")
        seconds = time.perf_counter() - clock
    answer(per_second=len(files) / seconds, seconds=seconds)


def model_only(folder: str, given: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.runtimes.bundle import load_bundle
    from lookalike.runtimes.choice import rate_of

    from lookalike.data.images import read_pixels

    (member,) = load_bundle(given.work / folder).members
    p = member.preprocessing
    pixels = np.stack([p.pixels(read_pixels(file, p.at_least)) for file in files[:64]])
    answer(per_second=rate_of(member, pixels, seconds=10.0))


def decoding_only(given: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.models.stream import batches
    from lookalike.runtimes.bundle import load_bundle

    from lookalike.models.encoder import as_sources

    wanted = [member.preprocessing for member in load_bundle(given.work / "float32").members]
    timed(files, lambda some: sum(len(batch.ids) for batch in batches([as_sources(some)], wanted)))


def timm_model(given: argparse.Namespace):
    """Return the same network with the same weights as timm makes it, and its transform; nothing of ours is imported.

    Building a member of ours changes how the process keeps memory, which would make this one faster as well.
    """
    import timm
    import torch

    saved = torch.load(given.work / "timm.pt")
    model = timm.create_model(saved["name"], num_classes=0)
    model.load_state_dict(saved["state"])
    return model.eval(), timm.data.create_transform(**saved["transform"], is_training=False)


def one_by_one(given: argparse.Namespace, files: list[Path]) -> None:
    import torch
    from PIL import Image

    model, transform = timm_model(given)

    def run(files: list[Path]) -> None:
        with torch.inference_mode():
            for file in files:
                model(transform(Image.open(file).convert("RGB"))[None])

    timed(files, run)


def data_loader(half: bool, given: argparse.Namespace, files: list[Path]) -> None:
    import torch
    from PIL import Image

    model, transform = timm_model(given)

    class Files(torch.utils.data.Dataset):
        def __init__(self, files: list[Path]) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, n: int) -> torch.Tensor:
            return transform(Image.open(self.files[n]).convert("RGB"))

    def run(files: list[Path]) -> None:
        loader = torch.utils.data.DataLoader(Files(files), batch_size=32, num_workers=len(os.sched_getaffinity(0)))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            for batch in loader:
                model(batch)

    timed(files, run)


def img2vec(given: argparse.Namespace, files: list[Path]) -> None:
    from img2vec_pytorch import Img2Vec
    from PIL import Image

    if given.backbone not in ("resnet50", "efficientnet_b0"):
        sys.exit(f"img2vec-pytorch has no {given.backbone}")
    own = sys.modules[Img2Vec.__module__]
    make = getattr(own, given.backbone)
    setattr(own, given.backbone, lambda **_: make(weights=None))  # it would fetch weights; they do not matter for speed
    model = Img2Vec(model=given.backbone)

    def run(files: list[Path]) -> None:
        for start in range(0, len(files), 32):
            model.get_vec([Image.open(f).convert("RGB") for f in files[start : start + 32]])

    timed(files, run)


def transformers(given: argparse.Namespace, files: list[Path]) -> None:
    if given.backbone != "vit_b_16":
        sys.exit(f"the pipeline is run for vit_b_16 only, not for {given.backbone}")
    from PIL import Image
    from transformers import ViTConfig, ViTImageProcessor, ViTModel, pipeline

    run_pipeline = pipeline(
        "image-feature-extraction", model=ViTModel(ViTConfig()), image_processor=ViTImageProcessor()
    )

    def run(files: list[Path]) -> None:
        for start in range(0, len(files), 32):
            run_pipeline([Image.open(f).convert("RGB") for f in files[start : start + 32]], batch_size=32)

    timed(files, run)


CONTENDERS: dict[str, Callable[[argparse.Namespace, list[Path]], None]] = {
    "ours, torch": partial(ours, "bundle"),
    ONNX: partial(ours, "onnx"),
    **{f"ours, openvino {p}": partial(ours, p) for p in PRECISIONS},
    **{f"ours, openvino {p}, written": partial(written, p) for p in PRECISIONS},
    **{f"ours, openvino {p}, model only": partial(model_only, p) for p in PRECISIONS},
    DECODING: decoding_only,
    "Pillow + torch, one by one": one_by_one,
    "timm + DataLoader": partial(data_loader, False),
    "timm + DataLoader, bfloat16": partial(data_loader, True),
    "img2vec-pytorch": img2vec,
    "transformers": transformers,
}

if __name__ == "__main__":
    main()
