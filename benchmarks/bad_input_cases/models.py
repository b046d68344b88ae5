"""Weights, ONNX files and model folders of others, objects of Python, and the network."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_cases.case import Kind, base, cut, edit, image, manifest, sparse, write

KIND = Kind("Weights and models of others")
NETWORK = Kind("The network")
PYTHON = Kind("Objects of Python")
case, add = KIND.case, KIND.add

BACKBONE = "test_efficientnet"  # 0.1 million parameters
EMBED = f"lookalike embed photos --model {BACKBONE} --out x.emb --weights "
SAFE, TORCH = EMBED + "w.safetensors", EMBED + "w.pth"
EMBEDDED = {"exit": 0, "says": ["8 images embedded"]}


def small_weights() -> dict[str, Any]:
    """Return the weights of the small backbone, as arrays by name."""
    from safetensors.numpy import load_file

    return dict(load_file(base() / "small.safetensors"))


def save(tensors: dict[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, "w.safetensors")


def torch_save(wrap: Callable[[dict[str, Any]], Any]) -> None:
    """Save the small weights as a torch file, in a wrapper."""
    import torch

    torch.save(wrap({name: torch.from_numpy(array.copy()) for name, array in small_weights().items()}), "w.pth")


@case(SAFE, uses=["photos"], says=["not finite|nan", r"w\.safetensors"])
def weights_with_nan() -> None:
    """Weights of a training that diverged: one tensor holds NaN."""
    tensors = small_weights()
    name = max(tensors, key=lambda key: tensors[key].size)
    tensors[name] = tensors[name] * float("nan")
    save(tensors)


@case(SAFE, uses=["photos"], says=["not finite|inf", r"w\.safetensors"])
def weights_with_infinity() -> None:
    """Weights of which one value is infinite."""
    tensors = small_weights()
    name = max(tensors, key=lambda key: tensors[key].size)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[0] = float("inf")
    save(tensors)


@case(SAFE, uses=["photos"], **EMBEDDED)
def no_batch_counters() -> None:
    """A checkpoint without `num_batches_tracked`."""
    save({name: array for name, array in small_weights().items() if not name.endswith("num_batches_tracked")})


for prefix in ("module.", "model.", "_orig_mod."):

    def prefixed(prefix: str = prefix) -> None:
        save({prefix + name: array for name, array in small_weights().items()})

    prefixed.__name__, prefixed.__doc__ = f"prefix_{prefix.strip('._')}", f"Weights with the prefix `{prefix}`."
    case(SAFE, uses=["photos"], **EMBEDDED)(prefixed)

for wrapper in ("state_dict", "model", "model_state_dict", "model_ema"):

    def wrapped(wrapper: str = wrapper) -> None:
        torch_save(lambda state: {wrapper: state, "epoch": 7})

    wrapped.__name__, wrapped.__doc__ = f"wrapper_{wrapper}", f"A torch file with the weights under `{wrapper}`."
    case(TORCH, uses=["photos"], **EMBEDDED)(wrapped)


def torchvision_weights(name: str) -> None:
    import torch
    import torchvision

    torch.manual_seed(0)
    torch.save(getattr(torchvision.models, name)(weights=None).state_dict(), "w.pth")


for name, backbone in (("efficientnet_b0", "efficientnet_b0"), ("vit_b_16", "vit_b_16")):

    def of_torchvision(name: str = name) -> None:
        torchvision_weights(name)

    of_torchvision.__name__ = f"torchvision_{name}"
    of_torchvision.__doc__ = f"A file of torchvision's own `{name}`."
    line = f"lookalike embed photos --model {backbone} --weights w.pth --out x.emb"
    case(line, uses=["photos"], **EMBEDDED, max_mb=3_000)(of_torchvision)


@case(SAFE, uses=["photos"], says=[r"w\.safetensors", BACKBONE])
def weights_of_another_architecture() -> None:
    """Weights of another architecture."""
    save({f"layer{number}.weight": array for number, array in enumerate(small_weights().values())})


@case(SAFE, uses=["photos"], says=[r"w\.safetensors", "shape|size"])
def weights_of_another_shape() -> None:
    """A tensor of another shape."""
    tensors = small_weights()
    name = max(tensors, key=lambda key: tensors[key].size)
    tensors[name] = tensors[name][:1]
    save(tensors)


class Trap:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


@case(TORCH, uses=["photos"], says=[r"w\.pth"], no_files=["ran"])
def a_pickle_with_code() -> None:
    """A pickle that runs code."""
    Path("w.pth").write_bytes(pickle.dumps(Trap()))


@case(TORCH, uses=["photos"], says=[r"w\.pth"], no_files=["ran"])
def a_torch_file_with_code() -> None:
    """A torch file with a pickle that runs code."""
    torch_save(lambda state: {"state_dict": state, "trap": Trap()})


@case(TORCH, uses=["photos"], says=["compressed|expand"], max_mb=1_500)
def a_compressed_torch_file() -> None:
    """A torch file that is compressed and expands to 2 GB."""
    torch_save(lambda state: {"state_dict": state})
    with zipfile.ZipFile("w.pth", "a", zipfile.ZIP_DEFLATED) as archive, archive.open("w/data/999", "w") as entry:
        for _ in range(2_000):
            entry.write(bytes(1_000_000))


@case(SAFE, uses=["photos"], says=[r"w\.safetensors"])
def half_of_the_weights() -> None:
    """Half of a safetensors file."""
    save(small_weights())
    cut("w.safetensors")


@case(SAFE, uses=["photos"], says=[r"w\.safetensors"])
def an_endless_header() -> None:
    """A safetensors file whose header claims 2^63 bytes."""
    write("w.safetensors", struct.pack("<Q", 2**63) + b"{}")


@case(SAFE, uses=["photos"], says=[r"w\.safetensors"])
def overlapping_tensors() -> None:
    """A safetensors file whose tensors overlap and end beyond the file."""
    header = json.dumps({n: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for n in ("a", "b")}).encode()
    write("w.safetensors", struct.pack("<Q", len(header)) + header + bytes(8))


for name, text, content in (
    ("a-web-page", "A web page as weights.", "<html>not found</html>"),
    ("empty-weights", "An empty file as weights.", ""),
):
    add(name, text, f"printf '{content}' > w.safetensors; {SAFE}", uses=["photos"], says=[r"w\.safetensors"])
add("a-folder-as-weights", "A folder as weights.", EMBED + "photos", uses=["photos"], says=["photos"])
add("missing-weights", "Weights that do not exist.", EMBED + "nowhere.pth", uses=["photos"], says=["nowhere.pth"])
add(
    "weights-for-a-bundle",
    "Weights for a bundle, which has its own.",
    "lookalike embed photos --model onnx --weights none --out x.emb",
    uses=["photos", "onnx"],
    says=["--weights"],
)


@case(SAFE, uses=["photos"], says=[r"w\.safetensors"], max_mb=1_500)
def weights_of_3_gb() -> None:
    """Weights of 3 GB of zeros."""
    sparse("w.safetensors")


def onnx_model(**changes: Any) -> Any:
    """Return a graph that computes the mean colour."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, changes.get("shape", ("n", 3, 8, 8)))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 3))]
    graph = helper.make_graph(changes.get("nodes") or nodes, "g", inputs, outputs, changes.get("constants"))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


ONNX = "lookalike embed photos --model onnx:w.onnx --out x.emb"


@case(ONNX, uses=["photos"], says=[r"w\.onnx"])
def a_text_as_onnx() -> None:
    """A text as ONNX file."""
    write("w.onnx", "text")


@case(ONNX, uses=["photos"], says=[r"w\.onnx"], silent=["Exception from", r"\.cpp"])
def onnx_with_an_unknown_operator() -> None:
    """An ONNX file with an operator that does not exist."""
    from onnx import helper, save_model

    save_model(onnx_model(nodes=[helper.make_node("Evil", ["x"], ["y"], domain="org.evil")]), "w.onnx")


@case(ONNX, uses=["photos"], says=[r"w\.onnx"])
def onnx_with_one_channel() -> None:
    """An ONNX file for grey images."""
    from onnx import save_model

    save_model(onnx_model(shape=("n", 1, 8, 8)), "w.onnx")


@case(ONNX, uses=["photos"], says=[r"w\.onnx"], silent=["root:"])
def onnx_with_a_file_elsewhere() -> None:
    """An ONNX file whose tensor is in `../../../etc/passwd`."""
    from onnx import TensorProto, helper, save_model

    tensor = TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Add", ["f", "c"], ["y"]),
    ]
    save_model(onnx_model(nodes=nodes, constants=[tensor]), "w.onnx")


add("onnx-that-is-missing", "An ONNX file that does not exist.", ONNX, uses=["photos"], says=[r"w\.onnx"])
HF = "lookalike embed photos --model hf:w --out x.emb"
add("hf-that-is-missing", "`hf:FOLDER` with a folder that does not exist.", HF, uses=["photos"], says=["w"])


@case(HF, uses=["photos"], says=["w"], no_files=["ran"])
def hf_with_code() -> None:
    """A folder of transformers whose `auto_map` names a Python file inside it."""
    config = {"model_type": "trap", "auto_map": {"AutoConfig": "trap.Config", "AutoModel": "trap.Model"}}
    write("w/config.json", json.dumps(config))
    write("w/trap.py", "open('ran', 'w')\n")


@case(
    "lookalike check photos; test $? -eq 1",
    "lookalike index photos --model onnx --out x.index",
    uses=["photos", "onnx"],
    exit=0,
    says=["null byte|NUL", "1 image"],
)
def a_null_byte_in_a_manifest() -> None:
    """A manifest with a NUL byte in one path, for `index`."""
    manifest("photos", [["cat/0.jpg", "cat", "gallery"], ["cat/\0.jpg", "cat", "gallery"]])


add(
    "an-unknown-backbone",
    "A misspelt backbone.",
    "lookalike embed photos --model efficientnet_lite00 --out x.emb",
    uses=["photos"],
    says=["efficientnet_lite0"],
)
add(
    "a-folder-as-model",
    "A folder of images as model.",
    "lookalike embed photos --model photos --out x.emb",
    uses=["photos"],
    says=["photos"],
)
add(
    "a-longer-submission-than-the-gallery",
    "`submit -k 50` with 8 gallery images.",
    "lookalike submit data --model onnx -k 50 --out s.json",
    uses=["data", "onnx"],
    says=["-k", "50", "8"],
    silent=["embedding:"],
)

KIND.skip("A checkpoint of TensorFlow, Keras or JAX", "refused like any other file; none is made here")

# ---------------------------------------------------------------- the network

HUB = {"connects": True, "says": ["--weights", "none", "efficientnet_lite0"]}
NETWORK.add(
    "weights-of-the-hub",
    "A backbone whose weights are on the hub, without a network.",
    "lookalike embed photos --model resnet50 --out x.emb",
    uses=["photos"],
    **HUB,
)
NETWORK.add(
    "weights-of-the-hub-for-benchmark",
    "The same as the second backbone of a benchmark: it is refused before the first one is measured.",
    "lookalike benchmark data --backbone efficientnet_lite0 --backbone resnet50 --out x",
    uses=["data"],
    silent=["embedding:"],
    connects=True,
    says=["resnet50=FILE"],
)
NETWORK.add(
    "hub-offline",
    "The same with `HF_HUB_OFFLINE=1`.",
    "HF_HUB_OFFLINE=1 lookalike embed photos --model resnet50 --out x.emb",
    uses=["photos"],
    says=["--weights"],
)
NETWORK.add(
    "a-repository-of-the-hub",
    "`hf-hub:org/name` without a network.",
    "lookalike embed photos --model hf-hub:org/name --out x.emb",
    uses=["photos"],
    connects=True,
    says=["org/name"],
)
NETWORK.add(
    "a-repository-spelled-otherwise",
    "`hf_hub:org/name` without a network.",
    "lookalike embed photos --model hf_hub:org/name --out x.emb",
    uses=["photos"],
    connects=True,
    says=["org/name"],
)
NETWORK.add(
    "a-repository-of-timm",
    "`timm/resnet18.a1_in1k` without a network.",
    "lookalike embed photos --model timm/resnet18.a1_in1k --out x.emb",
    uses=["photos"],
    connects=True,
    says=["resnet18"],
)
NETWORK.add(
    "embed-by-name",
    "`embed` with a backbone whose weights are in a package.",
    "lookalike embed photos --model efficientnet_lite0 --out x.emb",
    uses=["photos"],
    exit=0,
    says=["8 images embedded"],
)
NETWORK.add(
    "embed-on-onnx-runtime",
    "The same on ONNX Runtime, whose telemetry looks up a host.",
    "lookalike embed photos --model model --runtime onnxruntime --out x.emb",
    uses=["photos", "model"],
    exit=0,
    says=["8 images embedded"],
)
NETWORK.add(
    "export-to-onnx",
    "`export --format onnx`.",
    "lookalike export model --format onnx --out x",
    uses=["model"],
    exit=0,
    files=["x/bundle.json"],
)
NETWORK.add(
    "evaluate-offline",
    "`evaluate`.",
    "lookalike evaluate data --model onnx -k 1",
    uses=["data", "onnx"],
    exit=0,
    says=["precision@1"],
)
NETWORK.add("backbones-offline", "`backbones`.", "lookalike backbones", exit=0, says=["resnet50"])
NETWORK.add("recipes-offline", "`recipes`.", "lookalike recipes", exit=0, says=["cross-entropy"])
NETWORK.add(
    "train-offline",
    "`train --frozen`.",
    "lookalike train data --frozen --out x",
    uses=["data"],
    exit=0,
    files=["x/bundle.json"],
    max_mb=2_500,
)
SUBMIT = "lookalike submit data --model onnx -k 3 --out s.json"
NETWORK.add("submit-offline", "`submit` without `--post`.", SUBMIT, uses=["data", "onnx"], exit=0, files=["s.json"])
NETWORK.add(
    "a-dry-run",
    "`submit --post URL --dry-run`.",
    SUBMIT + " --post https://host.invalid/ --dry-run",
    uses=["data", "onnx"],
    exit=0,
    says=["host.invalid"],
)
NETWORK.add(
    "a-post-without-a-network",
    "`post` to a host that does not exist.",
    SUBMIT,
    "lookalike post s.json https://host.invalid/",
    uses=["data", "onnx"],
    connects=True,
    says=["host.invalid"],
)
NETWORK.add(
    "a-post-to-a-file",
    "`post` to `file:///etc/passwd`.",
    SUBMIT,
    "lookalike post s.json file:///etc/passwd",
    uses=["data", "onnx"],
    says=["http"],
)
NETWORK.add(
    "a-post-of-something-else",
    "`post` of a file that is not a submission.",
    "lookalike post data/labels.csv https://host.invalid/",
    uses=["data"],
    says=["labels.csv"],
)


def renamed(timm_name: str) -> Callable[[], None]:
    """Return a function that lets the record of a bundle name another architecture."""

    def change(record: dict[str, Any]) -> None:
        record["members"][0]["backbone"]["timm_name"] = timm_name

    def make() -> None:
        image("elsewhere/cat.jpg")
        write("elsewhere/config.json", json.dumps({"architecture": "resnet18", "num_classes": 3}))
        edit("model/bundle.json", change)

    return make


for name, timm_name in (
    ("hub", "hf-hub:org/name"),
    ("folder", "local-dir:elsewhere"),
    ("path", "../elsewhere"),
    ("address", "https://host.invalid/resnet18"),
    ("code", "__import__('os').system('touch ran')"),
):
    make = renamed(timm_name)
    make.__name__ = f"a_bundle_that_names_{name}"
    make.__doc__ = f"A bundle whose `timm_name` is `{timm_name}`."
    NETWORK.case(
        "lookalike embed photos --model model --runtime torch --out x.emb",
        uses=["photos", "model"],
        says=["timm_name"],
        no_files=["ran"],
    )(make)

NETWORK.skip("A server that answers slowly, wrongly or never", "covered by tests/api/test_post.py with a local server")

# ---------------------------------------------------------------- objects of Python


def script(name: str, text: str, code: str, **expected: Any) -> None:
    """Add a case that runs a script with an index and images; what it must print is `fine`."""

    def make() -> None:
        write("script.py", code)

    make.__name__, make.__doc__ = name.replace("-", "_"), text
    options = {"exit": 0, "says": ["fine"], "silent": ["TypeError", "AttributeError"], **expected}
    PYTHON.case("python script.py", uses=["photos", "data", "onnx", "photos.index", "photos.emb"], **options)(make)


LOAD = """
import lookalike as la

index = la.Index.load("photos.index")
emb = la.load_embeddings("photos.emb")


def attempt(function):
    try:
        print("returned", type(function()).__name__)
    except la.LookalikeError as error:
        print(type(error).__name__, error)


"""


def refused(name: str, text: str, *calls: str, says: str = "") -> None:
    """Add a case of calls that a `LookalikeError` must refuse."""
    lines = [f"attempt(lambda: {call})" for call in calls]
    facts = ["fine", *([says] if says else [])]
    script(name, text, "\n".join([LOAD, *lines, "print('fine')", ""]), says=facts, silent=["^returned"])


PICKLED = """
import pickle

copy = pickle.loads(pickle.dumps(index))
assert (copy.search(emb, 3).scores == index.search(emb, 3).scores).all()
print("fine")
"""
ITERATED = """
for query in la.search("photos.index", ["photos/cat/0.jpg"], top_k=2):
    for hit in query:
        print(hit.path.name, round(hit.score, 2))
print("fine")
"""
PRINTED = """
result = la.evaluate("data", "onnx", k=[1])
assert len(str(result).splitlines()) < 30 and len(repr(result)) < 1000
print("fine")
"""
NAN = """
vectors = emb.vectors.copy()
vectors[0, 0] = float("nan")
"""
script("an-index-that-is-pickled", "An `Index` through `pickle`.", LOAD + PICKLED)
script(
    "hits-that-are-iterated", "`for query in la.search(...): for hit in query: hit.path, hit.score`.", LOAD + ITERATED
)
script("a-printed-evaluation", "`print(evaluation)` and its `repr`.", LOAD + PRINTED)
script(
    "search-with-a-loaded-index",
    "`la.search(la.load_index(path), ...)`.",
    LOAD + "print('fine' if len(la.search(la.load_index('photos.index'), ['photos/cat/0.jpg'])) else '')\n",
)
script(
    "vectors-with-nan",
    "`Embeddings` with NaN.",
    LOAD + NAN + "attempt(lambda: la.Embeddings(emb.ids, vectors, emb.fingerprint))\nprint('fine')\n",
    silent=["^returned"],
)
refused("a-top-k-of-text", "`top_k='3'`.", "index.search(emb, top_k='3')", says="OptionError .*top_k")
refused(
    "a-top-k-of-zero",
    "`top_k` of 0, -1, 2.5 and 10^12.",
    *(f"index.search(emb, top_k={k})" for k in (0, -1, 2.5, 10**12)),
)
refused("raw-arrays-as-queries", "A raw array as queries.", "index.search(emb.vectors)", says="Embeddings")
refused(
    "ids-that-are-numbers",
    "`Embeddings` with integers as ids.",
    "la.Embeddings(range(8), emb.vectors, emb.fingerprint)",
)
refused(
    "embed-a-list", "`la.embed([path, ...])`, a list instead of a folder.", "la.embed(['a.jpg'], 'onnx', out='x.emb')"
)
refused("search-with-an-index-object", "`la.search(index_object, ...)`.", "la.search(index, ['photos/cat/0.jpg'])")
refused("index-search-with-a-path", "`index.search([path])`.", "index.search(['photos/cat/0.jpg'])")
refused(
    "other-types-as-arguments",
    "Numbers, None and lists as paths and names.",
    "la.load_dataset(3)",
    "la.load_dataset(None)",
    "la.index('photos', ['onnx'], out='x')",
    "la.embed('photos', 'onnx', out=None)",
    "la.load_encoder(b'onnx')",
    "la.load_index(['photos.index'])",
    "la.check(3.5)",
)
