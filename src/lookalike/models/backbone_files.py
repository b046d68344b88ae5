"""Backbones in files of the user, `onnx:FILE` and `hf:FOLDER`: their names, and how their images are prepared.

A name may end in settings, `onnx:dino.onnx?size=224&pool=cls`. They override those in a JSON file next to the model,
which is a record of ours or a `preprocessor_config.json` of transformers.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from lookalike._files import digest, file_digest, read_json
from lookalike.errors import LookalikeError, ModelError, OptionError
from lookalike.models.info import ONNX, TRANSFORMERS, Library
from lookalike.models.preprocessing import Preprocessing

SCHEMES: Mapping[str, Library] = {"onnx": ONNX, "hf": TRANSFORMERS}
POOLS = ("cls", "mean")
_PREPROCESSING = ("size", "mean", "std", "interpolation", "crop_pct", "crop_mode")
_SETTINGS = (*_PREPROCESSING, "output", "pool")
_PROCESSOR_KEYS = ("image_mean", "image_std", "do_resize", "do_normalize", "resample", "image_processor")
_PILLOW_NAMES = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
_MAX_JSON_BYTES = 1 << 20


def without_folders(name: str) -> str:
    """Return the name of a model without the folders of the files in it: `onnx:models/a.onnx` is `onnx:a.onnx`."""
    return re.sub(rf"\b({'|'.join(SCHEMES)}):[^+?]*/", r"\1:", name)


@dataclass(frozen=True)
class BackboneFile:
    """A model in a file or folder of the user."""

    name: str  # what the user typed
    library: Library  # onnx or transformers
    path: Path  # the file or folder
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)  # by name, as text: those in the name

    def require(self) -> None:
        """Raise `ModelError` if it does not exist, or is a folder for a file, or the reverse."""
        kind, exists = ("file", self.path.is_file()) if self.library == ONNX else ("folder", self.path.is_dir())
        if not exists:
            problem = f"is not a {kind}" if self.path.exists() else "does not exist"
            raise ModelError(f"{self.name}: {self.path} {problem}; pass the {kind} of the model.", argument="backbone")

    def refused(self, problem: str) -> ModelError:
        """Return the error of a file or folder that cannot be used."""
        return ModelError(f"{self.name} cannot be used: {problem}.", argument="backbone")

    def files(self) -> Iterator[Path]:
        """Return the files that decide its features, as far as they exist, in the order of their names."""
        if self.library == ONNX:
            yield self.path
            yield from sorted(self.path.parent.glob(f"{self.path.name}*.data"))
            yield from (file for file in self._records() if file.is_file())
        else:
            yield from sorted(f for f in self.path.iterdir() if f.suffix in (".json", ".safetensors") and f.is_file())

    def digest(self) -> str:
        """Return the digest of its settings and of the content of its files."""
        self.require()
        return digest(
            repr(sorted(self.settings.items())), *(part for f in self.files() for part in (f.name, file_digest(f)))
        )

    def _records(self) -> list[Path]:
        names = (f"{self.path.name}.json", f"{self.path.stem}.json", "preprocessor_config.json")
        return [self.path.with_name(name) for name in names]

    def read_settings(self) -> dict[str, Any]:
        """Return the settings in the JSON file next to an ONNX file, and those in the name, which override them."""
        record = next((file for file in self._records() if file.is_file()), None)
        settings = {} if record is None else self.parse_record(record, _read_small_json(record))
        return {**settings, **{key: _parse_setting(self.name, key, text) for key, text in self.settings.items()}}

    def parse_record(self, file: Path, record: Any) -> dict[str, Any]:
        """Return the settings in the content of a JSON file."""
        if not isinstance(record, dict):
            raise ModelError(f"{file} must hold one JSON object, got {type(record).__name__}.", argument="backbone")
        try:
            if any(key in record for key in _PROCESSOR_KEYS):
                return processor_settings(record)
            unknown = sorted(set(record) - set(_SETTINGS))
            if unknown:
                raise ValueError(f"{unknown[0]!r} is not one of {', '.join(_SETTINGS)}")
            return {key: _checked(key, value) for key, value in record.items()}
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise ModelError(f"{file} cannot be used for {self.name} ({error}).", argument="backbone") from error

    def preprocessing(self, settings: Mapping[str, Any], size: tuple[int, int] | None) -> Preprocessing:
        """Return the preprocessing of these settings, and log which of them are defaults; `size` is the graph's."""
        height, width = settings.get("size") or size or (224, 224)
        values = {key: settings[key] for key in _PREPROCESSING[1:] if key in settings}
        try:
            preprocessing = Preprocessing(height, width, **values)
        except ModelError as error:
            raise self.refused(str(error).rstrip(".")) from error
        missing = [key for key in ("mean", "std", "interpolation", "crop_pct") if key not in settings]
        if settings.get("crop_mode", "center") != "center" and "crop_pct" in missing:
            missing.remove("crop_pct")
        missing += ["size"] if settings.get("size") is None and size is None else []
        if missing:
            logging.getLogger("lookalike").warning(
                "%s: no record of %s; the defaults are those of ImageNet: %s; write them to %s.json",
                *(self.name, ", ".join(missing), describe(preprocessing), self.path),
            )
        return preprocessing


def parse_backbone_file(name: str) -> BackboneFile | None:
    """Return the file and settings of a name such as `onnx:FILE?size=224`; None for any other name.

    Raises:
        ModelError: no path, or an unknown setting.
    """
    scheme, separator, rest = name.partition(":")
    if not separator or scheme not in SCHEMES:
        return None
    text, _, query = rest.partition("?")
    settings = dict(parse_qsl(query, keep_blank_values=True)) if query else {}
    allowed = _SETTINGS if SCHEMES[scheme] == ONNX else ()
    unknown = [key for key in settings if key not in allowed] or ([query] if query and not settings else [])
    problem = f"write {scheme}:PATH" if not text else ""
    if unknown:
        problem = f"{unknown[0]!r} is not one of the settings {', '.join(allowed)}"
        problem = problem if allowed else f"a folder takes no settings; remove ?{query}"
    if problem:
        raise ModelError(f"the backbone {name!r} is not valid: {problem}.", argument="backbone")
    return BackboneFile(name, SCHEMES[scheme], Path(text).expanduser(), settings)


def require_pretrained(file: BackboneFile, weights: str | Path) -> None:
    """Raise `OptionError` for other weights than those in the file."""
    if str(weights) != "pretrained":
        raise OptionError(
            f"`weights` is {weights}, but {file.name} has weights of its own; omit it.", argument="weights"
        )


def describe(preprocessing: Preprocessing) -> str:
    """Return the values of a preprocessing in one line, as they are written in a JSON file."""
    p = preprocessing
    values = f"mean {list(p.mean)}, std {list(p.std)}, interpolation {p.interpolation}, crop_pct {p.crop_pct:g}"
    return f"size {p.height} × {p.width}, {values}"


def _read_small_json(file: Path) -> Any:
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise ModelError(f"{file} has more than {_MAX_JSON_BYTES:,} bytes, too many for settings.", argument="backbone")
    try:
        return read_json(file, "settings of a model")
    except LookalikeError as error:
        raise ModelError(str(error), argument="backbone") from error


def _parse_setting(name: str, key: str, text: str) -> Any:
    try:
        if key == "size":
            parts = [int(part) for part in text.lower().replace("x", ",").split(",")]
            return _checked(key, parts if len(parts) > 1 else parts[0])
        if key in ("mean", "std"):
            return _checked(key, [float(part) for part in text.split(",")])
        return _checked(key, float(text) if key == "crop_pct" else text)
    except ValueError as error:
        raise ModelError(
            f"the backbone {name!r} is not valid: {key} is {text!r} ({error}).", argument="backbone"
        ) from error


def _checked(key: str, value: Any) -> Any:
    """Return a setting as the type that it has in a `Preprocessing`; raise `ValueError` for another one."""
    if key == "size":
        sides = value if isinstance(value, list | tuple) else [value, value]
        if len(sides) != 2 or not all(type(side) is int for side in sides):
            raise ValueError(f"size must be one number, or height and width, got {value!r:.60}")
        return tuple(sides)
    if key in ("mean", "std"):
        numbers = value if isinstance(value, list | tuple) else [value]
        numbers = [float(number) for number in numbers] * (3 if len(numbers) == 1 else 1)
        if len(numbers) != 3:
            raise ValueError(f"{key} must be one number or three, got {value!r:.60}")
        return tuple(numbers)
    if key == "crop_pct":
        return float(value)
    if not isinstance(value, str):
        raise ValueError(f"{key} must be a text, got {value!r:.60}")
    if key == "pool" and value not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, got {value!r:.60}")
    return value


def processor_settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in the configuration of an image processor of transformers, or raise `ValueError`.

    A size with a shortest edge is resized to it and cropped, any other one is squashed. Scaling by another factor than
    1/255, or none, becomes part of mean and standard deviation.
    """
    record = record.get("image_processor", record)
    for key in ("do_flip_channel_order", "do_convert_bgr", "do_center_crop_with_padding", "rescale_offset"):
        if record.get(key):
            raise ValueError(f"{key} is not supported")
    settings: dict[str, Any] = {}
    scale = 255 * float(record.get("rescale_factor", 1 / 255)) if record.get("do_rescale", True) else 255.0
    normalized = record.get("do_normalize", True)
    if not normalized or "image_mean" in record:
        mean = _checked("mean", record["image_mean"]) if normalized else (0.0,) * 3
        settings["mean"] = tuple(value / scale for value in mean)
    if not normalized or "image_std" in record:
        std = _checked("std", record["image_std"]) if normalized else (1.0,) * 3
        settings["std"] = tuple(value / scale for value in std)
    if record.get("resample") is not None:
        number = int(record["resample"])
        if number not in _PILLOW_NAMES:
            raise ValueError(f"resample {number} is not supported, only {', '.join(map(str, _PILLOW_NAMES))}")
        settings["interpolation"] = _PILLOW_NAMES[number]
    return {**settings, **_processor_size(record)}


def _processor_size(record: Mapping[str, Any]) -> dict[str, Any]:
    size, crop = _sides(record.get("size")), _sides(record.get("crop_size"))
    shortest = isinstance(record.get("size"), int) or "shortest_edge" in (record.get("size") or {})
    cropped = crop if record.get("do_center_crop", crop is not None) else None
    if record.get("do_resize", True) and size is not None:
        if not shortest and cropped in (None, size):
            return {"size": size, "crop_mode": "squash", "crop_pct": 1.0}
        if not shortest and size[0] != size[1]:
            raise ValueError(f"a crop after resizing to {size} is not supported")
        cropped = cropped or size
        mode = "center" if shortest else "squash"
        return {"size": cropped, "crop_mode": mode, "crop_pct": _crop_pct(cropped[0], size[0])}
    return {} if cropped is None else {"size": cropped, "crop_mode": "center", "crop_pct": 1.0}


def _sides(size: Any) -> tuple[int, int] | None:
    if isinstance(size, Mapping):
        sides = size.get("shortest_edge") or [size.get("height"), size.get("width")]
        if sides == [None, None]:
            raise ValueError(f"a size of {', '.join(size) or 'nothing'} is not supported")
        size = sides
    return None if size is None else _checked("size", size)


def _crop_pct(crop: int, resized: int) -> float:
    """Return the share at which `floor(crop / share)` is the resized side in spite of rounding."""
    share = crop / resized
    while share > 0 and math.floor(crop / share) < resized:
        share = math.nextafter(share, 0)
    return share
