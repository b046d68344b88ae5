"""Reading an image file into upright RGB pixels."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from lookalike._files import RefusedFileError, open_regular
from lookalike.errors import UnreadableImage
from lookalike.types import Pixels

# An image that claims more pixels than this (0.5 GB when decoded) is refused as a decompression bomb.
MAX_PIXELS = 178_956_970
MAX_BYTES = 600_000_000  # of an image file; as many uncompressed pixels as are allowed take 537 MB
# of the pixels as Pillow stores them, and of their copies while they are converted to upright RGB
MAX_DECODED_BYTES = 900_000_000

# An image of more pixels is decoded and resized while no other such image is: one can take a gigabyte.
_LARGE_PIXELS = 1 << 26
_large_image = threading.Lock()

_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", "MPO")),
    ".png": ("PNG",),
    ".gif": ("GIF",),
    ".bmp": ("BMP", "DIB"),
    ".webp": ("WEBP",),
    ".avif": ("AVIF", "HEIF"),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm"), ("PPM",)),
    ".jp2": ("JPEG2000",),
}

# read where pillow-heif is installed
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_HEIF_FORMATS = dict.fromkeys(HEIF_SUFFIXES, ("HEIF", "AVIF"))
_HEIF_KINDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")

_TILE_PIXELS = 1 << 24  # converted at once: a large image would take its memory four times
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # what decides the pixels
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # per pixel, by colour type
_PNG_BLOCK = 1 << 20  # bytes decompressed at once
_JPEG_END = b"\xff\xd9"

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # of a pixel; else 4
_ROW_BYTES = 8  # Pillow keeps a pointer to each row of an image
_WHITE_16_BIT = 65535  # white of integer samples above 8 bits

# What an error of opening an image means; other errors are quoted.
_CAUSES = {
    FileNotFoundError: "the file does not exist",
    IsADirectoryError: "it is a folder, not a file",
    PermissionError: "permission denied",
    UnidentifiedImageError: "not an image that Pillow can read",
    MemoryError: "it takes too much memory",
    Image.DecompressionBombError: f"it claims more than {MAX_PIXELS:,} pixels (a decompression bomb?)",
}

# libjpeg-turbo can decode at these fractions of the sides, much faster and as well as averaging does.
_JPEG_SCALES = (8, 4, 2)


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image and is not hidden."""
    suffix = Path(name).suffix.lower()
    return not name.startswith(".") and (suffix in _FORMATS or (suffix in _HEIF_FORMATS and has_heif()))


@functools.cache
def has_heif() -> bool:
    """Whether HEIC images can be read."""
    return importlib.util.find_spec("pillow_heif") is not None


class _Turn(threading.local):
    """Whether this thread reads an image in turn, and whether that is a large one, so that it holds the lock."""

    in_turn = False
    is_large = False


_turn = _Turn()


@contextlib.contextmanager
def image_in_turn(path: Path | str) -> Iterator[None]:
    """Read and use one image of several that threads read: a large one waits until no other thread uses another.

    A lack of memory in the block raises `UnreadableImage` for this image.
    """
    _turn.in_turn = True
    try:
        yield
    except MemoryError as error:
        raise _unreadable(Path(path), error) from error
    finally:
        if _turn.is_large:
            _large_image.release()
        _turn.in_turn = _turn.is_large = False


def _wait_if_large(pixels: int) -> None:
    """Wait until no other thread uses a large image; outside `image_in_turn` do nothing."""
    if pixels > _LARGE_PIXELS and _turn.in_turn and not _turn.is_large:
        _large_image.acquire()
        _turn.is_large = True


def read_image(path: Path | str) -> Image.Image:
    """Decode an image file into an upright RGB image, with alpha blended onto white.

    Handles EXIF orientation, greyscale, palette, alpha, CMYK, 16-bit and float samples; of an animation the first frame
    is returned. White is 65535 in 16-bit greyscale, however dark the image is, and also in 32-bit integers, which have
    no white of their own. In float samples white is 1 if no sample is above it, else 255. Values are clipped.
    A file that is missing, damaged, of another format than its suffix, or too large raises `UnreadableImage`.
    """
    path = Path(path)
    try:
        with open_regular(path, MAX_BYTES) as file:
            return _read(path, file)
    except (OSError, RefusedFileError) as error:
        raise _unreadable(path, error) from error


def _read(path: Path, file: BinaryIO) -> Image.Image:
    """Decode an open file or bytes; `path` is what errors name."""
    try:
        if not file.read(1):
            raise UnreadableImage(path, "the file is empty")
        file.seek(0)
        with _open(path, file) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                text = f"it claims {pixels:,} pixels, more than {MAX_PIXELS:,} (a decompression bomb?)"
                raise UnreadableImage(path, text)
            decoded_bytes = _decoded_bytes(image)
            if decoded_bytes > MAX_DECODED_BYTES:
                text = f"decoding its {pixels:,} pixels of mode {image.mode} takes {decoded_bytes:,} bytes"
                raise UnreadableImage(path, f"{text}, more than {MAX_DECODED_BYTES:,}; convert it to RGB, or shrink it")
            expected = (_FORMATS | _HEIF_FORMATS).get(path.suffix.lower())
            if expected is not None and image.format not in expected:
                raise UnreadableImage(path, f"it is named {path.suffix} but contains {image.format}; rename it")
            _wait_if_large(pixels)
            return _decode(path, file, image)
    except UnreadableImage:
        raise
    except ValueError as error:
        essential = _essential_png(file)  # Pillow refuses texts and profiles of more than 1 MB
        if essential is None:
            raise _unreadable(path, error) from error
        return _read(path, io.BytesIO(essential))
    except Exception as error:  # decoders raise anything on damaged files: struct.error, RuntimeError, KeyError, ...
        raise _unreadable(path, error) from error


def open_image(file: BinaryIO) -> Image.Image:
    """Open an image as `PIL.Image.open` does, without its limit of pixels, which warns: here `MAX_PIXELS` decides.

    Python's filters of warnings, and Pillow's limit, belong to the program and all its threads.
    """
    prefix = file.read(16)
    for register in (Image.preinit, Image.init):  # the most common formats, then all
        register()
        for name in Image.ID:
            factory, accepts = Image.OPEN[name]
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):  # another format
                if accepts is None or accepts(prefix) is True:
                    file.seek(0)
                    return factory(file, "")
    raise UnidentifiedImageError


def read_header(name: str, data: bytes) -> tuple[str | None, int]:
    """Return the format and the number of pixels that an encoded image claims; errors carry `name` as the path.

    Pixels are not decoded.
    """
    path = Path(name)
    try:
        with _open(path, io.BytesIO(data)) as image:
            return image.format, image.width * image.height
    except UnreadableImage:
        raise
    except Exception as error:
        essential = _essential_png(io.BytesIO(data)) if isinstance(error, ValueError) else None
        if essential is None:
            raise _unreadable(path, error) from error
        return read_header(name, essential)


def _open(path: Path, file: BinaryIO) -> Image.Image:
    try:
        return open_image(file)
    except UnidentifiedImageError:
        file.seek(0)
        header = file.read(12)
        if header[4:8] != b"ftyp" or header[8:] not in _HEIF_KINDS:
            raise
        file.seek(0)
    if not has_heif():
        cause = "HEIC needs the package pillow-heif; install lookalike with the extra heif"
        raise UnreadableImage(path, cause)
    from pillow_heif.as_plugin import HeifImageFile  # not registered with Pillow: that would change other programs

    image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


def _decoded_bytes(image: Image.Image) -> int:
    """Return the bytes that decoding takes: the image as stored, turned upright, and as RGB."""
    turned, converted = _is_turned(image), image.mode != "RGB" or "transparency" in image.info
    pixel_bytes = _STORED_BYTES.get(image.mode, 4) * (1 + turned) + 4 * converted
    rows = max(image.size) if turned else image.height
    return image.width * image.height * pixel_bytes + _ROW_BYTES * rows * (1 + turned + converted)


def _is_turned(image: Image.Image) -> bool:
    return bool(image.getexif().get(ExifTags.Base.Orientation, 1) != 1)


def _decode(path: Path, file: BinaryIO, image: Image.Image) -> Image.Image:
    image.seek(0)
    if isinstance(image, TiffImageFile):  # which otherwise compares its size with Pillow's limit, and warns
        image.im = Image.new(image.mode, getattr(image, "_tile_size", image.size), None).im
    try:
        image.load()
    except OSError:
        restored = decode_jpeg(_content(file), [None]) if image.format == "JPEG" else None
        if restored is None:
            raise
        return Image.fromarray(restored[0])
    if image.format == "PNG" and _lacks_rows(image, file):
        raise UnreadableImage(path, "more than a tenth of its rows are missing")
    return to_rgb(image)


def _content(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and all bytes of each chunk."""
    start = len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start:end]
        start = end


def _essential_png(file: BinaryIO) -> bytes | None:
    """Return a PNG without texts, profiles and other chunks that do not matter here; None where there are none."""
    try:
        data = _content(file)
    except OSError:
        return None
    if not data.startswith(_PNG_SIGNATURE):
        return None
    essential = b"".join([_PNG_SIGNATURE, *(chunk for kind, chunk in _png_chunks(data) if kind in _PNG_CHUNKS)])
    return essential if len(essential) < len(data) else None


def _lacks_rows(image: Image.Image, file: BinaryIO) -> bool:
    """Whether more than a tenth of a PNG's pixels are missing: Pillow leaves them zero.

    Only where the last row is zero, the file is decompressed again to count them.
    """
    width, height = image.size
    if image.crop((0, height - 1, width, height)).getbbox(alpha_only=False) is not None:
        return False
    decompressor, bytes_needed = zlib.decompressobj(), 0.0
    for kind, chunk in _png_chunks(_content(file)):
        if kind == b"IHDR":
            bytes_needed = 0.9 * width * height * chunk[16] * _PNG_SAMPLES[chunk[17]] / 8
        compressed = chunk[8:-4] if kind == b"IDAT" else b""
        while compressed and bytes_needed > 0:
            bytes_needed -= len(decompressor.decompress(compressed, _PNG_BLOCK))
            compressed = decompressor.unconsumed_tail
    return bytes_needed > 0


def _unreadable(path: Path, error: Exception) -> UnreadableImage:
    text = next(iter(str(error).strip().splitlines()), type(error).__name__)
    temporary = isinstance(error, MemoryError)
    cause = f"it cannot be decoded ({text})"
    if isinstance(error, OSError) and error.errno is not None:  # of the system; errors of Pillow have no number
        temporary = True
        cause = f"it cannot be read ({(error.strerror or text).lower()})"
    cause = next((meaning for kind, meaning in _CAUSES.items() if isinstance(error, kind)), cause)
    return UnreadableImage(path, str(error) if isinstance(error, RefusedFileError) else cause, temporary=temporary)


def read_pixels(path: Path | str, min_side: int | None = None) -> Pixels:
    """Decode an image file to `(height, width, 3)` uint8, as `read_image` does, faster if it is a JPEG.

    A JPEG, or an image of more than 67 million pixels, may be decoded at 1/2, 1/4 or 1/8 of its sides if the shorter
    one keeps `min_side` pixels; None keeps all.
    """
    return read_scaled(path, [min_side])[0]


def read_scaled(path: Path | str, min_sides: Sequence[int | None]) -> list[Pixels]:
    """Do `read_pixels` for several sizes at once: the file is read once, and decoded once per scale."""
    path = Path(path)
    if "JPEG" in _FORMATS.get(path.suffix.lower(), ("JPEG",)):
        with contextlib.suppress(OSError, RefusedFileError):
            with open_regular(path, MAX_BYTES) as file:
                data = file.read()
            decoded = decode_jpeg(data, min_sides)
            if decoded is not None:
                return decoded
    image = read_image(path)
    if image.width * image.height <= _LARGE_PIXELS:
        return [np.array(image)] * len(min_sides)
    scales = _scales(min(image.size), min_sides)
    reduced = {scale: np.array(image.reduce(scale)) for scale in dict.fromkeys(scales)}
    return [reduced[scale] for scale in scales]


def _scales(side: int, min_sides: Sequence[int | None]) -> list[int]:
    """Return by which fraction of its sides an image can be decoded for each size; `side` is the shorter one."""
    return [next((s for s in _JPEG_SCALES if min_side and side // s >= min_side), 1) for min_side in min_sides]


def read_in_memory(name: str, image: bytes | Image.Image | Pixels, min_sides: Sequence[int | None]) -> list[Pixels]:
    """Do `read_scaled` for an encoded image, a PIL image of any mode, or pixels; errors carry `name` as the path."""
    if isinstance(image, bytes):
        if len(image) > MAX_BYTES:
            raise UnreadableImage(Path(name), f"it has more than {MAX_BYTES:,} bytes")
        decoded = decode_jpeg(image, min_sides)
        return decoded or [np.array(_read(Path(name), io.BytesIO(image)))] * len(min_sides)
    if not isinstance(image, Image.Image):
        return [image] * len(min_sides)
    try:
        return [np.array(to_rgb(image))] * len(min_sides)
    except Exception as error:  # PIL decodes late
        raise _unreadable(Path(name), error) from error


def read_pipe(path: Path) -> bytes:
    """Return what a pipe holds, at most a little more than `MAX_BYTES`, which `read_in_memory` refuses."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error


def decode_jpeg(data: bytes, min_sides: Sequence[int | None]) -> list[Pixels] | None:
    """Decode an upright JPEG with libjpeg-turbo, once per size; the pixels equal Pillow's unless scaled.

    Returns None for anything but a plain, undamaged JPEG within `MAX_PIXELS`: Pillow reads more kinds and has better
    error messages.
    """
    import simplejpeg

    if not data.endswith(_JPEG_END):
        data += _JPEG_END  # some writers forget it; any other damage is noticed
    try:
        height, width, colourspace, _ = simplejpeg.decode_jpeg_header(data)
        if colourspace not in ("YCbCr", "Gray") or height * width > MAX_PIXELS:
            return None
        with open_image(io.BytesIO(data)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        _wait_if_large(height * width)
        scales = _scales(min(height, width), min_sides)
        decoded = {
            scale: simplejpeg.decode_jpeg(
                data, "RGB", min_height=-(-height // scale), min_width=-(-width // scale), min_factor=scale
            )
            for scale in dict.fromkeys(scales)
        }
    except Exception:  # damaged files raise anything, such as KeyError for unknown chroma subsampling
        return None
    return [_upright(decoded[scale], orientation) for scale in scales]


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation as `PIL.ImageOps.exif_transpose` does; unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    if flip_rows or flip_columns:
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    return np.ascontiguousarray(pixels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode and orientation to upright RGB, by the rules of `read_image`."""
    if _is_turned(image):
        image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        white = _WHITE_16_BIT
        if mode == "F":
            white = 1 if all(_values(tile).max() <= 1 for _, tile in _tiles(image)) else 255
        convert: Callable[[Image.Image], Image.Image] = functools.partial(_eight_bits, white=white)
    elif mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        convert = _on_white
    else:
        return image if mode == "RGB" else image.convert("RGB")
    if image.width * image.height <= _TILE_PIXELS:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for corner, tile in _tiles(image):
        rgb.paste(convert(tile), corner)
    return rgb


def _tiles(image: Image.Image) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Yield the parts of an image that are converted at once, with their left upper corners."""
    columns = max(1, min(image.width, _TILE_PIXELS))
    rows = _TILE_PIXELS // columns
    for top, left in itertools.product(range(0, image.height, rows), range(0, image.width, columns)):
        box = (left, top, min(left + columns, image.width), min(top + rows, image.height))
        yield (left, top), image.crop(box)


def _values(image: Image.Image) -> npt.NDArray[np.float32]:
    """Return samples of more than 8 bits; those that are not finite are black."""
    return np.nan_to_num(np.asarray(image).astype(np.float32), copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _eight_bits(image: Image.Image, white: int) -> Image.Image:
    values = _values(image).clip(0, white)
    values *= 255 / white
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8)).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white_image = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white_image, rgba).convert("RGB")
