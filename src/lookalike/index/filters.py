"""Filters: which items a search may return, written as `label == 'hat' and year >= 2020`.

A filter is parsed into a small immutable tree, which every store translates: a local one into a mask over its items.
Nothing of it is ever executed as Python or SQL.

    filter     = and_filter {"or" and_filter}
    and_filter = negation {"and" negation}
    negation   = "not" negation | "(" filter ")" | comparison
    comparison = name ("==" | "!=" | "<" | "<=" | ">" | ">=") value
               | name ["not"] "in" "[" value {"," value} "]"
               | name "is" ["not"] "none"
    value      = number | string | "true" | "false"
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lookalike.errors import OptionError

Value = str | int | float | bool  # of metadata, and in a filter
Mask = npt.NDArray[np.bool_]  # (n,), whether each item fits

ID, LABEL = "id", "label"  # the names that are not keys of metadata
EXACT_INTEGER = 2**53  # integers up to it are exact as float64, as which all numbers are compared
MAX_LENGTH = 2000  # characters of a filter
MAX_DEPTH = 32  # parentheses and negations inside each other
_MAX_SHOWN = 30  # characters of a filter that an error quotes

_ORDER: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_KEYWORDS = frozenset({"and", "or", "not", "in", "is", "none", "true", "false"})
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<string>'(?:[^'\\]|\\['"`\\])*'|"(?:[^"\\]|\\['"`\\])*")
      | (?P<quoted>`(?:[^`\\]|\\['"`\\])+`)
      | (?P<word>[^\W\d]\w*)
      | (?P<symbol>==|!=|<=|>=|[<>()\[\],])
      | (?P<end>\Z)
    )""",
    re.VERBOSE,
)
_HINTS = {  # by a character that begins no token
    "=": "write == to compare",
    "&": "write 'and'",
    "|": "write 'or'",
    "!": "write 'not', or != to compare",
    "'": "the quote is not closed, or a backslash is not written \\\\",
    '"': "the quote is not closed, or a backslash is not written \\\\",
    "`": "the backtick is not closed, or nothing is inside",
}


class Column(Protocol):
    """The values that items have under one name; a missing value fits no comparison."""

    def present(self) -> Mask:
        """Whether each item has a value."""

    def equals_any(self, values: Sequence[Value]) -> Mask:
        """Whether the value of each item is one of these, of the same kind: text, number or boolean."""

    def compares(self, compare: Callable[[Any, Any], Any], value: str | float) -> Mask:
        """Whether the value of each item is of the same kind, and `compare` is true of it and this one."""


class Columns(Protocol):
    """The values of n items by name."""

    def __len__(self) -> int: ...

    def column(self, name: str) -> Column | None:
        """Return the values under a name; None where no item has one."""


class Filter:
    """Which items to accept, by id, label and metadata; `parse` reads one, `str` writes it so that it reads the same.

    Equal only if each value is of the same type, as `true` and `1` differ.
    """

    @staticmethod
    def parse(text: str) -> Filter:
        """Read a filter, or raise `OptionError` that names the position."""
        if len(text) > MAX_LENGTH:
            raise OptionError(
                f"`where` has {len(text)} characters, at most {MAX_LENGTH} are allowed; write a shorter filter.",
                argument="where",
            )
        return _Parser(text).parse()

    def names(self) -> frozenset[str]:
        """Return the names that it compares."""
        raise NotImplementedError

    def mask(self, columns: Columns) -> Mask:
        """Return whether each item fits, `(n,)`."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return repr(self) == repr(other) if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(repr(self))


@dataclass(frozen=True, eq=False)
class Condition(Filter):
    """The value under a name, compared.

    Attributes:
        name: `id`, `label`, or a key of metadata.
        operator: ==, !=, <, <=, >, >=, in, not in, is none or is not none.
        operand: a value; values, for `in` and `not in`; None, for `is none` and `is not none`.

    """

    name: str
    operator: str
    operand: Value | tuple[Value, ...] | None

    def names(self) -> frozenset[str]:
        """Return the name."""
        return frozenset({self.name})

    def mask(self, columns: Columns) -> Mask:
        """Return whether each item fits, `(n,)`."""
        column = columns.column(self.name)
        if column is None:
            return np.full(len(columns), self.operator == "is none")
        if self.operator == "is none":
            return ~column.present()
        if self.operator == "is not none":
            return column.present()
        if self.operator in _ORDER:
            assert isinstance(self.operand, str | int | float)
            return column.compares(_ORDER[self.operator], self.operand)
        assert self.operand is not None
        equal = column.equals_any(self.operand if isinstance(self.operand, tuple) else (self.operand,))
        return column.present() & ~equal if self.operator in ("!=", "not in") else equal

    def __str__(self) -> str:
        name = self.name if _is_plain_name(self.name) else _quote(self.name, "`")
        if self.operand is None:
            return f"{name} {self.operator}"
        if isinstance(self.operand, tuple):
            return f"{name} {self.operator} [{', '.join(map(_format_value, self.operand))}]"
        return f"{name} {self.operator} {_format_value(self.operand)}"


@dataclass(frozen=True, eq=False)
class Not(Filter):
    """True where a filter is false, and where it compares a missing value."""

    child: Filter

    def names(self) -> frozenset[str]:
        """Return the names that it compares."""
        return self.child.names()

    def mask(self, columns: Columns) -> Mask:
        """Return whether each item fits, `(n,)`."""
        return ~self.child.mask(columns)

    def __str__(self) -> str:
        return f"not {_parenthesized(self.child)}"


@dataclass(frozen=True, eq=False)
class _Several(Filter):
    children: tuple[Filter, ...]  # at least two

    def names(self) -> frozenset[str]:
        """Return the names that it compares."""
        return frozenset().union(*(child.names() for child in self.children))


class And(_Several):
    """True where all of several filters are."""

    def mask(self, columns: Columns) -> Mask:
        """Return whether each item fits, `(n,)`."""
        mask = self.children[0].mask(columns)
        for child in self.children[1:]:
            mask &= child.mask(columns)
        return mask

    def __str__(self) -> str:
        return " and ".join(map(_parenthesized, self.children))


class Or(_Several):
    """True where at least one of several filters is."""

    def mask(self, columns: Columns) -> Mask:
        """Return whether each item fits, `(n,)`."""
        mask = self.children[0].mask(columns)
        for child in self.children[1:]:
            mask |= child.mask(columns)
        return mask

    def __str__(self) -> str:
        return " or ".join(map(_parenthesized, self.children))


def _parenthesized(part: Filter) -> str:
    return f"({part})" if isinstance(part, _Several) else str(part)


def _is_plain_name(name: str) -> bool:
    return re.fullmatch(r"[^\W\d]\w*", name) is not None and name.lower() not in _KEYWORDS


def _quote(text: str, quote: str) -> str:
    escaped = text.replace("\\", "\\\\").replace(quote, f"\\{quote}")
    return f"{quote}{escaped}{quote}"


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def _format_value(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quote(value, "'") if isinstance(value, str) else repr(value)


def normalized(text: str) -> str:
    """Return text in the form in which labels and metadata are compared, Unicode's NFC."""
    return unicodedata.normalize("NFC", text)


def is_value(value: object) -> bool:
    """Whether metadata may hold a value: text, a boolean, or a number that float64 holds exactly."""
    if isinstance(value, float):
        return abs(value) < float("inf")  # false for nan
    return isinstance(value, str | bool) or (isinstance(value, int) and abs(value) <= EXACT_INTEGER)


def read_number(text: str) -> int | float | None:
    """Return the number that a text writes, or None: also for a code such as 007, which is not written as a number."""
    text = text.strip()
    if re.fullmatch(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?", text) is None:
        return None
    number = int(text) if text.lstrip("-").isdecimal() and len(text) < 20 else float(text)
    return number if is_value(number) else None


def checked_metadata(item: str, facts: Mapping[str, Value | None]) -> dict[str, Value | None]:
    """Return the metadata of an item as it is stored, or raise `OptionError` for a value that no filter can compare."""
    for key, value in facts.items():
        if key in (ID, LABEL):
            raise OptionError(f"the metadata of {item!r} has the key {key!r}, which is reserved.", argument="metadata")
        if not (value is None or is_value(value)):
            raise OptionError(
                f"the metadata {key!r} of {item!r} must be text, True, False, None or a number of at most 16 digits, "
                f"got {value!r:.60}.",
                argument="metadata",
            )
    return {normalized(key): value for key, value in facts.items()}


@dataclass(frozen=True)
class _Token:
    kind: str  # number, string, name, end, or the symbol or keyword itself
    text: str
    start: int


def _iter_tokens(text: str) -> Iterator[_Token]:
    position = 0
    while match := _TOKEN.match(text, position):
        kind = match.lastgroup or ""
        token = match[kind]
        start, position = match.start(kind), match.end()
        if kind == "quoted":
            yield _Token("name", _unquote(token), start)
        elif kind == "word":
            yield _Token(token.lower() if token.lower() in _KEYWORDS else "name", token, start)
        else:
            yield _Token(token if kind == "symbol" else kind, token, start)
        if kind == "end":
            return
    position += len(text[position:]) - len(text[position:].lstrip())
    part = text[position : position + _MAX_SHOWN]
    cause = "this is not a number" if part[0] in "-.0123456789" else _HINTS.get(part[0], "this has no meaning here")
    raise _refused(position, f"{cause}: {part!r}")


def _refused(start: int, cause: str) -> OptionError:
    return OptionError(f"`where` cannot be read at character {start + 1}: {cause}.", argument="where")


class _Parser:
    """Reads one filter by recursive descent."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_iter_tokens(text))
        self._next = 0
        self._depth = 0

    def parse(self) -> Filter:
        tree = self._several("or")
        if self._token.kind != "end":
            raise self._unexpected("'and', 'or' or the end")
        return tree

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *kinds: str) -> _Token | None:
        """Return the next token and pass it, if it is of one of these kinds."""
        token = self._token
        if token.kind not in kinds:
            return None
        self._next += 1
        return token

    def _require(self, *kinds: str, what: str) -> _Token:
        token = self._take(*kinds)
        if token is None:
            raise self._unexpected(what)
        return token

    def _unexpected(self, expected: str) -> OptionError:
        token = self._token
        shown = "the end" if token.kind == "end" else repr(token.text[:_MAX_SHOWN])
        return _refused(token.start, f"expected {expected}, got {shown}")

    def _several(self, word: str) -> Filter:
        """Read filters joined by a word; those inside parentheses that the same word joins are joined too."""
        kind: type[_Several] = Or if word == "or" else And
        children: list[Filter] = []
        while True:
            child = self._several("and") if word == "or" else self._negation()
            children += child.children if isinstance(child, kind) else [child]
            if self._take(word) is None:
                return kind(tuple(children)) if len(children) > 1 else children[0]

    def _negation(self) -> Filter:
        opening = self._take("not", "(")
        if opening is None:
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _refused(opening.start, f"more than {MAX_DEPTH} parentheses and negations inside each other")
        if opening.kind == "not":
            tree: Filter = Not(self._negation())
        else:
            tree = self._several("or")
            self._require(")", what="'and', 'or' or ')'")
        self._depth -= 1
        return tree

    def _comparison(self) -> Filter:
        name = normalized(self._require("name", what="a name, 'not' or '('").text)
        if self._take("is"):
            negated = self._take("not")
            self._require("none", what="none")
            return Condition(name, "is not none" if negated else "is none", None)
        if self._take("in"):
            return Condition(name, "in", self._values(name))
        if self._take("not"):
            self._require("in", what="'in'")
            return Condition(name, "not in", self._values(name))
        what = "==, !=, <, <=, >, >=, 'in', 'not in', 'is none' or 'is not none'"
        compared = self._require("==", "!=", *_ORDER, what=what).kind
        start = self._token.start
        value = self._value(name)
        if compared in _ORDER and isinstance(value, bool):
            raise _refused(start, f"{compared} compares numbers or text, got {_format_value(value)}")
        return Condition(name, compared, value)

    def _values(self, name: str) -> tuple[Value, ...]:
        self._require("[", what="'['")
        values = [self._value(name)]
        while self._take(",") and self._token.kind != "]":
            values.append(self._value(name))
        self._require("]", what="',' or ']'")
        return tuple(values)

    def _value(self, name: str) -> Value:
        if self._token.kind == "none":
            raise _refused(self._token.start, "none is not a value; write 'is none' or 'is not none'")
        what = "a value: text in quotes, a number, true or false"
        token = self._require("string", "number", "true", "false", what=what)
        if token.kind == "string":
            text = _unquote(token.text)
            return text if name == ID else normalized(text)
        if name in (ID, LABEL):
            raise _refused(token.start, f"{name} is text; write {_quote(token.text, chr(39))}")
        if token.kind != "number":
            return token.kind == "true"
        is_integer = token.text.lstrip("-").isdecimal()
        value: Value = int(token.text) if is_integer else float(token.text)
        if not is_value(value):
            raise _refused(token.start, "the number is too large; numbers have about 16 digits")
        return value


class ValueColumn:
    """Values of any kinds under one name, in order; None and nan are missing.

    Numbers are float64, text is a code per item into the distinct texts.
    """

    def __init__(self, values: Iterable[Value | None], count: int) -> None:
        self._numbers = np.full(count, np.nan)
        self._truths = np.full(count, -1, dtype=np.int8)
        self._codes = np.full(count, -1, dtype=np.int32)  # -1 for what is not text
        self._texts: dict[str, int] = {}
        self._fill(enumerate(values))

    def _fill(self, values: Iterable[tuple[int, Value | None]]) -> None:
        """Set missing values by row."""
        for row, value in values:
            if isinstance(value, str):
                self._codes[row] = self._texts.setdefault(normalized(value), len(self._texts))
            elif isinstance(value, bool | np.bool_):
                self._truths[row] = value
            elif value is not None:
                self._numbers[row] = value

    def take(self, rows: npt.NDArray[np.int64], others: Mapping[int, Value | None]) -> ValueColumn:
        """Return the values in these rows, `(n,)`; where a row is -1, the values of `others` by position."""
        column, old, texts = ValueColumn((), len(rows)), rows >= 0, list(self._texts)
        column._numbers[old] = self._numbers[rows[old]]
        column._truths[old] = self._truths[rows[old]]
        codes = np.where(old, self._codes[rows], -1)
        used = np.unique(codes[codes >= 0])  # texts that no item has any more are dropped
        column._codes[:] = np.where(codes >= 0, np.searchsorted(used, codes), -1)
        column._texts = {texts[code]: number for number, code in enumerate(used.tolist())}
        column._fill(others.items())
        return column

    def present(self) -> Mask:
        """Whether each item has a value."""
        mask: Mask = (self._codes >= 0) | (self._truths >= 0) | ~np.isnan(self._numbers)
        return mask

    def equals_any(self, values: Sequence[Value]) -> Mask:
        """Whether the value of each item is one of these."""
        codes = [self._texts[value] for value in values if isinstance(value, str) and value in self._texts]
        truths = [value for value in values if isinstance(value, bool)]
        numbers = [float(value) for value in values if not isinstance(value, str | bool)]
        mask = self._text_mask(codes)
        if truths:
            mask |= np.isin(self._truths, truths)
        if numbers:
            mask |= np.isin(self._numbers, numbers)
        return mask

    def compares(self, compare: Callable[[Any, Any], Any], value: str | float) -> Mask:
        """Whether the value of each item is of the same kind, and `compare` is true of it and this one."""
        if isinstance(value, str):
            return self._text_mask([code for text, code in self._texts.items() if compare(text, value)])
        mask: Mask = compare(self._numbers, float(value))  # nan compares false
        return mask

    def _text_mask(self, codes: Sequence[int]) -> Mask:
        allowed = np.zeros(len(self._texts) + 1, dtype=bool)  # the last for -1
        allowed[codes] = True
        mask: Mask = allowed[self._codes]
        return mask


class IdColumn:
    """The ids of items: distinct, and compared as they are; `find` returns the position of an id, or -1."""

    def __init__(self, ids: Sequence[str], find: Callable[[str], int]) -> None:
        self._ids = ids
        self._find = find

    def present(self) -> Mask:
        """Whether each item has a value: all have."""
        return np.ones(len(self._ids), dtype=bool)

    def equals_any(self, values: Sequence[Value]) -> Mask:
        """Whether the value of each item is one of these."""
        mask = np.zeros(len(self._ids), dtype=bool)
        rows = [self._find(value) for value in values if isinstance(value, str)]
        mask[[row for row in rows if row >= 0]] = True
        return mask

    def compares(self, compare: Callable[[Any, Any], Any], value: str | float) -> Mask:
        """Whether `compare` is true of the id of each item and this text."""
        return np.fromiter((compare(item, value) for item in self._ids), dtype=bool, count=len(self._ids))


class ItemColumns:
    """The columns of items that are held as mappings by id; each is made when a filter first needs it.

    `ids` are distinct, and `find` returns the position of one, or -1.
    """

    def __init__(
        self,
        ids: Sequence[str],
        find: Callable[[str], int],
        labels: Mapping[str, str],
        metadata: Mapping[str, Mapping[str, Value | None]],
    ) -> None:
        self._ids, self._find = ids, find
        self._labels, self._metadata = labels, metadata
        self._columns: dict[str, Column | None] = {ID: IdColumn(ids, find)}

    def __len__(self) -> int:
        return len(self._ids)

    def column(self, name: str) -> Column | None:
        """Return the values under a name; None where no item has one."""
        if name not in self._columns:
            values: Mapping[str, Value | None] = self._labels
            if name != LABEL:
                values = {item: facts[name] for item, facts in self._metadata.items() if name in facts}
            self._columns[name] = None
            if values:
                self._columns[name] = ValueColumn(map(values.get, self._ids), len(self._ids))
        return self._columns[name]
