"""What the machine remembers: timings, graphs, compiled graphs and pretrained weights; damage is noticed."""

import os

import numpy as np
import pytest

from lookalike.errors import StorageError
from lookalike.models.bundle import write_tensors
from lookalike.runtimes import cache
from lookalike.runtimes.cache import GraphCache, PretrainedCache, RuntimeTiming, load_timings, save_timings

TIMINGS = (RuntimeTiming("torch", "float32", 10.5), RuntimeTiming("openvino", "bfloat16", 30.0))


@pytest.fixture
def info(encoder):
    return encoder.info.backbone


def write_files(*names):
    def write(folder):
        for name in names:
            (folder / name).write_bytes(name.encode())

    return write


# ---------------------------------------------------------------- timings


def test_timings_are_remembered(info):
    assert load_timings(info) == ()
    save_timings(info, TIMINGS)
    assert load_timings(info) == TIMINGS
    assert str(TIMINGS[1]) == "openvino bfloat16 30 images/s"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"timings": 3}', '{"timings": [{"runtime": "torch"}]}'])
def test_damaged_timings_are_ignored(info, own_cache, text):
    save_timings(info, TIMINGS)
    (file,) = (own_cache / "timings").iterdir()
    file.write_text(text)
    assert load_timings(info) == ()


@pytest.mark.parametrize("change", ["cpu_name", "cpu_flags", "cpu_count", "installed_versions"])
def test_timings_of_another_machine_are_not_used(info, monkeypatch, change):
    save_timings(info, TIMINGS)
    monkeypatch.setattr(cache, change, lambda *_: ["other"])
    assert load_timings(info) == ()


def test_timings_of_another_accelerator_are_not_used(info, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    save_timings(info, TIMINGS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert load_timings(info) == ()


def test_a_cache_that_cannot_be_written_is_not_an_error(info, own_cache, monkeypatch):
    (own_cache / "file").write_text("")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(own_cache / "file" / "cache"))
    save_timings(info, TIMINGS)
    assert load_timings(info) == ()
    graphs = GraphCache("abc")
    graphs.write_blob("float32", b"compiled")
    assert graphs.read_blob("float32") is None
    with pytest.raises(StorageError):
        graphs.add(["a.xml"], write_files("a.xml"))


# ---------------------------------------------------------------- graphs


def test_complete_graphs_are_remembered_with_their_cosines():
    graphs = GraphCache("abc")
    assert not graphs.has("a.xml")
    graphs.add(["a.xml", "a.bin"], write_files("a.xml", "a.bin", "temporary"))
    graphs.save_cosine("openvino", "float32", 0.9999)
    opened = GraphCache("abc")
    assert opened.has("a.xml", "a.bin")
    assert opened.cosine("openvino", "float32") == 0.9999
    assert opened.cosine("openvino", "bfloat16") is None
    assert sorted(path.name for path in opened.folder.iterdir()) == ["a.bin", "a.xml", "graphs.json"]
    assert not GraphCache("other").has("a.xml")


@pytest.mark.parametrize("damage", ["missing", "changed", "record"])
def test_a_damaged_graph_is_noticed(damage):
    graphs = GraphCache("abc")
    graphs.add(["a.xml", "a.bin"], write_files("a.xml", "a.bin"))
    if damage == "missing":
        (graphs.folder / "a.bin").unlink()
    elif damage == "changed":
        (graphs.folder / "a.bin").write_bytes(b"a.bix")
    else:
        (graphs.folder / "graphs.json").write_text('{"digests": []}')
    assert not GraphCache("abc").has("a.xml", "a.bin")


def test_an_interrupted_conversion_leaves_nothing():
    def interrupt(folder):
        (folder / "a.xml").write_text("half")
        raise KeyboardInterrupt

    graphs = GraphCache("abc")
    with pytest.raises(KeyboardInterrupt):
        graphs.add(["a.xml"], interrupt)
    assert list(graphs.folder.parent.iterdir()) == []


def test_a_compiled_graph_is_remembered_for_this_machine(monkeypatch):
    graphs = GraphCache("abc")
    graphs.write_blob("float32-latency", b"compiled")
    assert graphs.read_blob("float32-latency") == b"compiled"
    assert graphs.read_blob("bfloat16-latency") is None
    monkeypatch.setattr(cache, "cpu_flags", lambda: frozenset({"other"}))
    assert graphs.read_blob("float32-latency") is None


def test_a_pipe_in_place_of_a_compiled_graph_is_not_read():
    graphs = GraphCache("abc")
    graphs.write_blob("float32", b"compiled")
    (file,) = graphs.folder.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert graphs.read_blob("float32") is None


def test_a_damaged_compiled_graph_is_noticed():
    graphs = GraphCache("abc")
    graphs.write_blob("float32", b"compiled")
    (file,) = graphs.folder.iterdir()
    content = file.read_bytes()
    for damaged in (content[:-1], b"", content[:-1] + b"x", b"x" + content[1:]):
        file.write_bytes(damaged)
        assert graphs.read_blob("float32") is None


def test_the_least_recently_used_graphs_are_removed(monkeypatch):
    monkeypatch.setattr(cache, "_MAX_BYTES", 300)
    graphs = GraphCache("abc")
    for age, name in enumerate(("new", "old", "oldest")):
        graphs.write_blob(name, bytes(60))
        os.utime(graphs._blob_file(name), (1_000_000 - age, 1_000_000 - age))
    assert graphs.read_blob("oldest") is not None  # is now the one that was used last
    graphs.write_blob("further", bytes(60))
    present = {name for name in ("new", "old", "oldest", "further") if graphs._blob_file(name).is_file()}
    assert present == {"new", "oldest", "further"}


def test_graphs_without_compiled_ones_are_removed_too(monkeypatch):
    monkeypatch.setattr(cache, "_MAX_BYTES", 500)
    for age, name in enumerate(("old", "oldest")):
        graphs = GraphCache(name)
        graphs.add(["a.onnx"], lambda folder: (folder / "a.onnx").write_bytes(bytes(100)))
        for file in graphs.folder.iterdir():
            os.utime(file, (1_000_000 - age, 1_000_000 - age))
    GraphCache("new").add(["a.onnx"], lambda folder: (folder / "a.onnx").write_bytes(bytes(200)))
    assert [GraphCache(name).has("a.onnx") for name in ("new", "old", "oldest")] == [True, True, False]


# ---------------------------------------------------------------- pretrained backbones


def test_a_pretrained_backbone_is_remembered(encoder, info):
    entry = PretrainedCache("test_efficientnet", "none", 0)
    assert entry.load() is None
    entry.save(info, "untrained", lambda path: write_tensors(path, encoder.backbone.weights()))
    cached, state, file = entry.load()
    assert (cached, state) == (info, "untrained")
    assert cached.fingerprint == info.fingerprint
    assert file.is_file()


def test_the_entry_depends_on_name_weights_and_seed(tmp_path):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"one")
    keys = [
        PretrainedCache(name, weights, seed).file
        for name, weights, seed in (("a", "none", 0), ("b", "none", 0), ("a", "pretrained", 0), ("a", "none", 1))
    ]
    keys.append(PretrainedCache("a", str(file), 0).file)
    file.write_bytes(b"two")
    keys.append(PretrainedCache("a", str(file), 0).file)
    assert len(set(keys)) == len(keys)
    assert PretrainedCache("a", "none", 0).file == keys[0]


@pytest.mark.parametrize("damage", ["weights", "record", "state"])
def test_a_damaged_entry_is_ignored(encoder, info, own_cache, damage):
    entry = PretrainedCache("test_efficientnet", "none", 0)
    entry.save(info, "untrained", lambda path: write_tensors(path, {"a": np.zeros(1, np.float32)}))
    folder = own_cache / "pretrained"
    (record,), (weights,) = folder.glob("*.json"), folder.glob("*.safetensors")
    if damage == "weights":
        weights.unlink()
    else:
        record.write_text("{" if damage == "record" else record.read_text().replace("untrained", "unknown"))
    assert entry.load() is None


def test_without_a_home_folder_graphs_are_refused_and_the_rest_is_not_kept(info, monkeypatch):
    monkeypatch.setattr(cache, "cache_folder", lambda: cache.NO_CACHE)
    graphs = GraphCache("fingerprint")
    with pytest.raises(StorageError, match="no home folder"):
        graphs.add(["graph.xml"], write_files("graph.xml"))
    graphs.write_blob("latency", b"blob")
    assert graphs.read_blob("latency") is None
    save_timings(info, TIMINGS)
    assert load_timings(info) == ()
