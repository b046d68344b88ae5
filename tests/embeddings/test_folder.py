"""Folders of embeddings: what is damaged is reported."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from lookalike import _strings
from lookalike._files import FileRecord, with_digest
from lookalike.embeddings.embed_folder import embed_folder
from lookalike.embeddings.folder import (
    EMBEDDINGS_FORMAT,
    EmbeddingsInfo,
    is_embeddings,
    is_unfinished,
    load_embeddings,
    read_embeddings_info,
    read_run,
    write_embeddings_info,
)
from lookalike.errors import StorageError
from lookalike.progress import SILENT


@pytest.fixture
def out(encoder, sources, tmp_path):
    embed_folder(sources, encoder, tmp_path / "emb", shard_size=4, progress=SILENT)
    return tmp_path / "emb"


def record_changes(out):
    """Write the record of the files as they are now: what is wrong with them must be noticed by itself."""
    info = read_embeddings_info(out)
    files = {name: FileRecord.of(out / name) for name in info.files}
    write_embeddings_info(out, replace(info, files=files))


def refusal(path, **options) -> str:
    with pytest.raises(StorageError) as caught:
        load_embeddings(path, **options)
    assert caught.value.argument == "path"
    return str(caught.value)


def test_vectors_are_mapped_or_loaded(out):
    mapped, loaded = load_embeddings(out), load_embeddings(out, mmap=False)
    np.testing.assert_array_equal(mapped.vectors, loaded.vectors)
    assert isinstance(mapped.vectors.base, np.memmap)
    assert not isinstance(loaded.vectors.base, np.memmap)
    assert not mapped.vectors.flags.writeable


def test_embeddings_know_their_model_and_precision(out, encoder):
    embeddings = load_embeddings(out)
    assert (embeddings.fingerprint, embeddings.precision) == (encoder.fingerprint, "float32")


@pytest.mark.parametrize("name", ["missing", "images"])
def test_not_a_folder_of_embeddings(tmp_path, folder, name):
    assert not is_embeddings(tmp_path / name)
    assert not is_unfinished(tmp_path / name)
    assert read_run(tmp_path / name) is None
    assert "has no embeddings.json" in refusal(tmp_path / name)


def test_another_format(out):
    record = json.loads((out / "embeddings.json").read_text())
    (out / "embeddings.json").write_text(json.dumps({**record, "format": EMBEDDINGS_FORMAT + 1}))
    assert f"format {EMBEDDINGS_FORMAT + 1}, this version reads {EMBEDDINGS_FORMAT}" in refusal(out)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("[]", "format None"),
        ("7", "format None"),
        (json.dumps({"format": EMBEDDINGS_FORMAT}), "damaged"),
        (json.dumps({"format": EMBEDDINGS_FORMAT, "run": {}, "failed": 3}), "damaged"),
        ('{"format": 1,', "cannot be read"),
    ],
)
def test_a_damaged_record(out, text, cause):
    (out / "embeddings.json").write_text(text)
    assert cause in refusal(out)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "many", None, []])
@pytest.mark.parametrize("field", ["dim", "count"])
def test_a_record_with_what_is_not_a_number(out, field, value):
    record = {**json.loads((out / "embeddings.json").read_text()), field: value}
    record.pop("digest")
    (out / "embeddings.json").write_text(json.dumps(with_digest(record)))
    assert "damaged" in refusal(out)


@pytest.mark.parametrize("size", [0, 60, 10_000])
@pytest.mark.parametrize("mmap", [True, False])
def test_truncated_vectors(out, size, mmap):
    content = (out / "vectors.npy").read_bytes()
    (out / "vectors.npy").write_bytes(content[:size])
    message = refusal(out, mmap=mmap)
    assert "damaged (vectors.npy" in message and "embed again" in message


@pytest.mark.parametrize(
    ("array", "cause"),
    [
        (np.zeros((10, 512), np.float64), "not a float32 array"),
        (np.zeros((9, 512), np.float32), "shape (9, 512), expected (10, 512)"),
        (np.zeros((10, 512), np.float32), "unit length"),
    ],
)
def test_vectors_of_another_kind(out, array, cause):
    np.save(out / "vectors.npy", array)
    record_changes(out)
    message = refusal(out)
    assert "damaged" in message and cause in message


def test_pickled_vectors_are_not_executed(out):
    (out / "vectors.npy").write_bytes(pickle.dumps([1]))
    record_changes(out)
    assert "damaged" in refusal(out, mmap=False)


@pytest.mark.parametrize(
    ("ids", "cause"),
    [(["a"], "1 ids for 10 vectors"), ({"a": 1}, "ids.json"), (["a"] * 10, "duplicate id 'a'")],
)
def test_ids_that_do_not_match(out, ids, cause):
    (out / "ids.json").write_text(json.dumps(ids))
    record_changes(out)
    assert cause in refusal(out)


@pytest.mark.parametrize("chunk", [1, 3, 4096])
@pytest.mark.parametrize("indent", [None, 0, 2])
def test_ids_on_one_line_or_many(out, indent, chunk, monkeypatch):
    monkeypatch.setattr(_strings, "_CHUNK", chunk)
    ids = ["]", "[", '"a", ', "line\nbreak", "\udcff.jpg", "z.jpg", ",", "ö", "\\", "x" * 3]
    (out / "ids.json").write_text(json.dumps(ids, indent=indent).replace("\\u00f6", "ö"), encoding="utf-8")
    record_changes(out)
    assert list(load_embeddings(out).ids) == ids


def test_ids_that_are_not_json(out):
    (out / "ids.json").write_text("x\n")
    record_changes(out)
    assert "damaged (ids.json" in refusal(out)


def test_ids_are_written_one_per_line(out):
    lines = (out / "ids.json").read_text().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (12, "[", "]")


@pytest.mark.parametrize("name", ["ids.json", "vectors.npy"])
def test_a_missing_file(out, name):
    (out / name).unlink()
    assert name in refusal(out)


def test_the_record_is_read_as_it_was_written(out):
    info = read_embeddings_info(out)
    assert EmbeddingsInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert read_run(out) == info.run


def test_the_record_of_an_unfinished_run(encoder, sources, tmp_path, recording_progress):
    out = tmp_path / "unfinished"
    with pytest.raises(KeyboardInterrupt):
        embed_folder(sources, encoder, out, progress=recording_progress(stop_at=1))
    assert is_unfinished(out)
    run = read_run(out)
    assert (run.model, run.fingerprint) == ("test_efficientnet", encoder.fingerprint)
    (out / "shards" / "run.json").write_text("{}")
    with pytest.raises(StorageError, match="damaged"):
        read_run(out)


def test_damaged_keys_are_reported_before_the_work(out, encoder, sources):
    for keys in (np.zeros(9, np.uint64), np.zeros(10, np.int64), None):
        if keys is None:
            (out / "keys.npy").unlink()
        else:
            np.save(out / "keys.npy", keys)
            record_changes(out)
        with pytest.raises(StorageError, match=r"keys\.npy"):
            embed_folder(sources, encoder, out, progress=SILENT)


@pytest.mark.parametrize("name", ["vectors.npy", "ids.json", "keys.npy", "embeddings.json"])
def test_a_changed_byte_is_noticed(out, encoder, sources, name):
    content = bytearray((out / name).read_bytes())
    for position in range(0, len(content), len(content) // 20):
        (out / name).write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(StorageError):
            load_embeddings(out)
        with pytest.raises(StorageError):
            embed_folder(sources, encoder, out, progress=SILENT)


@pytest.mark.parametrize("verify", [True, False])
def test_many_vectors_are_hashed_on_request(out, monkeypatch, verify):
    monkeypatch.setattr("lookalike._files.HASHED_BYTES", 100)
    content = bytearray((out / "vectors.npy").read_bytes())
    content[-1] ^= 128  # the sign of the last value
    (out / "vectors.npy").write_bytes(content)
    if verify:
        with pytest.raises(StorageError, match=r"vectors\.npy: it was changed"):
            load_embeddings(out, verify=True)
    else:
        load_embeddings(out)


@pytest.mark.parametrize("name", ["vectors.npy", "ids.json", "keys.npy", "embeddings.json"])
def test_files_that_never_end_are_refused(out, name):
    (out / name).unlink()
    (out / name).symlink_to("/dev/zero")
    with pytest.raises(StorageError):
        load_embeddings(out)
