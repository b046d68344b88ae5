"""Embedding into a folder: an interrupted run ends with the same bits as another, and nothing is computed twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest

from lookalike.data import images
from lookalike.embeddings import shards as shards_module
from lookalike.embeddings.embed_folder import embed_folder, root_of
from lookalike.embeddings.folder import is_embeddings, is_unfinished, load_embeddings, read_embeddings_info
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError
from lookalike.models.bundle import read_bundle_info
from lookalike.models.encoder import Ensemble
from lookalike.models.info import BundleInfo
from lookalike.models.pipeline import File, run_backbones
from lookalike.progress import SILENT
from lookalike.runtimes.fit import FittedEncoder
from lookalike.runtimes.load import load_encoder
from lookalike.types import Skipped


def embed(sources, encoder, out, **options):
    return embed_folder(sources, encoder, out, **{"progress": SILENT, **options})


def equal(left, right) -> bool:
    return left.ids == right.ids and left.vectors.tobytes() == right.vectors.tobytes()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def disk_full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_content_of_the_folder(encoder, sources, folder, tmp_path, recording_progress):
    out, progress = tmp_path / "emb", recording_progress()
    embeddings = embed(sources, encoder, out, shard_size=4, batch_size=4, progress=progress)
    expected = encoder.embed(sources, batch_size=4)
    assert embeddings.ids == expected.ids
    np.testing.assert_allclose(embeddings.vectors, expected.vectors, atol=1e-6)
    assert (embeddings.fingerprint, embeddings.precision) == (encoder.fingerprint, "float32")
    assert isinstance(np.load(out / "vectors.npy", mmap_mode="r"), np.memmap)
    assert names(out) == ["embeddings.json", "ids.json", "keys.npy", "model", "vectors.npy"]
    info = read_embeddings_info(out)
    assert (info.count, info.dim, info.root) == (10, 512, folder.resolve())
    assert (info.run.model, info.run.precision) == ("test_efficientnet", "float32")
    assert load_encoder(out).fingerprint == encoder.fingerprint
    assert progress.steps[-1] == (10, 10)
    assert progress.steps == sorted(progress.steps)


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_an_interrupted_run_loses_at_most_a_shard_and_ends_with_equal_vectors(
    encoder, sources, tmp_path, recording_progress, decoded, stop_at
):
    whole = embed(sources, encoder, tmp_path / "whole", shard_size=4, batch_size=2)
    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed(sources, encoder, out, shard_size=4, batch_size=2, progress=recording_progress(stop_at=stop_at))
    assert is_unfinished(out)
    assert not is_embeddings(out)
    with pytest.raises(StorageError, match="unfinished"):
        load_embeddings(out)
    decoded.clear()
    assert equal(embed(sources, encoder, out, shard_size=4, batch_size=2), whole)
    assert len(decoded) == 10 - stop_at // 4 * 4
    assert names(out) == names(tmp_path / "whole")


def test_a_run_that_is_interrupted_before_its_last_file_computes_nothing_again(
    encoder, sources, tmp_path, monkeypatch, decoded
):
    def interrupt(*_):
        raise KeyboardInterrupt

    out = tmp_path / "emb"
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "write_embeddings_info", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embed(sources, encoder, out, shard_size=4)
    assert is_unfinished(out)
    whole = embed(sources, encoder, tmp_path / "whole", shard_size=4)
    decoded.clear()
    assert equal(embed(sources, encoder, out), whole)
    assert decoded == []


def test_complete_embeddings_are_returned_unchanged(encoder, sources, tmp_path, decoded, recording_progress):
    out, progress = tmp_path / "emb", recording_progress()
    first = embed(sources, encoder, out, shard_size=4)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    decoded.clear()
    assert equal(embed(sources, encoder, out, progress=progress), first)
    assert decoded == []
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times
    assert progress.messages == [f"{out} is up to date: no image was added, removed or changed"]


def test_no_runtime_is_selected_when_there_is_nothing_to_compute(encoder, sources, tmp_path, monkeypatch):
    embed(sources, encoder, tmp_path / "emb")
    monkeypatch.setattr(type(encoder), "prepare", lambda *_: pytest.fail("a runtime was selected"))
    assert len(embed(sources, encoder, tmp_path / "emb")) == 10


def test_skipped_files_and_folders_are_stored_and_updated(encoder, sources, folder, tmp_path, decoded):
    (folder / "0.png").write_text("not an image")
    closed, other = (Skipped(Path(name), "the folder cannot be listed") for name in ("closed", "other"))
    out = tmp_path / "emb"
    broken, *folders = embed(sources, encoder, out, shard_size=4, skipped=[closed]).skipped
    assert (broken.path, folders) == (folder / "0.png", [closed])
    assert load_embeddings(out).skipped == (broken, closed)
    assert embed(sources, encoder, out, skipped=[other, closed]).skipped == (broken, other, closed)
    assert len(decoded) == 10
    (folder / "9.png").unlink()
    assert embed(sources[:9], encoder, out, skipped=[other]).skipped == (broken, other)
    assert len(decoded) == 10
    assert embed(sources[:9], encoder, out).skipped == (broken,)


def test_a_changed_file_costs_one_image(encoder, sources, folder, tmp_path, decoded):
    out = tmp_path / "emb"
    first = embed(sources, encoder, out, shard_size=4, batch_size=4)
    shutil.copy(folder / "0.png", folder / "5.png")
    decoded.clear()
    second = embed(sources, encoder, out, batch_size=4)
    assert decoded == ["5.png"]
    np.testing.assert_allclose(second.vectors, encoder.embed(sources).vectors, atol=1e-5)
    changed = [row for row in range(10) if not np.array_equal(second.vectors[row], first.vectors[row])]
    assert changed == [5]
    assert first.vectors[5] @ first.vectors[5] == pytest.approx(1, abs=1e-5)  # the older mapping is still valid


def test_a_replaced_image_of_the_same_size_is_noticed_by_its_time(encoder, sources, folder, tmp_path, decoded):
    out = tmp_path / "emb"
    embed(sources, encoder, out, shard_size=4)
    os.utime(folder / "9.png", ns=(1, 1))
    decoded.clear()
    embed(sources, encoder, out)
    assert decoded == ["9.png"]


@pytest.mark.parametrize("copy", [shutil.copy2, shutil.copyfile], ids=["unchanged", "changed"])
def test_a_damaged_folder_is_reported_before_anything_else(
    encoder, sources, folder, tmp_path, recording_progress, copy
):
    out, progress = tmp_path / "emb", recording_progress()
    embed(sources, encoder, out)
    (out / "ids.json").write_text("[]")
    shutil.copytree(folder, tmp_path / "others", copy_function=copy)
    with pytest.raises(StorageError, match="damaged"):
        embed([File(s.id, tmp_path / "others" / s.id) for s in sources], encoder, out, progress=progress)
    assert progress.messages == []


def test_added_and_removed_files(encoder, sources, tmp_path, decoded):
    out = tmp_path / "emb"
    embed(sources[:9], encoder, out, shard_size=4)
    decoded.clear()
    assert embed(sources, encoder, out).ids == tuple(s.id for s in sources)
    assert embed(sources[:6], encoder, out).ids == tuple(s.id for s in sources[:6])
    assert decoded == ["9.png"]


@pytest.mark.parametrize("position", [0, 1, 3, 4, 9])
def test_an_added_image_costs_one_image_wherever_it_sorts(encoder, sources, tmp_path, decoded, position):
    out = tmp_path / "emb"
    before = embed([s for n, s in enumerate(sources) if n != position], encoder, out, shard_size=4)
    vectors = before.vectors.copy()
    decoded.clear()
    embeddings = embed(sources, encoder, out, shard_size=4)
    assert decoded == [f"{position}.png"]
    assert embeddings.ids == tuple(s.id for s in sources)
    np.testing.assert_array_equal(np.delete(embeddings.vectors, position, axis=0), vectors)
    np.testing.assert_allclose(embeddings.vectors, encoder.embed(sources).vectors, atol=1e-5)


def test_images_added_and_removed_at_once(encoder, sources, tmp_path, decoded):
    out = tmp_path / "emb"
    embed([s for s in sources if s.id != "1.png"], encoder, out, shard_size=4)
    decoded.clear()
    embeddings = embed([s for s in sources if s.id != "5.png"], encoder, out)
    assert decoded == ["1.png"]
    assert embeddings.ids == tuple(s.id for s in sources if s.id != "5.png")


def test_an_image_added_after_an_interruption_costs_one_image(encoder, sources, tmp_path, recording_progress, decoded):
    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed(sources[1:], encoder, out, shard_size=4, batch_size=2, progress=recording_progress(stop_at=9))
    decoded.clear()
    embeddings = embed(sources, encoder, out, shard_size=4)
    assert sorted(decoded) == ["0.png", "9.png"]
    np.testing.assert_allclose(embeddings.vectors, encoder.embed(sources).vectors, atol=1e-5)


def test_an_interrupted_update_keeps_the_folder_and_computes_nothing_twice(
    encoder, sources, tmp_path, recording_progress, decoded
):
    out = tmp_path / "emb"
    before = embed(sources[4:], encoder, out, shard_size=2)
    with pytest.raises(KeyboardInterrupt):
        embed(sources, encoder, out, shard_size=2, batch_size=2, progress=recording_progress(stop_at=10))
    assert load_embeddings(out).ids == before.ids
    decoded.clear()
    assert embed(sources, encoder, out, shard_size=2).ids == tuple(s.id for s in sources)
    assert len(decoded) == 2


def test_a_run_that_is_killed_while_the_last_files_are_moved(encoder, sources, tmp_path, monkeypatch, decoded):
    out = tmp_path / "emb"
    embed(sources[:8], encoder, out, shard_size=4)
    move, moved = Path.replace, []

    def killed(self, target):
        if moved and Path(target).parent == out:
            raise KeyboardInterrupt
        moved.extend([target] if Path(target).parent == out else [])
        return move(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            embed(sources, encoder, out, shard_size=4)
    assert is_unfinished(out)
    decoded.clear()
    assert len(embed(sources, encoder, out)) == 10
    assert decoded == []


class TestRemovals:
    """Images that were embedded and are gone; `a/` holds 0 to 3, `b/` 4 to 7, the rest are in the root."""

    @pytest.fixture
    def sources(self, sources, folder):
        moved = [(n, "a" if n < 4 else "b") for n in range(8)]
        for name in ("a", "b"):
            (folder / name).mkdir()
        for n, name in moved:
            sources[n].path.rename(folder / name / f"{n}.png")
        return [File(f"{name}/{n}.png", folder / name / f"{n}.png") for n, name in moved] + sources[8:]

    def test_a_few_are_reported(self, encoder, sources, tmp_path, recording_progress):
        out, progress = tmp_path / "emb", recording_progress()
        embed(sources, encoder, out)
        left = sources[1:5] + sources[6:]
        assert embed(left, encoder, out, progress=progress).ids == tuple(s.id for s in left)
        (message,) = progress.messages
        assert message.startswith("2 embedded images") and "a/0.png" in message

    @pytest.mark.parametrize(
        ("left", "facts"),
        [
            (slice(4, 10), "4 of the 10 .* folder a"),
            (slice(0, 4), "6 of the 10 .* folder b"),
            (slice(4, 5), "9 of the 10 .* folder a"),
        ],
    )
    def test_a_folder_or_most_of_them_need_a_confirmation(self, encoder, sources, tmp_path, decoded, left, facts):
        out = tmp_path / "emb"
        before = embed(sources, encoder, out)
        with pytest.raises(DataError, match=facts) as caught:
            embed(sources[left], encoder, out)
        assert caught.value.argument == "allow_removals"
        assert equal(load_embeddings(out), before)
        assert names(out) == ["embeddings.json", "ids.json", "keys.npy", "model", "vectors.npy"]
        decoded.clear()
        removed = embed(sources[left], encoder, out, allow_removals=True)
        assert removed.ids == tuple(s.id for s in sources[left])
        assert decoded == []
        np.testing.assert_array_equal(removed.vectors, before.vectors[left])

    def test_changed_images_are_not_gone(self, encoder, sources, tmp_path, recording_progress):
        out, progress = tmp_path / "emb", recording_progress()
        embed(sources, encoder, out)
        for source in sources:
            os.utime(source.path, ns=(1, 1))
        assert len(embed(sources, encoder, out, progress=progress)) == 10
        assert progress.messages == []


def test_moved_images_are_not_embedded_again(encoder, sources, folder, tmp_path, decoded):
    out = tmp_path / "emb"
    embed(sources, encoder, out)
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    decoded.clear()
    embed([File(s.id, moved / s.id) for s in sources], encoder, out)
    assert decoded == []
    assert read_embeddings_info(out).root == moved.resolve()


def test_images_of_another_folder_are_reported(encoder, sources, folder, tmp_path, recording_progress):
    out, other = tmp_path / "emb", tmp_path / "other"
    shutil.copytree(folder, other)
    (other / sources[0].id).write_bytes((other / sources[1].id).read_bytes())
    embed(sources, encoder, out)
    first, second = recording_progress(), recording_progress()
    embed(sources[1:], encoder, out, progress=first)
    assert first.messages == [f"1 embedded image is gone and removed from {out} (first: 0.png)"]
    embed([File(s.id, other / s.id) for s in sources], encoder, out, progress=second)
    (message,) = second.messages
    assert str(folder.resolve()) in message and str(other.resolve()) in message


def test_unreadable_files_are_listed_and_embedded_once_they_are_repaired(encoder, sources, folder, tmp_path):
    (folder / "6.png").write_text("not an image")
    (folder / "7.png").write_bytes(b"")
    out = tmp_path / "emb"
    embeddings = embed(sources, encoder, out, shard_size=4)
    assert embeddings.ids == tuple(f"{n}.png" for n in (0, 1, 2, 3, 4, 5, 8, 9))
    assert [(s.path.name, s.cause) for s in embeddings.skipped][1] == ("7.png", "the file is empty")
    assert load_embeddings(out).skipped == embeddings.skipped
    shutil.copy(folder / "0.png", folder / "7.png")
    repaired = embed(sources, encoder, out)
    assert "7.png" in repaired.ids
    assert [s.path.name for s in repaired.skipped] == ["6.png"]


def test_a_shard_without_any_readable_image(encoder, sources, folder, tmp_path):
    for n in range(4, 8):
        (folder / f"{n}.png").write_text("not an image")
    embeddings = embed(sources, encoder, tmp_path / "emb", shard_size=4)
    assert embeddings.ids == tuple(f"{n}.png" for n in (0, 1, 2, 3, 8, 9))
    assert len(read_embeddings_info(tmp_path / "emb").failed) == 4


def test_no_readable_image(encoder, sources, tmp_path):
    for source in sources:
        source.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 10 images .*0\.png: the file is empty") as caught:
        embed(sources, encoder, tmp_path / "emb")
    assert caught.value.argument == "images"


def test_a_damaged_shard_is_computed_again(encoder, sources, tmp_path, recording_progress, decoded):
    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed(sources, encoder, out, shard_size=4, batch_size=2, progress=recording_progress(stop_at=10))
    shard = out / "shards" / "00000.npz"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255  # inside the vectors
    shard.write_bytes(content)
    (out / "shards" / "00001.npz").write_bytes(b"")
    whole = embed(sources, encoder, tmp_path / "whole", shard_size=4, batch_size=2)
    decoded.clear()
    assert equal(embed(sources, encoder, out, shard_size=4, batch_size=2), whole)
    assert len(decoded) == 10


@pytest.mark.parametrize("stop_at", [None, 5])
def test_embeddings_of_another_model_are_refused(
    encoder, other_encoder, sources, tmp_path, recording_progress, stop_at
):
    out = tmp_path / "emb"
    try:
        embed(sources, encoder, out, shard_size=4, batch_size=2, progress=recording_progress(stop_at=stop_at))
    except KeyboardInterrupt:
        assert stop_at
    before = sorted(out.rglob("*"))
    with pytest.raises(FingerprintMismatch) as caught:
        embed(sources, other_encoder, out)
    assert caught.value.argument == "out"
    assert encoder.fingerprint in str(caught.value) and other_encoder.fingerprint in str(caught.value)
    assert sorted(out.rglob("*")) == before


def test_other_files_and_folders_are_not_touched(encoder, sources, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for name in ("letters", "file"):
        with pytest.raises(StorageError, match="is not a folder of embeddings") as caught:
            embed(sources, encoder, tmp_path / name)
        assert caught.value.argument == "out"
    assert names(tmp_path / "letters") == ["dear.txt"]
    with pytest.raises(StorageError, match="cannot be written"):
        embed(sources, encoder, tmp_path / "file" / "emb")


def test_a_full_disk_keeps_the_shards(encoder, sources, tmp_path, monkeypatch, decoded):
    out, savez = tmp_path / "emb", np.savez

    def full(handle, **arrays):
        if "00001" in handle.name:
            handle.write(b"half")
            disk_full()
        savez(handle, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(StorageError, match=r"00001\.npz cannot be written \(no space left on device\)"):
            embed(sources, encoder, out, shard_size=4)
    assert names(out / "shards") == ["00000.npz", "run.json"]
    decoded.clear()
    assert len(embed(sources, encoder, out)) == 10
    assert len(decoded) == 6


def test_a_disk_that_fills_while_the_vectors_are_joined(encoder, sources, tmp_path, monkeypatch, decoded):
    out = tmp_path / "emb"
    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", disk_full)
        with pytest.raises(StorageError, match="no space left on device"):
            embed(sources, encoder, out, shard_size=4)
    assert is_unfinished(out)
    decoded.clear()
    assert len(embed(sources, encoder, out)) == 10
    assert decoded == []


@pytest.mark.parametrize("file", ["ids.json", "embeddings.json"])
def test_a_full_disk_keeps_complete_embeddings(encoder, sources, tmp_path, monkeypatch, file):
    out, path_open, write_text = tmp_path / "emb", Path.open, Path.write_text
    before = embed(sources[:8], encoder, out, shard_size=4)

    def full(path, *args, call, **options):
        if file in path.name and (call is write_text or "w" in args):
            disk_full()
        return call(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", partialmethod(full, call=path_open))
        patch.setattr(Path, "write_text", partialmethod(full, call=write_text))
        with pytest.raises(StorageError, match="no space left on device"):
            embed(sources, encoder, out, shard_size=4)
    assert equal(load_embeddings(out), before)
    assert len(embed(sources, encoder, out)) == 10
    assert names(out) == ["embeddings.json", "ids.json", "keys.npy", "model", "vectors.npy"]


def test_complete_embeddings_are_returned_from_a_read_only_folder(encoder, sources, tmp_path, monkeypatch):
    out = tmp_path / "emb"
    first = embed(sources, encoder, out)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "write_text", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert equal(embed(sources, encoder, out), first)


def test_a_damaged_model_is_replaced(encoder, sources, tmp_path):
    out = tmp_path / "emb"
    embed(sources, encoder, out)
    (out / "model" / "bundle.json").write_text("{")
    info = BundleInfo(encoder.name, encoder.dim, encoder.fingerprint, (encoder.info,), classes=("a",))
    embed(sources, encoder, out, info=info)
    assert load_encoder(out).fingerprint == encoder.fingerprint
    assert read_bundle_info(out / "model").classes == ("a",)


def test_invalid_arguments(encoder, sources, tmp_path):
    with pytest.raises(DataError, match="no images") as caught:
        embed([], encoder, tmp_path / "emb")
    assert caught.value.argument == "images"
    with pytest.raises(DataError, match=r"duplicate image '0\.png'"):
        embed([*sources, sources[0]], encoder, tmp_path / "emb")
    with pytest.raises(OptionError, match="got 0") as caught:
        embed(sources, encoder, tmp_path / "emb", shard_size=0)
    assert caught.value.argument == "shard_size"
    assert not (tmp_path / "emb").exists()


def compute(encoder, sources) -> FittedEncoder:
    backbones = [member.backbone for member in encoder.members]
    (batch,) = run_backbones(backbones, [sources], batch_size=None, progress=SILENT, task="features")
    return FittedEncoder(encoder, batch.ids, batch.features, batch.skipped)


@pytest.mark.parametrize("positions", [[0, 2, 5], [4, 5, 6, 7], list(range(10))], ids=["some", "a shard", "all"])
def test_images_with_computed_features_are_not_decoded(encoder, sources, tmp_path, decoded, positions):
    computed = compute(encoder, [sources[n] for n in positions])
    decoded.clear()
    embeddings = embed(sources, encoder, tmp_path / "emb", shard_size=4, computed=computed)
    assert sorted(decoded) == [s.id for n, s in enumerate(sources) if n not in positions]
    expected = encoder.embed(sources)
    assert embeddings.ids == expected.ids
    np.testing.assert_allclose(embeddings.vectors, expected.vectors, atol=1e-5)


def test_computed_features_of_an_ensemble(encoder, make_trainable, sources, tmp_path, decoded):
    ensemble = Ensemble((encoder, make_trainable("test_resnet").freeze()), "concat")
    computed = compute(ensemble, sources[3:6])
    decoded.clear()
    embeddings = embed(sources, ensemble, tmp_path / "emb", shard_size=4, computed=computed)
    assert len(decoded) == 7
    np.testing.assert_allclose(embeddings.vectors, ensemble.embed(sources).vectors, atol=1e-5)


def test_the_root_is_the_folder_that_all_ids_are_relative_to(folder, monkeypatch):
    paths = sorted(folder.iterdir())
    assert root_of([File(f"images/{p.name}", p) for p in paths]) == folder.parent.resolve()
    assert root_of([File("one", paths[0]), File(paths[1].name, paths[1])]) is None
    assert root_of([File(paths[0].name, paths[0]), File("images/1.png", paths[1])]) is None
    assert root_of([File(paths[0].name, paths[0]), File(str(paths[1]), paths[1])]) == folder.resolve()
    assert root_of([File(str(paths[1]), paths[1])]) is None
    monkeypatch.chdir(folder.parent)
    assert root_of([File("images/1.png", Path("images/1.png"))]) == folder.parent.resolve()


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has file names that are not text")
def test_a_file_name_that_is_not_text(encoder, folder, tmp_path):
    path = folder / os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(folder / "0.png", path)
    except OSError:
        pytest.skip("this file system does not support such a name")
    embed([File(path.name, path)], encoder, tmp_path / "emb")
    assert load_embeddings(tmp_path / "emb").ids == (path.name,)
    assert json.loads((tmp_path / "emb" / "ids.json").read_text(encoding="ascii")) == [path.name]


def test_a_file_that_could_not_be_read_for_now_is_tried_again(encoder, sources, tmp_path, decoded, monkeypatch):
    broken, read = sources[5].path, images._read

    def failing(path, file):
        if path == broken:
            raise images._unreadable(path, OSError(errno.EMFILE, "Too many open files"))
        return read(path, file)

    with monkeypatch.context() as patch:
        patch.setattr(images, "_read", failing)
        patch.setattr(images, "decode_jpeg", lambda *_: None)
        first = embed(sources, encoder, tmp_path / "emb", shard_size=4)
    assert [str(file) for file in first.skipped] == [f"{broken}: it cannot be read (too many open files)"]
    decoded.clear()
    again = embed(sources, encoder, tmp_path / "emb")
    assert again.ids == tuple(source.id for source in sources)
    assert again.skipped == ()
    assert decoded == ["5.png"]
