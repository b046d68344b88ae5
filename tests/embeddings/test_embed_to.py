"""Embedding into a folder: the same bits whether it was stopped or not, and nothing computed twice."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from lookalike.embeddings.embed import embed_to, root_of
from lookalike.models.stream import File
from lookalike.models.torch_bundle import load_bundle

from lookalike.embeddings.store import is_embeddings, is_unfinished, load_embeddings, read_embedding_facts
from lookalike.errors import DataError, FingerprintMismatch, OptionError, StorageError
from lookalike.models.encoder import Encoder
from lookalike.models.trainable import build_trainable
from lookalike.types import Skipped


@dataclass
class Counting:
    """An encoder that counts the images it is given."""

    inner: Encoder
    seen: int = 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def embed_each(self, groups, **options):
        self.seen += sum(map(len, groups))
        return self.inner.embed_each(groups, **options)


def same(left, right) -> bool:
    return left.ids == right.ids and left.vectors.tobytes() == right.vectors.tobytes()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_folder_holds_what_the_encoder_gives(encoder, sources, folder, tmp_path, watch):
    out, seen = tmp_path / "emb", watch()
    made = embed_to(sources, encoder, out, shard_size=4, batch_size=4, progress=seen)
    direct = encoder.embed(sources, batch_size=4)
    assert same(made, direct)
    assert made.fingerprint == encoder.fingerprint
    assert isinstance(np.load(out / "vectors.npy", mmap_mode="r"), np.memmap)
    assert names(out) == ["embeddings.json", "ids.json", "model", "vectors.npy"]
    facts = read_embedding_facts(out)
    assert (facts.count, facts.dim, facts.root, facts.model) == (10, 512, folder.resolve(), "test_efficientnet")
    assert [row.rows for row in facts.shards] == [4, 4, 2]
    assert json.loads((out / "embeddings.json").read_text())["complete"] is True
    assert load_bundle(out / "model").fingerprint == encoder.fingerprint
    assert seen.steps[-1] == (10, 10)
    assert [done for done, _ in seen.steps] == sorted(done for done, _ in seen.steps)


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_a_stopped_run_loses_at_most_a_shard_and_ends_with_the_same_bits(encoder, sources, tmp_path, watch, stop_at):
    whole = embed_to(sources, encoder, tmp_path / "whole", shard_size=4, batch_size=2)
    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed_to(sources, encoder, out, shard_size=4, batch_size=2, progress=watch(stop_at))
    assert is_unfinished(out)
    assert not is_embeddings(out)
    with pytest.raises(StorageError, match=r"not finished; run the same 'lookalike embed' again"):
        load_embeddings(out)
    counting = Counting(encoder)
    resumed = embed_to(sources, counting, out, batch_size=2)
    assert same(resumed, whole)
    assert counting.seen == 10 - stop_at // 4 * 4
    assert names(out) == names(tmp_path / "whole")


def test_a_run_stopped_before_its_last_file_goes_on_without_the_model(encoder, sources, tmp_path, monkeypatch):
    out = tmp_path / "emb"
    with monkeypatch.context() as patch:
        patch.setattr("lookalike.embeddings.folder.write_facts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed_to(sources, encoder, out, shard_size=4)
    assert is_unfinished(out)
    counting = Counting(encoder)
    assert same(embed_to(sources, counting, out), embed_to(sources, encoder, tmp_path / "whole", shard_size=4))
    assert counting.seen == 0


def test_what_is_complete_is_returned_untouched(encoder, sources, tmp_path):
    out = tmp_path / "emb"
    first = embed_to(sources, encoder, out, shard_size=4)
    times = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    counting = Counting(encoder)
    assert same(embed_to(sources, counting, out, shard_size=7), first)
    assert counting.seen == 0
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == times


def test_what_was_left_out_is_kept_and_brought_up_to_date(encoder, sources, folder, tmp_path):
    (folder / "0.png").write_text("no picture")
    closed, other = (Skipped(Path(name), "the folder cannot be listed") for name in ("closed", "other"))
    out, counting = tmp_path / "emb", Counting(encoder)
    made = embed_to(sources, counting, out, shard_size=4, left_out=[closed])
    broken = made.skipped[0]
    assert (broken.path, made.skipped[1:]) == (folder / "0.png", (closed,))
    assert load_embeddings(out).skipped == (broken, closed)
    assert embed_to(sources, counting, out, left_out=[other, closed]).skipped == (broken, other, closed)
    assert counting.seen == 10
    (folder / "9.png").unlink()
    assert embed_to(sources[:9], counting, out, left_out=[other]).skipped == (broken, other)
    assert counting.seen == 11  # the last shard, of one picture now
    assert embed_to(sources[:9], counting, out).skipped == (broken,)


def test_a_changed_file_costs_one_shard(encoder, sources, folder, tmp_path):
    out = tmp_path / "emb"
    first = embed_to(sources, encoder, out, shard_size=4, batch_size=4)
    shutil.copy(folder / "0.png", folder / "5.png")
    counting = Counting(encoder)
    second = embed_to(sources, counting, out, batch_size=4)
    assert counting.seen == 4
    assert same(second, encoder.embed(sources, batch_size=4))
    assert not np.array_equal(second.vectors[5], first.vectors[5])
    assert first.vectors[5] @ first.vectors[5] == pytest.approx(1, abs=1e-5)  # the older mapping is still whole


def test_a_picture_replaced_under_its_name_is_seen_by_its_time_alone(encoder, sources, folder, tmp_path):
    out = tmp_path / "emb"
    embed_to(sources, encoder, out, shard_size=4)
    size = (folder / "9.png").stat().st_size
    os.utime(folder / "9.png", ns=(1, 1))
    assert (folder / "9.png").stat().st_size == size
    counting = Counting(encoder)
    embed_to(sources, counting, out)
    assert counting.seen == 2


def test_that_nothing_changed_is_said(encoder, sources, tmp_path, recording_progress):
    out = tmp_path / "emb"
    embed_to(sources, encoder, out, shard_size=4)
    progress = recording_progress()
    embed_to(sources, encoder, out, progress=progress)
    assert progress.said == [f"{out}: no image was added, removed or changed"]


@pytest.mark.parametrize("copy", [shutil.copy2, shutil.copyfile], ids=["unchanged", "changed"])
def test_a_damaged_folder_is_told_of_before_anything_else_is_said(
    encoder, sources, folder, tmp_path, recording_progress, copy
):
    out = tmp_path / "emb"
    embed_to(sources, encoder, out)
    (out / "ids.json").write_text("[]")
    shutil.copytree(folder, tmp_path / "others", copy_function=copy)
    progress = recording_progress()
    with pytest.raises(StorageError, match="damaged"):
        embed_to([File(s.id, tmp_path / "others" / s.id) for s in sources], encoder, out, progress=progress)
    assert progress.said == []


def test_added_and_removed_files(encoder, sources, folder, tmp_path):
    out = tmp_path / "emb"
    embed_to(sources[:9], encoder, out, shard_size=4)
    counting = Counting(encoder)
    assert embed_to(sources, counting, out).ids == tuple(s.id for s in sources)
    assert counting.seen == 2
    assert embed_to(sources[:4], counting, out).ids == tuple(s.id for s in sources[:4])
    assert counting.seen == 2


def test_moved_images_are_not_embedded_again_but_found(encoder, sources, folder, tmp_path):
    out = tmp_path / "emb"
    embed_to(sources, encoder, out)
    moved = Path(shutil.move(folder, tmp_path / "elsewhere"))
    counting = Counting(encoder)
    embed_to([File(s.id, moved / s.id) for s in sources], counting, out)
    assert counting.seen == 0
    assert read_embedding_facts(out).root == moved.resolve()


def test_that_other_images_take_the_place_is_said(encoder, sources, folder, tmp_path, recording_progress):
    out, other = tmp_path / "emb", tmp_path / "other"
    shutil.copytree(folder, other)
    (other / sources[0].id).write_bytes((other / sources[1].id).read_bytes())
    embed_to(sources, encoder, out)
    first, second = recording_progress(), recording_progress()
    embed_to(sources[1:], encoder, out, progress=first)
    assert first.said == []
    embed_to([File(s.id, other / s.id) for s in sources], encoder, out, progress=second)
    assert second.said == [
        f"{out} held embeddings of the images in {folder.resolve()}; from now on it holds those in {other.resolve()}"
    ]


def test_a_corrupt_file_is_left_out_and_listed(encoder, sources, folder, tmp_path, watch):
    (folder / "6.png").write_bytes((folder / "6.png").read_bytes()[:200])
    (folder / "7.png").write_bytes(b"")
    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed_to(sources, encoder, out, shard_size=4, progress=watch(10))
    made = embed_to(sources, encoder, out)
    assert made.ids == tuple(f"{n}.png" for n in (0, 1, 2, 3, 4, 5, 8, 9))
    assert [s.path.name for s in made.skipped] == ["6.png", "7.png"]
    assert made.skipped[1].cause == "the file is empty"
    assert load_embeddings(out).skipped == made.skipped
    shutil.copy(folder / "0.png", folder / "7.png")
    again = embed_to(sources, encoder, out)
    assert "7.png" in again.ids
    assert [s.path.name for s in again.skipped] == ["6.png"]


def test_a_shard_in_which_nothing_can_be_read(encoder, sources, folder, tmp_path):
    for n in range(4, 8):
        (folder / f"{n}.png").write_text("no picture")
    made = embed_to(sources, encoder, tmp_path / "emb", shard_size=4)
    assert made.ids == tuple(f"{n}.png" for n in (0, 1, 2, 3, 8, 9))
    assert [row.rows for row in read_embedding_facts(tmp_path / "emb").shards] == [4, 0, 2]


def test_nothing_readable_is_an_error_with_the_first_cause(encoder, sources, folder, tmp_path):
    for source in sources:
        source.path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of the 10 images can be read, the first is .*0\.png: the file is empty\."
    ):
        embed_to(sources, encoder, tmp_path / "emb")


def test_a_damaged_shard_is_computed_again(encoder, sources, tmp_path, watch):
    out = tmp_path / "emb"
    with pytest.raises(KeyboardInterrupt):
        embed_to(sources, encoder, out, shard_size=4, progress=watch(10))
    shard = out / "shards" / "00000.npz"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255  # inside the vectors
    shard.write_bytes(content)
    (out / "shards" / "00001.npz").write_bytes(b"")
    counting = Counting(encoder)
    assert same(embed_to(sources, counting, out), embed_to(sources, encoder, tmp_path / "whole", shard_size=4))
    assert counting.seen == 10


@pytest.mark.parametrize("stop_at", [None, 5])
def test_embeddings_of_another_model_are_refused(encoder, sources, tmp_path, watch, stop_at):
    out = tmp_path / "emb"
    try:
        embed_to(sources, encoder, out, shard_size=4, progress=watch(stop_at))
    except KeyboardInterrupt:
        assert stop_at
    other = Encoder([build_trainable("test_efficientnet", "none", seed=1)])
    before = sorted(out.rglob("*"))
    with pytest.raises(FingerprintMismatch) as caught:
        embed_to(sources, other, out)
    assert str(caught.value) == (
        f"{out} holds embeddings made by the model test_efficientnet ({encoder.fingerprint}), not by test_efficientnet "
        f"({other.fingerprint}); choose another place or remove it."
    )
    assert sorted(out.rglob("*")) == before


def test_something_else_in_the_place_is_left_alone(encoder, sources, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    for place in ("letters", "file"):
        with pytest.raises(StorageError, match="already exists and is not an embeddings folder; choose another place"):
            embed_to(sources, encoder, tmp_path / place)
    assert names(tmp_path / "letters") == ["dear.txt"]


def test_a_full_disk_keeps_the_shards(encoder, sources, tmp_path, monkeypatch):
    out, written = tmp_path / "emb", np.savez

    def full(handle, **arrays):
        if "00001" in handle.name:
            handle.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(handle, **arrays)

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(StorageError, match=r"00001\.npz cannot be written \(no space left on device\)"):
            embed_to(sources, encoder, out, shard_size=4)
    assert names(out / "shards") == ["00000.npz", "run.json"]
    counting = Counting(encoder)
    assert len(embed_to(sources, counting, out)) == 10
    assert counting.seen == 6


def test_a_disk_that_fills_while_the_vectors_are_joined(encoder, sources, tmp_path, monkeypatch):
    out = tmp_path / "emb"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(StorageError, match="no space left on device"):
            embed_to(sources, encoder, out, shard_size=4)
    assert is_unfinished(out)
    counting = Counting(encoder)
    assert len(embed_to(sources, counting, out)) == 10
    assert counting.seen == 0


def test_a_disk_that_fills_leaves_finished_embeddings_as_they_were(encoder, sources, tmp_path, monkeypatch):
    out, opened, written = tmp_path / "emb", Path.open, Path.write_text
    before = embed_to(sources[:8], encoder, out, shard_size=4)
    for stop in ("ids.json", "embeddings.json"):

        def full(path, *given, stop=stop, do, **how):
            if stop in path.name and (do is written or "w" in given):
                raise OSError(errno.ENOSPC, "No space left on device")
            return do(path, *given, **how)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", partialmethod(full, do=opened))
            patch.setattr(Path, "write_text", partialmethod(full, do=written))
            with pytest.raises(StorageError, match="no space left on device"):
                embed_to(sources, encoder, out, shard_size=4)
        kept = load_embeddings(out)
        assert kept.ids == before.ids and np.array_equal(kept.vectors, before.vectors)
    assert len(embed_to(sources, encoder, out)) == 10
    assert names(out) == ["embeddings.json", "ids.json", "model", "vectors.npy"]


def test_a_place_that_cannot_be_written(encoder, sources, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be written"):
        embed_to(sources, encoder, tmp_path / "file" / "emb")


def test_complete_embeddings_are_returned_from_a_place_that_takes_no_writing(encoder, sources, tmp_path, monkeypatch):
    out = tmp_path / "emb"
    first = embed_to(sources, encoder, out)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "write_text", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    assert same(embed_to(sources, encoder, out), first)


def test_a_lost_model_is_put_back(encoder, sources, tmp_path):
    out = tmp_path / "emb"
    embed_to(sources, encoder, out)
    (out / "model" / "bundle.json").write_text("{")
    embed_to(sources, encoder, out, facts={"classes": ["a"]})
    assert load_bundle(out / "model").fingerprint == encoder.fingerprint
    assert json.loads((out / "model" / "bundle.json").read_text())["classes"] == ["a"]


def test_wrong_arguments(encoder, sources, tmp_path):
    with pytest.raises(DataError, match="no image to embed"):
        embed_to([], encoder, tmp_path / "emb")
    with pytest.raises(DataError, match=r"'0\.png'"):
        embed_to([*sources, sources[0]], encoder, tmp_path / "emb")
    with pytest.raises(OptionError, match="shard size must be at least 1, got 0"):
        embed_to(sources, encoder, tmp_path / "emb", shard_size=0)
    assert not (tmp_path / "emb").exists()


def test_the_root_is_the_folder_that_all_ids_are_relative_to(folder, monkeypatch):
    paths = sorted(folder.iterdir())
    assert root_of([File(f"pictures/{p.name}", p) for p in paths]) == folder.parent.resolve()
    assert root_of([File("one", paths[0]), File(paths[1].name, paths[1])]) is None
    assert root_of([File(paths[0].name, paths[0]), File("pictures/1.png", paths[1])]) is None
    monkeypatch.chdir(folder.parent)
    assert root_of([File("pictures/1.png", Path("pictures/1.png"))]) == folder.parent.resolve()


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has file names that are not text")
def test_a_file_name_that_is_not_text(encoder, folder, tmp_path):
    odd = folder / os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(folder / "0.png", odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    embed_to([File(odd.name, odd)], encoder, tmp_path / "emb")
    assert load_embeddings(tmp_path / "emb").ids == (odd.name,)
