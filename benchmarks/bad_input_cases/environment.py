"""Users, folders, names, disks and signals."""

from __future__ import annotations

from pathlib import Path

from bad_input_cases.case import Kind, classes, image, write

KIND = Kind("Environment")
SIGNALS = Kind("Signals and several processes")
case, add = KIND.case, KIND.add

SEARCH = "lookalike search photos.index photos/cat/0.jpg"
FOUND = r"cat/1\.jpg"
INDEXED = ["photos", "photos.index"]
INDEX = "lookalike index photos.emb --out "
EMBED = "lookalike embed photos --model onnx --out "
EMBEDDED = ["photos", "photos.emb"]

# ---------------------------------------------------------------- users and variables

NO_HOME = "env -u HOME -u LOOKALIKE_CACHE "
add(
    "no-home-for-search",
    "A user without a passwd entry and without HOME, for `search`.",
    NO_HOME + SEARCH,
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)
add(
    "no-home-for-index",
    "The same for `index`.",
    NO_HOME + "lookalike index photos --model onnx --out x.index",
    uses=["photos", "onnx"],
    exit=0,
    says=["8 images indexed"],
)
add(
    "no-home-for-evaluate",
    "The same for `evaluate`, with a bundle on torch.",
    NO_HOME + "lookalike evaluate data --model model -k 1",
    uses=["data", "model"],
    exit=0,
    says=["precision@1"],
)
add(
    "a-home-that-does-not-exist",
    "HOME is a folder that does not exist.",
    "env -u LOOKALIKE_CACHE HOME=/nowhere " + SEARCH,
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)
add(
    "a-cache-that-is-a-file",
    "LOOKALIKE_CACHE is a file.",
    "touch cache && LOOKALIKE_CACHE=$PWD/cache lookalike embed photos --model model --out x.emb",
    uses=["photos", "model"],
    exit=0,
    says=["8 images embedded"],
)
add(
    "a-read-only-cache",
    "LOOKALIKE_CACHE is a read-only folder.",
    "mkdir -m 555 cache && LOOKALIKE_CACHE=$PWD/cache lookalike embed photos --model model --out x.emb",
    uses=["photos", "model"],
    exit=0,
    says=["8 images embedded"],
)
add(
    "no-temporary-folder",
    "TMPDIR is a folder that does not exist.",
    "TMPDIR=/nowhere " + SEARCH,
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)
add(
    "no-locale",
    "A locale without Unicode, and a name outside ASCII.",
    "cp photos/cat/0.jpg 'ü.jpg' && LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 lookalike search photos.index 'ü.jpg'",
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)
add(
    "odd-thread-counts",
    "OMP_NUM_THREADS is text.",
    "OMP_NUM_THREADS=many " + SEARCH,
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)
add("a-narrow-terminal", "A terminal of one column.", "COLUMNS=1 " + SEARCH, uses=INDEXED, exit=0)
add("a-closed-stdin", "Standard input is closed.", SEARCH + " <&-", uses=INDEXED, exit=0, says=[FOUND])
add("a-closed-stdout", "Standard output is closed.", SEARCH + " >&-", uses=INDEXED, exit=0)
add("a-closed-stderr", "Standard error is closed.", SEARCH + " 2>&-", uses=INDEXED, exit=0, says=[FOUND])
add(
    "a-reader-that-stops",
    "The reader of the output ends at once.",
    SEARCH + " | true; exit ${PIPESTATUS[0]}",
    uses=INDEXED,
    exit=0,
)
add(
    "a-full-output",
    "The output goes to a full disk.",
    SEARCH + " > /dev/full",
    uses=INDEXED,
    says=["no space left on device"],
)
REMOVED = "D=$PWD && mkdir x && cd x && rmdir ../x && "
add(
    "a-removed-working-folder",
    "The working folder was removed; relative `--out`.",
    REMOVED + "lookalike check $D/data --out x.json",
    uses=["data"],
    says=["working folder"],
)
add(
    "a-removed-working-folder-for-search",
    "The same for `search` with absolute paths.",
    REMOVED + "lookalike search $D/photos.index $D/photos/cat/0.jpg",
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)

# ---------------------------------------------------------------- --out

for command, line, uses in (
    ("index", "lookalike index photos --model onnx --out ", ["photos", "onnx"]),
    ("export", "lookalike export model --out ", ["model"]),
    ("check", "lookalike check photos --out ", ["photos"]),
    ("submit", "lookalike submit data --model onnx --out ", ["data", "onnx"]),
    ("train", "lookalike train data --frozen --out ", ["data"]),
):
    add(
        f"{command}-into-the-working-folder",
        f"`--out .` for `{command}`.",
        line + ".",
        uses=uses,
        says=["--out"],
        silent=["embedding:"],
    )
    add(
        f"a-name-of-255-characters-for-{command}",
        f"`--out` with a name of 255 characters, for `{command}`.",
        f"{line}$(printf 'x%.0s' {{1..250}}).json",
        uses=uses,
        says=["--out", "255"],
        silent=["embedding:"],
    )
add(
    "embed-into-the-working-folder",
    "`--out .` for `embed`, in an empty folder.",
    "mkdir x && cd x && lookalike embed ../photos --model ../onnx --out .",
    uses=["photos", "onnx"],
    exit=0,
    says=["8 images embedded"],
    files=["x/vectors.npy"],
)
add(
    "embed-into-a-folder-of-others",
    "`--out .` for `embed`, in a folder with other files.",
    EMBED + ".",
    uses=["photos", "onnx"],
    says=["--out"],
    files=["photos/cat/0.jpg"],
)
add(
    "index-into-the-parent-folder",
    "`--out ..` for `index`.",
    "cd photos/ && lookalike index . --model ../onnx --out ..",
    uses=["photos", "onnx"],
    says=["--out"],
    files=["photos/cat/0.jpg"],
)
add(
    "index-into-the-images",
    "`--out` is the folder of the images.",
    "lookalike index photos --model onnx --out photos",
    uses=["photos", "onnx"],
    says=["--out"],
    files=["photos/cat/0.jpg"],
)
add(
    "index-inside-a-file",
    "`--out` is inside a file.",
    "touch x && lookalike index photos --model onnx --out x/y",
    uses=["photos", "onnx"],
    says=["not a folder"],
    silent=["embedding:"],
)
add(
    "a-path-of-5000-characters",
    "`--out` with a path of 5,000 characters.",
    INDEX + "$(printf 'xxxxxxxxx/%.0s' {1..500})y",
    uses=["photos.emb"],
    says=["too long"],
)
add(
    "a-name-with-a-null-byte",
    "`out` with a NUL byte, in Python.",
    "python -c \"import lookalike as la; la.embed('photos', 'onnx', out='a\\0b')\" |& tail -n 1 | grep lookalike\\.",
    uses=["photos", "onnx"],
    exit=0,
    says=["null|nul"],
)
add("an-empty-name", "`--out ''`.", INDEX + "''", uses=["photos.emb"], says=["--out"])
add(
    "an-out-that-links-to-itself",
    "`--out` is a link to itself.",
    "ln -s x x && " + INDEX + "x",
    uses=["photos.emb"],
    says=["link"],
)
add(
    "a-link-to-a-new-folder",
    "`--out` is a link to a folder that does not exist.",
    "ln -s new.index x.index && " + INDEX + "x.index && test -L x.index",
    uses=["photos.emb"],
    exit=0,
    files=["new.index/index.json"],
)

OTHER_DISK = (
    "unshare -rm bash -c 'mkdir disk && mount -t tmpfs none disk && mkdir disk/x "
    "&& ln -s disk/x x && {} x && test -L x && ls disk/x'"
)
add(
    "a-link-to-another-disk-for-index",
    "`--out` is a link to a folder on another disk, for `index`.",
    OTHER_DISK.format(INDEX),
    uses=["photos.emb"],
    exit=0,
    says=["index.json"],
)
add(
    "a-link-to-another-disk-for-embed",
    "The same for `embed`.",
    OTHER_DISK.format(EMBED),
    uses=["photos", "onnx"],
    exit=0,
    says=["vectors.npy"],
)
add(
    "a-link-to-another-disk-for-export",
    "The same for `export`.",
    OTHER_DISK.format("lookalike export model --format onnx --out"),
    uses=["model"],
    exit=0,
    says=["bundle.json"],
)

FULL = "unshare -rm bash -c 'mkdir disk && mount -t tmpfs -o size={} none disk && {}'"
add(
    "a-full-disk-for-index",
    "`--out` on a disk with 64 kB, for `index`.",
    FULL.format("64k", INDEX + "disk/x"),
    uses=["photos.emb"],
    says=["no space left"],
)
add(
    "a-full-disk-for-embed",
    "The same for `embed`.",
    FULL.format("64k", EMBED + "disk/x"),
    uses=["photos", "onnx"],
    says=["no space left"],
)
add(
    "a-full-disk-for-export",
    "`--out` on a disk with 1 MB, for `export`.",
    FULL.format("1m", "lookalike export model --format onnx --out disk/x"),
    uses=["model"],
    says=["no space left"],
)
add(
    "a-full-disk-for-check",
    "`--out` and `--clean-manifest` on a full disk, for `check`.",
    FULL.format("4k", "(head -c 9000 /dev/zero > disk/y; lookalike check photos --out disk/x.json)"),
    uses=["photos"],
    says=["no space left"],
)
READ_ONLY = "unshare -rm bash -c 'mkdir disk && mount -t tmpfs -o ro none disk && {}disk/x'"
add(
    "a-read-only-disk-for-index",
    "`--out` on a read-only disk, for `index`.",
    READ_ONLY.format(INDEX),
    uses=["photos.emb"],
    says=["read-only"],
)
add(
    "a-read-only-disk-for-embed",
    "The same for `embed`.",
    READ_ONLY.format(EMBED),
    uses=["photos", "onnx"],
    says=["read-only"],
    silent=["embedding:"],
)
add(
    "a-read-only-folder",
    "`--out` in a folder without permission to write.",
    "mkdir -m 555 x && " + EMBED + "x/y",
    uses=["photos", "onnx"],
    says=["read-only"],
    silent=["embedding:"],
)
add(
    "a-read-only-index",
    "A search in an index on a read-only disk.",
    "chmod -R a-w photos.index && " + SEARCH,
    uses=INDEXED,
    exit=0,
    says=[FOUND],
)

# ---------------------------------------------------------------- names


@case(
    "lookalike index data --model onnx --out x.index",
    "lookalike search x.index data/1.jpg --json | python -m json.tool",
    uses=["onnx"],
    exit=0,
    says=[r"\\ud"],
)
def a_name_that_is_not_unicode() -> None:
    """An image whose name is not valid Unicode."""
    image("data/0.jpg", 0)
    image("data/1.jpg", 1)
    Path("data/0.jpg").rename("data/\udcff.jpg")


@case("lookalike check data --clean-manifest clean/manifest.csv", says=["Unicode", "rename"])
def a_manifest_of_a_name_that_is_not_unicode() -> None:
    """The same for `check --clean-manifest`."""
    classes("data", {"cat": 3, "coffee": 3})
    Path("data/cat/0.jpg").rename("data/cat/\udcff.jpg")


@case(
    "lookalike index data --model onnx --out x.index",
    "lookalike search x.index \"$(printf 'data/a\\nb.jpg')\" -k 1",
    uses=["onnx"],
    exit=0,
    says=["1.jpg"],
)
def a_name_with_a_line_break() -> None:
    """An image whose name has a line break."""
    image("data/a\nb.jpg", 0)
    image("data/1.jpg", 1)


@case(
    "lookalike index data --model onnx --out x.index",
    "lookalike search x.index data/1.jpg",
    uses=["onnx"],
    exit=0,
    silent=[r"\x1b", r"\x9b"],
)
def a_name_with_terminal_escapes() -> None:
    """An image whose name has an escape sequence of terminals, for the table."""
    image("data/\x1b[31mred\x9b2J.jpg", 0)
    image("data/1.jpg", 1)


@case(
    "lookalike index data --model onnx --out x.index",
    "lookalike search x.index data/1.jpg --json",
    uses=["onnx"],
    exit=0,
    silent=["[\x00-\x09\x0b-\x1f\x7f-\x9f]"],
)
def a_name_with_control_characters_for_json() -> None:
    """The same for `--json`."""
    image("data/\x1b[31mred\x9b2J.jpg", 0)
    image("data/1.jpg", 1)


@case(
    "lookalike index data --model onnx --out x.index",
    "lookalike search x.index data/1.jpg --html x.html && ! grep -i '<script>alert' x.html",
    uses=["onnx"],
    exit=0,
)
def a_name_with_html() -> None:
    """An image called `<script>alert(1)<` in a folder, for the page."""
    image("data/<script>alert(1)<.jpg", 0)
    image("data/1.jpg", 1)


@case("lookalike check ./-data && cd -- -data && lookalike check .", exit=0, says=["6 of 6"])
def a_folder_like_an_option() -> None:
    """A data folder called `-data`."""
    classes("-data", {"cat": 3, "coffee": 3})


@case("lookalike check data", exit=0, says=["6 of 6"])
def a_name_of_255_bytes() -> None:
    """An image whose name has 255 bytes."""
    classes("data", {"cat": 2, "coffee": 3})
    image(f"data/cat/{'x' * 251}.jpg", 3)


@case("lookalike check data", exit=0, says=["6 of 6"])
def deep_folders() -> None:
    """An image below 60 folders."""
    classes("data", {"cat": 2, "coffee": 3})
    image("data/cat/" + "x/" * 60 + "3.jpg", 3)


# ---------------------------------------------------------------- several processes, signals

for command, line, uses in (
    ("embed", EMBED, ["photos", "onnx"]),
    ("index", INDEX, ["photos.emb"]),
    ("export", "lookalike export model --format onnx --out ", ["model"]),
    ("train", "lookalike train data --frozen --out ", ["data"]),
    ("benchmark", "lookalike benchmark data --bundle onnx --out ", ["data", "onnx"]),
):
    SIGNALS.add(
        f"another-process-writes-{command}",
        f"Another process holds the lock of `--out`, for `{command}`.",
        f"flock .new.lock {line}new",
        uses=uses,
        says=["another run", "--out"],
        silent=["embedding:"],
        no_files=["new"],
    )
TWO = "{0}x & {0}x; first=$?; wait $!; second=$?; echo exits $first $second"
SIGNALS.add(
    "two-processes-of-index",
    "Two processes of `index` with the same `--out`.",
    TWO.format(INDEX),
    uses=["photos.emb"],
    exit=0,
    says=["exits (0 2|2 0)"],
    files=["x/index.json"],
)
SIGNALS.add(
    "two-processes-of-embed",
    "Two processes of `embed` with the same `--out`: one is refused, or has nothing to do.",
    TWO.format(EMBED),
    uses=["photos", "onnx"],
    exit=0,
    says=["exits (0 2|2 0|0 0)"],
    files=["x/vectors.npy"],
)
SIGNALS.add(
    "a-second-training",
    "`train` with the `--out` of a finished one.",
    "lookalike train data --frozen --out onnx",
    uses=["data", "onnx"],
    says=["already exists"],
    silent=["images in"],
)

BENCHMARK = "lookalike benchmark data --bundle onnx --bundle model --out x"
for name in ("TERM", "INT"):
    for command, line, seconds in (
        ("benchmark", BENCHMARK, 8),
        ("index", "lookalike index data/training --model model --runtime torch --out x", 3),
        ("export", "lookalike export model --format onnx --out x", 6),
    ):
        SIGNALS.add(
            f"sig{name.lower()}-during-{command}",
            f"SIG{name} during `{command}`, after {seconds} s.",
            f"timeout --preserve-status -s {name} {seconds} {line}",
            uses=["data", "onnx", "model"],
            exit=130,
            says=["interrupted"],
        )


@SIGNALS.case(
    "(timeout -s KILL 3 lookalike index photos --model model --runtime torch --out x); true",
    "lookalike index photos --model model --out x && ls -A",
    uses=["photos", "model"],
    exit=0,
    silent=[r"x\.embedding", r"^\.x", "x.lock"],
    files=["x/index.json"],
)
def a_killed_index() -> None:
    """`index` is killed after 3 s and runs again: nothing of the first run is left."""


@SIGNALS.case(
    "(timeout -s KILL 5 lookalike export model --format onnx --out x); true",
    "lookalike export model --format onnx --out x && ls -A",
    uses=["model"],
    exit=0,
    silent=[r"^\.x"],
    files=["x/bundle.json"],
    leaves=["wandb-(media|artifacts)"],  # timm imports wandb where it is installed, which makes them
)
def a_killed_export() -> None:
    """`export` is killed after 5 s and runs again."""


FORK = """import multiprocessing
import lookalike as la

encoder = la.load_encoder("{model}", runtime="{runtime}")
encoder.embed(["photos/cat/0.jpg"])

def work(path):
    try:
        return str(len(encoder.embed([path])))
    except la.LookalikeError as error:
        return str(error)

with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map(work, ["photos/cat/1.jpg"])[0])
"""


@SIGNALS.case("python fork.py", uses=["photos", "model"], exit=0, says=["spawn"])
def a_fork_with_torch() -> None:
    """An encoder on torch that is used in a fork of its process."""
    write("fork.py", FORK.format(model="model", runtime="torch"))


@SIGNALS.case("python fork.py", uses=["photos", "openvino"], exit=0, says=["spawn"])
def a_fork_with_openvino() -> None:
    """The same with OpenVINO."""
    write("fork.py", FORK.format(model="openvino", runtime="auto"))


@SIGNALS.case("python fork.py", uses=["photos", "onnx"], exit=0, says=["spawn"])
def a_fork_with_onnx_runtime() -> None:
    """The same with ONNX Runtime."""
    write("fork.py", FORK.format(model="onnx", runtime="auto"))


GRAPH = "lookalike embed photos --model model --runtime {} --out {}"


@SIGNALS.case(
    'cp -r "$LOOKALIKE_CACHE" cache; ' + GRAPH.format("{runtime}", "a.emb").replace("{runtime}", "openvino"),
    "python damage.py && LOOKALIKE_CACHE=$PWD/cache "
    + GRAPH.format("openvino", "b.emb")
    + " && cmp a.emb/vectors.npy b.emb/vectors.npy",
    uses=["photos", "model"],
    exit=0,
)
def a_damaged_cached_graph() -> None:
    """Each file of the graphs in the cache has a changed bit in its middle."""
    write(
        "damage.py",
        "from pathlib import Path\n"
        "files = [p for p in Path('cache/graphs').rglob('*') if p.is_file() and p.stat().st_size > 1000]\n"
        "assert files\n"
        "for path in files:\n"
        "    data = bytearray(path.read_bytes())\n"
        "    data[len(data) // 2] ^= 64\n"
        "    path.write_bytes(data)\n",
    )


SIGNALS.skip("A training on a GPU or several", "no GPU on this machine")
KIND.skip("Windows, macOS", "not on this machine")
