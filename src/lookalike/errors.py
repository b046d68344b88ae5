"""Every error that Lookalike raises on purpose.

LookalikeError                  base: one sentence that says what, got, allowed, next step
├── DataError                   a folder, manifest or label file that cannot be used
│   └── UnreadableImage         one image file that cannot be decoded (skipped and counted in long work)
├── OptionError                 an argument outside what is allowed
├── ModelError                  a bundle, backbone name or weights that cannot be used
│   ├── WeightsUnavailable      pretrained weights are not available on this machine
│   └── FingerprintMismatch     an index or embeddings made by another model
├── PostError                   a submission was not posted, or its answer has no score
├── ServiceError                a service refused a request of the client, or does not answer
├── StorageError                a file or folder that cannot be written or has unexpected content
└── MissingExtra                an optional package is not installed; names the extra

A message names arguments as Python does, in backticks: "`top_k` must be at least 1, got 0.". The command line shows the
flag in their place.
"""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class LookalikeError(Exception):
    """Base of all errors raised on purpose; its text is one sentence for the user.

    Attributes:
        argument: the Python name of the argument that the error concerns, if it concerns one.
    """

    def __init__(self, message: str, *, argument: str | None = None) -> None:
        super().__init__(message)
        self.argument = argument


def describe_error(error: BaseException) -> str:
    """Return the type of an error and the first line of its text that helps a user."""
    # OpenVINO's errors begin with places in its C++ code
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(("Exception from ", "Check '"))]
    return f"{type(error).__name__}: {lines[0].rstrip('.')[:160]}" if lines else type(error).__name__


@contextlib.contextmanager
def renamed_argument(name: str, *inner: str) -> Iterator[None]:
    """Give errors that concern one of the `inner` arguments the name that the caller's own argument has."""
    try:
        yield
    except LookalikeError as error:
        if error.argument in inner:
            error.args = (str(error).replace(f"`{error.argument}`", f"`{name}`"),)
            error.argument = name
        raise


def require_integer(value: object, argument: str) -> int:
    """Return an integer of any type, such as NumPy's; raise `OptionError` for anything else."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise OptionError(f"`{argument}` must be an integer, got {value!r}.", argument=argument) from None


class DataError(LookalikeError):
    """A data folder, manifest or label file cannot be used."""


class UnreadableImage(DataError):
    """One image file cannot be decoded, or, if `temporary`, could not be read for now."""

    def __init__(self, path: Path | str, cause: str, *, temporary: bool = False) -> None:
        self.path = Path(path)
        self.cause = cause
        self.temporary = temporary
        super().__init__(f"{path}: {cause}")


class OptionError(LookalikeError):
    """An argument is outside what is allowed."""


class ModelError(LookalikeError):
    """A bundle, a backbone name or weights cannot be used."""


class WeightsUnavailable(ModelError):
    """Pretrained weights are not available on this machine."""


class FingerprintMismatch(ModelError):
    """Embeddings or an index were made by another model."""


class PostError(LookalikeError):
    """A submission was not posted, or the answer to it has no score."""

    def __init__(self, message: str, *, status: int | None = None, may_be_counted: bool = False) -> None:
        super().__init__(message)
        self.status = status  # of the answer; None without one
        self.may_be_counted = may_be_counted  # whether the server may have counted the submission


class ServiceError(LookalikeError):
    """A service refused a request of the client, or did not answer.

    Attributes:
        status: the HTTP status of the answer; None without one.
        kind: the kind of problem, such as unreadable-image; None if it is unknown.

    """

    def __init__(
        self, message: str, *, status: int | None = None, kind: str | None = None, argument: str | None = None
    ) -> None:
        super().__init__(message, argument=argument)
        self.status = status
        self.kind = kind


class StorageError(LookalikeError):
    """A file or folder cannot be written, or has unexpected content."""


class MissingExtra(LookalikeError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; install lookalike with the extra {extra}"
        )


def import_extra(module: str, extra: str, purpose: str, package: str | None = None) -> Any:
    """Import a module of an optional package, or raise `MissingExtra`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(package or module, extra, purpose) from error
