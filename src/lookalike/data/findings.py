"""What a check of a data set found, and the data set without it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lookalike._files import require_free, write_csv
from lookalike.data.dataset import Dataset, Item
from lookalike.errors import DataError, OptionError

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        code: its kind, such as `unreadable`, `unlisted`, `contradiction`, `leak` or `near-duplicate`.
        severity: an error makes results wrong, a warning may.
        message: one sentence.
        ids: the items it is about.

    """

    code: str
    severity: Severity
    message: str
    ids: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {"code": self.code, "severity": self.severity, "message": self.message, "ids": list(self.ids)}


@dataclass(frozen=True)
class CheckReport:
    """The outcome of `lookalike.data.check.check`.

    Attributes:
        data: the data set that was checked.
        findings: everything found, in the order of the checks.
        readable: how many of its images could be read.
        dropped: the ids that a clean data set leaves out, each with the reason.

    """

    data: Dataset
    findings: tuple[Finding, ...]
    readable: int
    dropped: Mapping[str, str]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that make results wrong."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that may be harmless."""
        return tuple(f for f in self.findings if f.severity == "warning")

    @property
    def images(self) -> int:
        """Number of images that the data set names."""
        return len(self.data)

    @property
    def exit_code(self) -> int:
        """Return 1 when there are errors, else 0."""
        return 1 if self.errors else 0

    def to_dict(self) -> dict[str, Any]:
        """Return a plain structure for JSON."""
        return {
            "data": str(self.data.root),
            "layout": self.data.layout,
            "images": self.images,
            "readable": self.readable,
            "errors": [f.to_dict() for f in self.errors],
            "warnings": [f.to_dict() for f in self.warnings],
            "dropped": dict(self.dropped),
        }

    def table_rows(self) -> list[tuple[str, str, int, str]]:
        """Return `(severity, code, count, example)` for each kind of finding, errors first."""
        kinds: dict[tuple[str, str], list[Finding]] = {}
        for finding in (*self.errors, *self.warnings):
            kinds.setdefault((finding.severity, finding.code), []).append(finding)
        return [(severity, code, len(found), found[0].message) for (severity, code), found in kinds.items()]

    def clean_items(self) -> tuple[Item, ...]:
        """Return the items to keep.

        Left out are unreadable images, all images of a group with contradictory labels, training copies of test
        images (and of validation images), and all but the first of identical images with one label in one split.
        """
        return tuple(item for item in self.data.items if item.id not in self.dropped)

    def write_clean_manifest(self, path: Path | str) -> Path:
        """Write the items to keep as a manifest that `load_dataset` reads, and return its path.

        Args:
            path: a new `manifest.csv`, or the folder for it. Images under that folder are named relative to it, others
                by their absolute path; metadata columns are kept.

        Raises:
            OptionError: when the file would have another name, by which nothing finds it.
            StorageError: when the file exists or cannot be written.
            DataError: when nothing is left to keep.

        """
        target = clean_manifest_at(path)
        items = self.clean_items()
        if not items:
            raise DataError(f"{self.data.root} has no image left after cleaning, so there is no manifest to write.")
        _require_text(items)
        folder = Path(os.path.abspath(target.parent))  # noqa: PTH100 - resolve() would follow links out of the folder
        more = sorted({name for item in items for name in item.metadata})
        rows = [
            (
                _reference(item.path, folder),
                item.label or "",
                item.split.value,
                *(item.metadata.get(n, "") for n in more),
            )
            for item in items
        ]
        write_csv(target, ("path", "label", "split", *more), rows)
        return target


def clean_manifest_at(path: Path | str) -> Path:
    """Return where a clean manifest would go.

    Raises:
        OptionError: when the file would have another name than manifest.csv.
        StorageError: when it exists or nothing can be written there.

    """
    target = Path(path)
    if target.is_dir() or not target.suffix:
        target /= "manifest.csv"
    if target.name != "manifest.csv":
        raise OptionError(f"a clean manifest must be named manifest.csv to be found in its folder, got {target.name}.")
    require_free(target)
    return target


def _require_text(items: Sequence[Item]) -> None:
    for item in items:
        try:
            item.id.encode()
        except UnicodeEncodeError as error:
            name = os.fsencode(item.id).decode("utf-8", "backslashreplace")
            raise DataError(f"{name} is no valid Unicode, so no manifest can name it; rename the file.") from error


def _reference(path: Path, folder: Path) -> str:
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - as above
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else absolute.as_posix()
