"""Every error that Lookalike raises on purpose.

LookalikeError                  base: one sentence that says what, got, allowed, next step
├── DataError                   a folder, manifest or label file that cannot be used
│   └── UnreadableImage         one image file that cannot be decoded (skipped and counted in long work)
├── OptionError                 an argument outside what is allowed
├── ModelError                  a bundle, backbone name or weights that cannot be used
│   ├── WeightsUnavailable      pretrained weights cannot be had here
│   └── FingerprintMismatch     an index or embeddings made by another model
├── StorageError                a file or folder that cannot be written or is not what it should be
└── MissingExtra                an optional package is not installed; names the extra
"""

from __future__ import annotations

from pathlib import Path


class LookalikeError(Exception):
    """Base of all errors raised on purpose; its text is one sentence for the user."""


class DataError(LookalikeError):
    """A data folder, manifest or label file cannot be used."""


class UnreadableImage(DataError):
    """One image file cannot be decoded."""

    def __init__(self, path: Path | str, cause: str) -> None:
        self.path = Path(path)
        self.cause = cause
        super().__init__(f"{path}: {cause}")


class OptionError(LookalikeError):
    """An argument is outside what is allowed."""


class ModelError(LookalikeError):
    """A bundle, a backbone name or weights cannot be used."""


class WeightsUnavailable(ModelError):
    """Pretrained weights cannot be had on this machine."""


class FingerprintMismatch(ModelError):
    """Embeddings or an index come from another model than the one at hand."""


class StorageError(LookalikeError):
    """A file or folder cannot be written, or holds something else than it should."""


class MissingExtra(LookalikeError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; run: pip install 'lookalike[{extra}]'"
        )
