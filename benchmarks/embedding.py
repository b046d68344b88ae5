r"""From a folder of JPEGs to embeddings: Lookalike on each runtime and the usual alternatives.

    python benchmarks/embedding.py --backbone efficientnet_lite0 --rounds 5
    python benchmarks/embedding.py --backbone resnet50 --weights resnet50_imagenet.safetensors

All contenders embed the same images, by default the gallery of `clothing` in $LOOKALIKE_SHARED/data, each in a process
of its own, all in turn in each round. The time is from opening the first file to the last embedding, after a warm-up
with 48 images; loading the model is not included. In float32 and bfloat16 the graph of
Lookalike ends with the backbone's features, and NumPy applies the head; only int8 is an exported bundle, whose graph
includes the head. It is calibrated on the training images before the rounds. `model only` gets decoded images,
`decoding only` has no model, and `lookalike embed` lists a folder and writes embeddings and model to another one.
Ratios are to timm's model with a DataLoader in float32 (`timm + DataLoader`). The machine's matrix products are
measured before and after the rounds (`benchmarks/limits.py`); the larger rate is the limit.
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
from typing import TYPE_CHECKING

import numpy as np

from contest import FIT_IMAGES, answer, contest, make_parser, save_fitted_bundle, save_result, shared_folder

if TYPE_CHECKING:
    from lookalike.models.encoder import Encoder

PRECISIONS = ("float32", "bfloat16", "int8")
DECODING = "ours, decoding only"
OURS = (
    "ours, torch",
    "ours, onnxruntime float32",
    *(f"ours, openvino {p}{kind}" for kind in ("", ", lookalike embed", ", model only") for p in PRECISIONS),
    DECODING,
)
BASELINE = "timm + DataLoader"
OTHERS = (
    "Pillow + torch, one by one",
    BASELINE,
    "timm + DataLoader, bfloat16",
    "img2vec-pytorch",
    "transformers",
)
WARM_UP = 48  # images; more than are computed one batch at a time


def main() -> None:
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--images", type=int, default=0, help="number of images at most; 0 for the whole gallery")
    parser.add_argument("--only", action="append", choices=(*OTHERS, *OURS), help="a contender; may be repeated")
    args = parser.parse_args()
    files = gallery(args.data, args.images)
    if args.contender:
        CONTENDERS[args.contender](args, files)
        return
    with tempfile.TemporaryDirectory() as work:
        os.environ["LOOKALIKE_CACHE"] = f"{work}/cache"
        contenders = args.only or [*OTHERS, *OURS]
        int8 = {name for name in contenders if "int8" in name}
        gflops, int8_refusal = prepare(args, Path(work), files, export_int8=bool(int8))
        arguments = ["--backbone", args.backbone, "--weights", args.weights, "--data", str(args.data)]
        arguments += ["--images", str(args.images), "--work", work]
        facts = {
            "backbone": args.backbone,
            "weights": Path(args.weights).stem,
            "images": len(files),
            "data": args.data.name,
            "gflops_per_image": gflops,
        }
        before = limits()
        result = contest(
            __file__,
            [name for name in contenders if not (int8_refusal and name in int8)],
            args.rounds,
            arguments=arguments,
            baseline=BASELINE,
            facts=facts,
            environment=lambda name: {"OMP_WAIT_POLICY": "PASSIVE"} if name in OURS else {},  # as the command sets it
        )
        result["skipped"] |= dict.fromkeys(int8, int8_refusal) if int8_refusal else {}
        result["limits"] = {"gflops": {name: max(rate, before[name]) for name, rate in limits().items()}}
    save_result(f"embedding-{args.backbone}", result, complete=not args.only, folder=args.out)


def gallery(data: Path, limit: int) -> list[Path]:
    from lookalike.data.layouts import load_dataset

    files = [item.path for item in load_dataset(data).gallery]
    return files[:limit] if limit else files


def limits() -> dict[str, float]:
    """Return this machine's matrix products, measured in a separate process: torch and OpenVINO keep threads."""
    code = "import json, limits; print(json.dumps(limits.products()))"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    rates: dict[str, float] = json.loads(process.stdout)
    print(", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()), flush=True)
    return rates


def prepare(args: argparse.Namespace, work: Path, files: list[Path], *, export_int8: bool) -> tuple[float, str]:
    """Save the bundle, what is exported from it, and the graphs of every runtime in the cache.

    Returns:
        The operations per image in units of 10^9 (a multiplication and an addition are two), and why int8 was refused,
        if it was.

    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lookalike.api.export import export
    from lookalike.data.dataset import sample_evenly
    from lookalike.data.layouts import load_dataset
    from lookalike.errors import LookalikeError, ModelError
    from lookalike.models.torch_backbone import TorchBackbone
    from lookalike.progress import SILENT

    data = load_dataset(args.data)
    save_fitted_bundle(args.backbone, args.weights, sample_evenly(data.training, FIT_IMAGES), work / "bundle")
    backbone = load_encoder(work, "torch", "float32").prepare((), 1, SILENT).backbone
    assert isinstance(backbone, TorchBackbone)
    p = backbone.info.preprocessing
    transform = {"input_size": (3, p.height, p.width), "interpolation": p.interpolation, "crop_pct": p.crop_pct}
    transform |= {"mean": p.mean, "std": p.std}
    torch.save(
        {"name": backbone.info.timm_name, "state": backbone.module.state_dict(), "transform": transform},
        work / "timm.pt",
    )
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.module(torch.zeros(1, 3, p.height, p.width))
    gflops = counter.get_total_flops() / 1e9
    for runtime, precision in (("onnxruntime", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")):
        with contextlib.suppress(LookalikeError):  # the contender is skipped then
            load_encoder(work, runtime, precision).embed(files[:WARM_UP], progress=SILENT)
    if export_int8:
        try:
            export(work / "bundle", out=work / "int8", precision="int8", data=data, progress=SILENT)
        except ModelError as error:
            return gflops, str(error)
    return gflops, ""


def load_encoder(work: Path, runtime: str, precision: str) -> Encoder:
    """Load the bundle on a runtime; in int8 the exported one."""
    import lookalike as la

    if precision == "int8":
        return la.load_encoder(work / "int8")
    return la.load_encoder(work / "bundle", runtime=runtime, precision=precision)


def time_run(files: list[Path], run: Callable[[list[Path]], object]) -> None:
    run(files[:WARM_UP])
    clock = time.perf_counter()
    run(files)
    seconds = time.perf_counter() - clock
    answer(per_second=len(files) / seconds, seconds=seconds)


def embed_files(runtime: str, precision: str, args: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.progress import SILENT

    encoder = load_encoder(args.work, runtime, precision)
    time_run(files, lambda paths: encoder.embed(paths, progress=SILENT))


def embed_folder(precision: str, args: argparse.Namespace, files: list[Path]) -> None:
    import lookalike as la
    from lookalike.progress import SILENT

    options = {} if precision == "int8" else {"runtime": "openvino", "precision": precision}
    bundle = args.work / ("int8" if precision == "int8" else "bundle")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, paths in (("few", files[:WARM_UP]), ("all", files)):
            link_files(paths, work / name)
        la.embed(work / "few", bundle, out=work / "few.emb", **options, progress=SILENT)
        clock = time.perf_counter()
        la.embed(work / "all", bundle, out=work / "all.emb", **options, progress=SILENT)
        seconds = time.perf_counter() - clock
    answer(per_second=len(files) / seconds, seconds=seconds)


def link_files(paths: list[Path], folder: Path) -> None:
    folder.mkdir()
    for number, path in enumerate(paths):
        (folder / f"image {number:06}{path.suffix}").symlink_to(path.resolve())


def model_only(precision: str, args: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.data.images import read_pixels
    from lookalike.models.pipeline import as_sources
    from lookalike.progress import SILENT
    from lookalike.runtimes.select import measure_rate

    sources = as_sources(files[:64])
    encoder = load_encoder(args.work, "openvino", precision).prepare(sources, len(files), SILENT)
    p = encoder.preprocessing
    pixels = np.stack([p.pixels(read_pixels(source.path, p.min_side)) for source in sources])
    answer(per_second=measure_rate(encoder.backbone, pixels, seconds=10.0))


def decoding_only(args: argparse.Namespace, files: list[Path]) -> None:
    from lookalike.models.bundle import read_bundle_info
    from lookalike.models.pipeline import as_sources, decode_batches

    preprocessings = [member.backbone.preprocessing for member in read_bundle_info(args.work / "bundle").members]
    time_run(files, lambda paths: sum(len(b.ids) for b in decode_batches([as_sources(paths)], preprocessings)))


def timm_model(args: argparse.Namespace):
    """Return the same network with the same weights as timm builds it, and its transform, without our package."""
    import timm
    import torch

    saved = torch.load(args.work / "timm.pt")
    model = timm.create_model(saved["name"], num_classes=0)
    model.load_state_dict(saved["state"])
    return model.eval(), timm.data.create_transform(**saved["transform"], is_training=False)


def one_by_one(args: argparse.Namespace, files: list[Path]) -> None:
    import torch
    from PIL import Image

    model, transform = timm_model(args)

    def run(files: list[Path]) -> None:
        with torch.inference_mode():
            for file in files:
                model(transform(Image.open(file).convert("RGB"))[None])

    time_run(files, run)


def data_loader(bfloat16: bool, args: argparse.Namespace, files: list[Path]) -> None:
    import torch
    from PIL import Image

    model, transform = timm_model(args)

    class Files(torch.utils.data.Dataset):
        def __init__(self, files: list[Path]) -> None:
            self.files = files

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, n: int) -> torch.Tensor:
            return transform(Image.open(self.files[n]).convert("RGB"))

    def run(files: list[Path]) -> None:
        loader = torch.utils.data.DataLoader(Files(files), batch_size=32, num_workers=len(os.sched_getaffinity(0)))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            for batch in loader:
                model(batch)

    time_run(files, run)


def img2vec(args: argparse.Namespace, files: list[Path]) -> None:
    if args.backbone not in ("resnet50", "efficientnet_b0"):
        sys.exit(f"img2vec-pytorch has no {args.backbone}")
    from img2vec_pytorch import Img2Vec
    from PIL import Image

    module = sys.modules[Img2Vec.__module__]
    build = getattr(module, args.backbone)
    setattr(module, args.backbone, lambda **_: build(weights=None))  # it would download weights; any are as fast
    model = Img2Vec(model=args.backbone)

    def run(files: list[Path]) -> None:
        for start in range(0, len(files), 32):
            model.get_vec([Image.open(f).convert("RGB") for f in files[start : start + 32]])

    time_run(files, run)


def transformers(args: argparse.Namespace, files: list[Path]) -> None:
    if args.backbone != "vit_b_16":
        sys.exit(f"the pipeline runs for vit_b_16 only, not for {args.backbone}")
    from PIL import Image
    from transformers import ViTConfig, ViTImageProcessor, ViTModel, pipeline

    run_pipeline = pipeline(
        "image-feature-extraction", model=ViTModel(ViTConfig()), image_processor=ViTImageProcessor()
    )

    def run(files: list[Path]) -> None:
        for start in range(0, len(files), 32):
            run_pipeline([Image.open(f).convert("RGB") for f in files[start : start + 32]], batch_size=32)

    time_run(files, run)


CONTENDERS: dict[str, Callable[[argparse.Namespace, list[Path]], None]] = {
    "ours, torch": partial(embed_files, "torch", "float32"),
    "ours, onnxruntime float32": partial(embed_files, "onnxruntime", "float32"),
    **{f"ours, openvino {p}": partial(embed_files, "openvino", p) for p in PRECISIONS},
    **{f"ours, openvino {p}, lookalike embed": partial(embed_folder, p) for p in PRECISIONS},
    **{f"ours, openvino {p}, model only": partial(model_only, p) for p in PRECISIONS},
    DECODING: decoding_only,
    "Pillow + torch, one by one": one_by_one,
    BASELINE: partial(data_loader, False),
    "timm + DataLoader, bfloat16": partial(data_loader, True),
    "img2vec-pytorch": img2vec,
    "transformers": transformers,
}

if __name__ == "__main__":
    main()
