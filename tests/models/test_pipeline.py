"""Images to batches, and batches through runners: order, bounded memory, errors, and images in memory."""

import io
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.data.images import read_image
from lookalike.errors import OptionError, UnreadableImage
from lookalike.models import pipeline
from lookalike.models.pipeline import (
    Bottleneck,
    DecodedBatch,
    File,
    Files,
    ImagePart,
    InMemoryImage,
    as_sources,
    decode,
    decode_batches,
    map_ahead,
    run_backbones,
    run_batches,
    sources_digest,
)
from lookalike.models.preprocessing import Preprocessing
from lookalike.progress import SILENT
from lookalike.types import Skipped


class SquareCounter:
    """Squares numbers in any thread, and counts its calls."""

    def __init__(self):
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, value):
        with self._lock:
            self.calls += 1
        time.sleep(0.001 * (value % 3))
        return value * value


# ---------------------------------------------------------------- sources


def test_paths_and_images_get_ids_and_sources_keep_theirs(sample_images):
    pixels = np.array(sample_images["cat"])
    file = File("mine", Path("c.png"))
    sources = as_sources(["a.png", Path("b/b.png"), b"...", sample_images["cat"], pixels, file])
    assert [source.id for source in sources] == ["a.png", "b/b.png", "image 2", "image 3", "image 4", "mine"]
    assert [source.path for source in sources[:3]] == [Path("a.png"), Path("b/b.png"), Path("image 2")]
    assert sources[4].image is pixels


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="no pipes under /dev/fd")
@pytest.mark.parametrize("suffix", ["png", "jpeg"])
def test_a_pipe_from_the_shell_is_read(sample_images, suffix):
    data = io.BytesIO()
    sample_images["cat"].resize((40, 30)).save(data, suffix)
    reader, writer = os.pipe()
    os.write(writer, data.getvalue())
    os.close(writer)
    (source,) = as_sources([f"/dev/fd/{reader}"])
    os.close(reader)
    assert source.id == f"/dev/fd/{reader}"
    assert decode(source, [16])[0].shape == (30, 40, 3)


def test_binary_files_and_buffers_are_images(sample_images, tmp_path):
    sample_images["cat"].save(tmp_path / "cat.png")
    data = (tmp_path / "cat.png").read_bytes()
    with (tmp_path / "cat.png").open("rb") as file, os.scandir(tmp_path) as entries:
        sources = as_sources([io.BytesIO(data), file, bytearray(data), memoryview(data), *entries])
    assert [source.image for source in sources[:4]] == [data] * 4
    assert (sources[4].id, sources[4].path) == (str(tmp_path / "cat.png"), tmp_path / "cat.png")


@pytest.mark.parametrize("image", ["a.png", Path("a.png"), b"...", Image.new("RGB", (2, 2)), io.BytesIO(b"a")])
def test_a_single_image_instead_of_a_list_is_refused(image):
    with pytest.raises(OptionError, match="must be a list") as raised:
        as_sources(image)
    assert raised.value.argument == "images"


@pytest.mark.parametrize(
    ("image", "facts"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 of shape (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros((4, 4, 3), np.float32), "float32 of shape (4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        (7, "int at position 1"),
        (io.StringIO("text"), "StringIO at position 1"),
    ],
)
def test_something_else_than_an_image_is_refused(image, facts):
    with pytest.raises(OptionError) as raised:
        as_sources(["a.png", image])
    assert facts in str(raised.value)
    assert raised.value.argument == "images"


def test_files_below_a_folder_are_made_when_they_are_read():
    root = Path("root")
    names = ["a/\udcff.jpg", "b.jpg", "ö/c.png", ""]
    files = Files(root, iter(names))
    assert list(files) == [File(name, root / name) for name in names]
    assert (len(files), files[-2].id, len(Files(root, []))) == (4, "ö/c.png", 0)
    assert [file.id for file in files[1:][:2]] == names[1:3]
    assert [file.id for file in files[::-2]] == names[::-2]
    assert as_sources(files) is files
    for index, sequence in ((4, files), (1, files[1:2])):
        with pytest.raises(IndexError):
            sequence[index]


def test_the_digest_of_files_changes_with_ids_sizes_times_and_the_model(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    digests = [sources_digest("model", [File("a", file)])]
    digests += [sources_digest("other", [File("a", file)]), sources_digest("model", [File("b", file)])]
    file.write_bytes(b"three")
    digests.append(sources_digest("model", [File("a", file)]))
    assert digests[-1] == sources_digest("model", [File("a", file)])
    file.unlink()
    digests.append(sources_digest("model", [File("a", file)]))
    assert len(set(digests)) == 5


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_encoded_bytes_are_decoded_as_their_file(sample_images, tmp_path, suffix):
    path = tmp_path / f"coffee{suffix}"
    sample_images["coffee"].resize((480, 320)).save(path)
    for min_sides in ([10_000], [100, 10_000]):
        expected = decode(File("file", path), min_sides)
        for pixels, reference in zip(decode(InMemoryImage("b", path.read_bytes()), min_sides), expected, strict=True):
            np.testing.assert_array_equal(pixels, reference)


def modes(image):
    alpha = image.convert("RGBA")
    alpha.putalpha(image.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.arange(0, 60_000, 15, dtype=np.uint16).reshape(40, 100))
    return {
        "grey": (image.convert("L"), {}),
        "palette": (image.quantize(16), {}),
        "alpha": (alpha, {}),
        "16 bit": (wide, {}),
        "turned": (image, {"exif": exif}),
    }


@pytest.mark.parametrize("mode", ["grey", "palette", "alpha", "16 bit", "turned"])
def test_a_pil_image_of_any_mode_is_decoded_as_its_file(sample_images, tmp_path, mode):
    image, options = modes(sample_images["cat"])[mode]
    path = tmp_path / "image.png"
    image.save(path, **options)
    expected = np.asarray(read_image(path))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(decode(InMemoryImage("i", opened), [10])[0], expected)


def test_an_array_is_taken_as_it_is(sample_images):
    pixels = np.array(sample_images["cat"])
    assert decode(InMemoryImage("i", pixels), [10, 20])[1] is pixels


def test_a_part_is_cut_out_of_the_whole_image(tmp_path):
    """At full size, even where half of the pixels would be enough, and only when it is decoded."""
    Image.effect_noise((64, 48), 90).convert("RGB").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image)[8:24, 16:]
    part = ImagePart("part", File("a", tmp_path / "a.jpg"), lambda pixels: pixels[8:24, 16:])
    for pixels in decode(part, [4, 8]):
        np.testing.assert_array_equal(pixels, expected)
    missing = ImagePart("part", File("b", tmp_path / "missing.jpg"), lambda pixels: pixels)
    assert missing.path == tmp_path / "missing.jpg"
    with pytest.raises(UnreadableImage, match=r"missing\.jpg"):
        decode(missing, [4])


@pytest.mark.parametrize("data", [b"", b"no image", "truncated"])
def test_unreadable_bytes_are_reported_by_their_id(sample_images, data):
    if data == "truncated":
        buffer = io.BytesIO()
        sample_images["cat"].save(buffer, "png")
        data = buffer.getvalue()[:2000]
    with pytest.raises(UnreadableImage) as raised:
        decode(InMemoryImage("image 3", data), [10])
    assert raised.value.path == Path("image 3")
    assert "0x" not in raised.value.cause  # no address of an object


def test_a_truncated_pil_image_is_unreadable(sample_images, tmp_path):
    path = tmp_path / "cut.jpg"
    sample_images["cat"].save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as opened, pytest.raises(UnreadableImage, match="truncated"):
        decode(InMemoryImage("image 3", opened), [10])


# ---------------------------------------------------------------- decoding ahead


def test_results_are_yielded_in_order_and_in_batches():
    batches = list(map_ahead([range(10)], SquareCounter(), 4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert [pair for batch in batches for pair in batch] == [(n, n * n) for n in range(10)]


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_memory_is_bounded_by_a_few_batches_ahead(batch_size):
    prepare = SquareCounter()
    results = map_ahead([range(10_000)], prepare, batch_size)
    for _ in range(4):
        next(results)
    time.sleep(0.1)  # enough for everything that was submitted
    ahead = prepare.calls - 4 * batch_size
    results.close()
    assert 0 < ahead <= max(3 * batch_size, 8 * threading.active_count() + 64)
    assert prepare.calls < 1000


def test_there_is_a_thread_per_processor(monkeypatch):
    monkeypatch.setattr(pipeline, "cpu_count", lambda: 3)
    all_threads = threading.Barrier(3)  # is passed by three threads at once only

    def prepare(_):
        all_threads.wait(60)

    assert len(list(map_ahead([range(9)], prepare, 3))) == 3


def test_nothing_starts_before_the_first_batch_is_requested():
    prepare = SquareCounter()
    map_ahead([range(10)], prepare, 2)
    assert prepare.calls == 0


def test_an_error_is_raised_in_order_and_ends_the_threads():
    def fail_at_seven(value):
        if value == 7:
            raise ZeroDivisionError("seven")
        return value

    before = set(threading.enumerate())
    results = map_ahead([range(1000)], fail_at_seven, 4)
    assert next(results) == [(n, n) for n in range(4)]
    with pytest.raises(ZeroDivisionError, match="seven"):
        next(results)
    assert not set(threading.enumerate()) - before


def test_an_unreadable_image_becomes_a_skipped_result():
    def prepare(value):
        if value == 1:
            raise UnreadableImage("b.jpg", "the file is empty")
        return value

    assert list(map_ahead([range(3)], prepare, 3)) == [
        [(0, 0), (1, Skipped(Path("b.jpg"), "the file is empty")), (2, 2)]
    ]


def test_no_sources_give_no_batches():
    assert list(map_ahead([[]], SquareCounter(), 4)) == []


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(OptionError, match="got 0") as raised:
        next(map_ahead([[1]], SquareCounter(), 0))
    assert raised.value.argument == "batch_size"


def test_a_batch_never_spans_two_groups():
    batches = list(map_ahead([[1, 2, 3], [4], [5, 6]], lambda n: -n, 2))
    assert batches == [[(1, -1), (2, -2)], [(3, -3)], [(4, -4)], [(5, -5), (6, -6)]]


def test_each_file_is_decoded_once_for_all_preprocessings(image_files, monkeypatch):
    decoded = []

    def read(path, min_sides, read_scaled=pipeline.read_scaled):
        decoded.append(path)
        return read_scaled(path, min_sides)

    monkeypatch.setattr(pipeline, "read_scaled", read)
    small, large = Preprocessing(32, 32), Preprocessing(64, 48)
    sources = [File(path.name, path) for path in image_files]
    batches = list(decode_batches([sources], [small, large, small], 4))
    assert sorted(decoded) == sorted(image_files)
    assert [batch.done for batch in batches] == [4, 8, 9]
    first = batches[0]
    assert [pixels.shape for pixels in first.pixels] == [(4, 32, 32, 3), (4, 64, 48, 3), (4, 32, 32, 3)]
    assert first.pixels[0] is first.pixels[2]
    assert first.pixels[0].dtype == np.uint8
    assert [item_id for batch in batches for item_id in batch.ids] == [path.name for path in image_files]


def test_a_batch_of_unreadable_files_is_still_yielded(image_files, tmp_path):
    missing = [File(str(n), tmp_path / f"{n}.jpg") for n in range(2)]
    batches = list(decode_batches([[*missing, File("good", image_files[0])]], [Preprocessing(32, 32)], 2))
    facts = [(batch.ids, len(batch.pixels), len(batch.skipped), batch.done) for batch in batches]
    assert facts == [((), 0, 2, 2), (("good",), 1, 0, 3)]


# ---------------------------------------------------------------- runners


class SumRunner:
    """Adds up the pixels of each image, and counts the batches that were submitted but not awaited."""

    batch_size = 2

    def __init__(self, in_flight, seconds=0.0):
        self.in_flight, self.seconds = in_flight, seconds
        self.pending = self.max_pending = 0

    def submit(self, pixels):
        self.pending += 1
        self.max_pending = max(self.max_pending, self.pending)

        def wait():
            time.sleep(self.seconds)
            self.pending -= 1
            return pixels.sum(axis=(1, 2, 3))[:, None].astype(np.float32)

        return wait


def generate_batches(count, runners=1, seconds=0.0):
    for n in range(count):
        time.sleep(seconds)
        pixels = np.full((2, 1, 1, 3), n, np.uint8)
        yield DecodedBatch((f"{n}a", f"{n}b"), (pixels,) * runners, (), 2 * (n + 1))


@pytest.mark.parametrize("in_flight", [1, 3, 99])
def test_results_are_in_order_and_no_more_batches_are_in_flight_than_allowed(in_flight):
    runner = SumRunner(in_flight)
    results = list(run_batches(generate_batches(7), [runner], Bottleneck()))
    assert [batch.ids[0] for batch, _ in results] == [f"{n}a" for n in range(7)]
    assert [rows[0][0, 0] for _, rows in results] == [3 * n for n in range(7)]
    assert (runner.pending, runner.max_pending) == (0, min(in_flight, 7))


def test_the_smallest_number_in_flight_of_several_runners_counts():
    runners = [SumRunner(4), SumRunner(2)]
    results = list(run_batches(generate_batches(6, runners=2), runners, Bottleneck()))
    assert all(len(rows) == 2 for _, rows in results)
    assert [runner.max_pending for runner in runners] == [2, 2]


def test_a_batch_without_pixels_has_no_rows():
    batches = iter([DecodedBatch((), (), (), 1), *generate_batches(1)])
    results = list(run_batches(batches, [SumRunner(2)], Bottleneck()))
    assert [len(rows) for _, rows in results] == [0, 1]


@pytest.mark.parametrize(
    ("decoding", "model", "text"), [(0.02, 0, "limited by decoding"), (0, 0.02, "limited by the model")]
)
def test_the_longer_wait_is_the_bottleneck(decoding, model, text):
    bottleneck = Bottleneck()
    batches = generate_batches(8, seconds=decoding)
    texts = [str(bottleneck) for _ in run_batches(batches, [SumRunner(1, model)], bottleneck)]
    assert texts[0] == ""
    assert texts[-1] == text


def test_decoding_and_computing_overlap():
    """Each waits for progress of the other; one after the other they would never end."""
    decoded, computed = threading.Event(), threading.Event()

    def prepare(n):
        if n == 2:
            decoded.set()
        if n == 3:
            assert computed.wait(60)
        return np.full((1, 1, 3), n, np.uint8)

    class WaitingRunner(SumRunner):
        def submit(self, pixels):
            wait = super().submit(pixels)

            def wait_for_decoding():
                assert decoded.wait(60)
                computed.set()
                return wait()

            return wait_for_decoding

    def batches():
        for results in map_ahead([range(5)], prepare, 1):
            yield DecodedBatch(("a",), (np.stack([result for _, result in results]),), (), 1)

    results = list(run_batches(batches(), [WaitingRunner(1)], Bottleneck()))
    assert [rows[0][0, 0] for _, rows in results] == [0, 3, 6, 9, 12]


@pytest.mark.parametrize("failing", ["submit", "wait"])
def test_an_error_waits_for_what_other_runners_started(failing):
    class FailingRunner(SumRunner):
        def submit(self, _):
            if failing == "submit":
                raise ValueError

            def wait():
                raise ValueError

            return wait

    first, last = SumRunner(2), SumRunner(2)
    with pytest.raises(ValueError):
        list(run_batches(generate_batches(6, runners=3), [first, FailingRunner(2), last], Bottleneck()))
    assert (first.pending, last.pending) == (0, 0)
    assert first.max_pending > 0


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_groups_are_computed_as_if_alone(make_trainable, image_files, tmp_path, batch_size):
    backbone = make_trainable().torch_backbone()
    (tmp_path / "text.jpg").write_text("no image")
    files = [File(str(n), path) for n, path in enumerate([*image_files, tmp_path / "text.jpg"])]
    groups = [files[:3], files[3:4], files[9:], files[4:9]]
    results = list(run_backbones([backbone], groups, batch_size=batch_size, progress=SILENT, task="features"))
    assert [batch.ids for batch in results] == [tuple(f.id for f in group if f.id != "9") for group in groups]
    assert [len(batch.skipped) for batch in results] == [0, 0, 1, 0]
    for batch, group in zip(results, groups, strict=True):
        (alone,) = run_backbones([backbone], [group], batch_size=None, progress=SILENT, task="features")
        assert batch.features[0].shape == (len(batch.ids), backbone.width)
        np.testing.assert_allclose(batch.features[0], alone.features[0], rtol=1e-4, atol=1e-4)


def test_no_groups_give_no_features(make_trainable):
    backbone = make_trainable().torch_backbone()
    assert list(run_backbones([backbone], [], batch_size=None, progress=SILENT, task="features")) == []
