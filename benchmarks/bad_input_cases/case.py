"""What a case of bad input is, and the functions that make its files from real images."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCENES = ("cat", "coffee", "rocket", "page")  # of the demo's images
SPARSE = 3_000_000_000  # bytes of files that take no space on the disk


@dataclass(frozen=True)
class Expected:
    """What the last command of a case must do; the others must succeed.

    Attributes:
        exit: the exit status; None for any of 0, 1 and 2.
        says: regular expressions that the output contains, in any case.
        silent: regular expressions that it does not contain.
        files: paths that exist afterwards.
        no_files: paths that do not.
        leaves: regular expressions of what may be left in the temporary folder.
        max_mb: the most memory of the largest process.
        connects: whether the command has a reason to use the network.

    """

    exit: int | None = 2
    says: Sequence[str] = ()
    silent: Sequence[str] = ()
    files: Sequence[str] = ()
    no_files: Sequence[str] = ()
    leaves: Sequence[str] = ()
    max_mb: int = 2_000
    connects: bool = False


@dataclass(frozen=True)
class Case:
    """An input, what makes it in the working folder, and the commands that meet it, lines of bash.

    Attributes:
        uses: what is copied from the base folder before `make` runs.

    """

    id: str
    kind: str
    input: str
    commands: Sequence[str]
    expected: Expected
    uses: Sequence[str] = ()
    make: Callable[[], None] | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of bad input: its cases, and what cannot be made here, with the reason."""

    title: str
    cases: list[Case] = field(default_factory=list)
    not_made: list[tuple[str, str]] = field(default_factory=list)

    def case(self, *commands: str, uses: Sequence[str] = (), **expected: Any) -> Callable[[Callable[[], None]], None]:
        """Add a case whose decorated function makes the input; its name is the id, its docstring the input."""

        def add(make: Callable[[], None]) -> None:
            name = make.__name__.replace("_", "-")
            text = " ".join((make.__doc__ or "").split())
            self.cases.append(Case(name, self.title, text, commands, Expected(**expected), uses, make))

        return add

    def add(self, name: str, text: str, *commands: str, uses: Sequence[str] = (), **expected: Any) -> None:
        """Add a case that needs nothing but copies."""
        self.cases.append(Case(name, self.title, text, commands, Expected(**expected), uses))

    def skip(self, text: str, reason: str) -> None:
        """Add an input that is not made here."""
        self.not_made.append((text, reason))


def base() -> Path:
    """Return the folder of what cases copy."""
    return Path(os.environ["BAD_INPUT_BASE"])


def image(path: str | Path, number: int = 0, scene: str = "cat", **options: Any) -> Path:
    """Write one of the demo's images, in the format of the suffix; a JPEG is copied."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    source = base() / "demo" / "training" / scene / f"{number:02}.jpg"
    if path.suffix.lower() in (".jpg", ".jpeg", "") and not options:
        shutil.copyfile(source, path)
        return path
    from PIL import Image

    with Image.open(source) as opened:
        opened.save(path, **options)
    return path


def classes(folder: str | Path, counts: Mapping[str, int], first: int = 0) -> None:
    """Write class folders with different images."""
    for label, count in counts.items():
        scene = label if label in SCENES else "cat"
        for number in range(first, first + count):
            image(Path(folder) / label / f"{number}.jpg", number, scene)


def write(path: str | Path, content: str | bytes = b"") -> Path:
    """Write a file, and the folders above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return path


def manifest(folder: str | Path, rows: Sequence[Sequence[str]], header: str = "path,label,split") -> None:
    """Write a manifest.csv."""
    write(Path(folder) / "manifest.csv", "\n".join([header, *map(",".join, rows)]) + "\n")


def sparse(path: str | Path, size: int = SPARSE, start: bytes = b"") -> None:
    """Write a file that begins with `start` and is filled with zeros that take no space on the disk."""
    write(path, start)
    os.truncate(path, size)


def flip(path: str | Path, where: float = 0.5) -> None:
    """Change one bit of a file, at a fraction of its length."""
    with Path(path).open("r+b") as file:
        file.seek(int(Path(path).stat().st_size * where))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x40]))


def cut(path: str | Path, share: float = 0.5) -> None:
    """Keep the first part of a file."""
    os.truncate(path, int(Path(path).stat().st_size * share))


def edit(path: str | Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON record and renew its digest, as an attacker would."""
    from lookalike._files import with_digest

    record = json.loads(Path(path).read_text(encoding="utf-8"))
    record.pop("digest", None)
    change(record)
    write(path, json.dumps(with_digest(record)))


def reseal(folder: str | Path, record: str = "index.json") -> None:
    """Renew the digests that an index keeps of its files."""
    from lookalike._files import FileRecord

    def renew(values: dict[str, Any]) -> None:
        values["files"] = {name: asdict(FileRecord.of(Path(folder) / name)) for name in values["files"]}

    edit(Path(folder) / record, renew)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def black_png(
    path: str | Path, width: int, height: int, bits: int = 8, colour: int = 2, rows: int | None = None
) -> None:
    """Write a PNG without holding its pixels: colour 0 is grey, 2 RGB and 6 RGBA; `rows` of them are there."""
    samples = {0: 1, 2: 3, 6: 4}[colour]
    row = bytes(1 + -(-width * samples * bits // 8))
    compressor = zlib.compressobj(1)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    with write(path).open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header))
        left = height if rows is None else rows
        block = max(1, (1 << 20) // len(row))  # rows that are compressed at once
        while left:
            compressed = compressor.compress(row * min(block, left))
            left -= min(block, left)
            if compressed:
                file.write(png_chunk(b"IDAT", compressed))
        file.write(png_chunk(b"IDAT", compressor.flush()) + png_chunk(b"IEND", b""))


def claim_size(path: str | Path, width: int, height: int) -> None:
    """Let a JPEG file claim other sides than it has."""
    data = bytearray(Path(path).read_bytes())
    position = 2
    while data[position + 1] not in (0xC0, 0xC1, 0xC2):  # a start of frame
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    data[position + 5 : position + 9] = struct.pack(">HH", height, width)
    write(path, bytes(data))
