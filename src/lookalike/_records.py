"""Build dataclasses from parsed JSON, which may have been written by anyone."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def read_record(cls: type[T], value: Any) -> T:
    """Undo `dataclasses.asdict` and JSON; `ValueError` names a missing or unknown field or one of the wrong type.

    Fields may be text, numbers, booleans, dataclasses, tuples and mappings of these, or None. A field with a default
    may be missing.
    """
    record: T = _read_dataclass(cls, value, cls.__name__)
    return record


def _read_dataclass(cls: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r:.60}, not an object")
    hints = get_type_hints(cls)
    required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
    missing, unknown = sorted(required - set(value)), sorted(set(value) - set(hints))
    if missing or unknown:
        raise ValueError(f"{name} has no {missing[0]!r}" if missing else f"{name} has an unknown {unknown[0]!r:.60}")
    return cls(**{field: _read(hints[field], part, field) for field, part in value.items()})


def _read(hint: Any, value: Any, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return None if value is None else _read(inner, value, name)
    if is_dataclass(hint):
        return _read_dataclass(hint, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is ... and {type(part) for part in value} <= {arguments[0]}:  # one type, often thousands
            return tuple(value)
        hints = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(hints) == len(value):
            return tuple(_read(hint, part, name) for hint, part in zip(hints, value, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _read(arguments[1], part, f"{name} {key!r:.60}") for key, part in value.items()}
    if hint is float and type(value) is int:
        value = float(value)
    if not (hint is Any or (value in arguments if origin is Literal else type(value) is hint)):
        expected = " or ".join(map(repr, arguments)) if origin is Literal else getattr(hint, "__name__", hint)
        raise ValueError(f"{name} is {value!r:.60}, expected {expected}")
    return value
