"""Compare the arguments of public functions with their annotations: a wrong type is an error in one sentence."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lookalike.errors import OptionError

P = ParamSpec("P")
R = TypeVar("R")

_ACCEPTS: dict[Any, Callable[[Any], bool]] = {
    Any: lambda value: True,  # noqa: ARG005
    Path: lambda value: isinstance(value, str | os.PathLike) and "\0" not in str(value),
    int: lambda value: hasattr(value, "__index__") and not isinstance(value, bool),
    float: lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool),
}
_WORDS = {Path: "a path", str: "a text", int: "an integer", float: "a number", bool: "True or False"}
_COLLECTIONS = (Sequence, Collection, Mapping)


def checked_arguments(**advice: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function raise `OptionError` for an argument that is not of the annotated type.

    A path may be text, but holds no null character. The items of an `Iterable`, which may be read only once, are not
    looked at. `advice` ends the message, by the name of the argument.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        get_types = functools.cache(lambda: typing.get_type_hints(function))  # at the first call: imports stay light

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            kinds = get_types()
            for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
                if not _is_a(kinds.get(name, Any), value):
                    raise _wrong_type(name, value, kinds[name], advice.get(name))
            return function(*args, **kwargs)

        return checked

    return decorate


def _is_a(kind: Any, value: Any) -> bool:
    if kind in _ACCEPTS:
        return _ACCEPTS[kind](value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(member, value) for member in _members(kind))
    if origin in _COLLECTIONS:
        fits = isinstance(value, origin) and not isinstance(value, str | bytes)
        return fits and all(_is_a(inner[-1], item) for item in (value.values() if origin is Mapping else value))
    return isinstance(value, origin or kind)


def _members(union: Any) -> tuple[Any, ...]:
    """Return the types of a union; text that may be a path is one."""
    members = typing.get_args(union)
    return tuple(member for member in members if not (member is str and Path in members))


def _wrong_type(argument: str, value: object, kind: Any, advice: str | None) -> OptionError:
    text = repr(value)
    text = f"{type(value).__name__} {text}" if len(text) <= 60 else type(value).__name__
    if isinstance(value, str | os.PathLike) and "\0" in str(value):
        advice = "a path holds no null character"
    elif isinstance(value, str) and typing.get_origin(kind) in _COLLECTIONS and _is_a(kind, [value]):
        advice = f"write [{value!r}]"
    return OptionError(
        f"`{argument}` must be {_describe(kind)}, got {text}{f'; {advice}' if advice else ''}.", argument=argument
    )


def _describe(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        *first, last = dict.fromkeys(map(_describe, _members(kind)))
        return f"{', '.join(first)} or {last}" if first else last
    if origin is Mapping:
        return f"a mapping, each value {_describe(inner[-1])}"
    if origin in _COLLECTIONS:
        return f"a list, each item {_describe(inner[-1])}"
    if origin is Iterable:
        return "a list"
    if kind is type(None):
        return "None"
    name = getattr(origin or kind, "__name__", str(kind))
    return _WORDS.get(kind, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
