"""Filters: compared with a plain evaluation per item, written and read again, and refused with a position."""

import math
import random
import unicodedata

import numpy as np
import pytest

from lookalike.errors import OptionError
from lookalike.index.filters import (
    MAX_DEPTH,
    MAX_LENGTH,
    And,
    Condition,
    Filter,
    IdColumn,
    Not,
    Or,
    ValueColumn,
    is_value,
    read_number,
)

NAMES = ("year", "colour", "sold", "a name", "größe", "In", "`\\'")
VALUES = (0, 1, -3, 2020, 2020.5, 1e300, -0.0, True, False, "hat", "Hut ", "", "it's", 'a "b"', "\\", "né\n", "2020")


class Table:
    """Items as dictionaries, for filters."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def column(self, name):
        if name == "id":
            ids = [item["id"] for item in self.items]
            return IdColumn(ids, lambda text: ids.index(text) if text in ids else -1)
        values = [item.get(name) for item in self.items]
        return None if all(value is None for value in values) else ValueColumn(values, len(values))


def fits(tree, item):
    """The obvious evaluation: one item, with Python's own operators."""
    match tree:
        case Not(child):
            result = not fits(child, item)
        case And(children):
            result = all(fits(child, item) for child in children)
        case Or(children):
            result = any(fits(child, item) for child in children)
        case Condition(name, operator, operand):
            result = compares(item.get(name), operator, operand)
    return result


def compares(value, operator, operand):
    present = not (value is None or (isinstance(value, float) and math.isnan(value)))
    if operator in ("is none", "is not none"):
        return present == (operator == "is not none")
    if operator in ("in", "not in"):
        return present and any(same(value, other) for other in operand) == (operator == "in")
    if operator in ("==", "!="):
        return present and same(value, operand) == (operator == "==")
    return present and kind(value) == kind(operand) and eval(f"value {operator} operand")


def kind(value):
    return type(value) if isinstance(value, str | bool) else float


def same(first, second):
    return kind(first) == kind(second) and first == second


def random_tree(rng, depth=3):
    choice = rng.random()
    if depth and choice < 0.15:
        return Not(random_tree(rng, depth - 1))
    if depth and choice < 0.6:
        node = And if choice < 0.4 else Or
        children = [random_tree(rng, depth - 1) for _ in range(rng.randint(2, 3))]
        return node(tuple(part for child in children for part in (child.children if type(child) is node else [child])))
    name = rng.choice((*NAMES, "id", "label"))
    values = [v for v in VALUES if isinstance(v, str) or name not in ("id", "label")]
    operator = rng.choice(("==", "!=", "<", "<=", ">", ">=", "in", "not in", "is none", "is not none"))
    if operator.startswith("is"):
        return Condition(name, operator, None)
    if operator.endswith("in"):
        return Condition(name, operator, tuple(rng.choices(values, k=rng.randint(1, 4))))
    if operator in ("==", "!="):
        return Condition(name, operator, rng.choice(values))
    return Condition(name, operator, rng.choice([v for v in values if not isinstance(v, bool)]))


def random_items(rng, count):
    return [
        {"id": f"{n}" if n % 3 else VALUES[-1] * n}
        | {name: rng.choice((*VALUES, None, math.nan)) for name in (*NAMES, "label") if rng.random() < 0.7}
        for n in range(count)
    ]


def test_it_is_true_of_the_items_of_the_obvious_evaluation():
    rng = random.Random(0)
    items = random_items(rng, 60)
    shares = []
    for _ in range(400):
        tree = random_tree(rng)
        mask = tree.mask(Table(items))
        assert mask.tolist() == [fits(tree, item) for item in items], str(tree)
        shares.append(mask.mean())
    assert 0.2 < np.mean(shares) < 0.8  # neither nearly all nor nearly none


def test_it_reads_what_it_writes():
    rng = random.Random(1)
    for _ in range(400):
        tree = random_tree(rng)
        assert repr(Filter.parse(str(tree))) == repr(tree)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("label == 'hat'", Condition("label", "==", "hat")),
        ('x!="a"', Condition("x", "!=", "a")),
        ("year>=-2.5e1", Condition("year", ">=", -25.0)),
        ("x < .5", Condition("x", "<", 0.5)),
        ("x == 007", Condition("x", "==", 7)),
        ("sold == TRUE", Condition("sold", "==", True)),
        ("x in [1, 'a', false,]", Condition("x", "in", (1, "a", False))),
        ("x not in ['a']", Condition("x", "not in", ("a",))),
        ("x is None", Condition("x", "is none", None)),
        ("x is not none", Condition("x", "is not none", None)),
        ("`a name` is none", Condition("a name", "is none", None)),
        ("`not` is none", Condition("not", "is none", None)),
        (r"x == 'it\'s \\ \"'", Condition("x", "==", "it's \\ \"")),
        ("größe == 'é'", Condition("größe", "==", "é")),
        (
            "a == 1 or b == 2 AND not c == 3",
            Or(
                (
                    Condition("a", "==", 1),
                    And((Condition("b", "==", 2), Not(Condition("c", "==", 3)))),
                )
            ),
        ),
        (
            "(a == 1 or (b == 2)) and c == 3",
            And((Or((Condition("a", "==", 1), Condition("b", "==", 2))), Condition("c", "==", 3))),
        ),
        ("((a == 1 and b == 2) and c == 3)", And(tuple(Condition(n, "==", v) for v, n in enumerate("abc", 1)))),
    ],
)
def test_it_reads_the_language(text, tree):
    assert repr(Filter.parse(text)) == repr(tree)


def test_values_of_different_types_are_different_filters():
    assert Filter.parse("x == 1") != Filter.parse("x == true")
    assert Filter.parse("x == 1") == Filter.parse(" `x`==1 ")
    assert len({Filter.parse("x == 1"), Filter.parse("(x == 1)"), Filter.parse("x == 1.0")}) == 2


def test_it_names_what_it_compares():
    assert Filter.parse("a == 1 and (not b in [1] or `c d` is none) and a > 0").names() == {"a", "b", "c d"}


def test_a_missing_value_fits_no_comparison():
    items = [{"id": "0", "year": 2019}, {"id": "1", "year": 2020}, {"id": "2"}]

    def ids(text):
        return [str(n) for n in np.flatnonzero(Filter.parse(text).mask(Table(items)))]

    assert ids("year == 2020") == ["1"]
    assert ids("year != 2020") == ["0"]
    assert ids("not year == 2020") == ["0", "2"]
    assert ids("year not in [2020]") == ["0"]
    assert ids("year < 3000") == ["0", "1"]
    assert ids("year is none") == ["2"]
    assert ids("other == 1 or other != 1 or other < 1 or other in [1]") == []
    assert ids("other is none") == ["0", "1", "2"]


def test_text_is_compared_in_one_unicode_form_and_ids_as_they_are():
    composed, decomposed = "é", unicodedata.normalize("NFD", "é")
    table = Table([{"id": decomposed, "label": decomposed}, {"id": composed, "label": composed}])
    for text in (composed, decomposed):
        assert Filter.parse(f"label == '{text}'").mask(table).tolist() == [True, True]
    assert Filter.parse(f"id == '{decomposed}'").mask(table).tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 1),
        ("   ", 4),
        ("label", 6),
        ("label ==", 9),
        ("label = 'hat'", 7),
        ("label == hat", 10),
        ("label == 'hat", 10),
        ("label == 'hat\\'", 10),
        ("label == 'a\\d'", 10),
        ("label == 3", 10),
        ("id in ['a', 3]", 13),
        ("label == `hat`", 10),
        ("`` == 1", 1),
        ("`a == 1", 1),
        ("year == none", 9),
        ("year == nan", 9),
        ("year == inf", 9),
        ("year == 1e999", 9),
        ("year == 9007199254740993", 9),
        ("year == " + "9" * 1900, 9),
        ("year == 12px", 9),
        ("year == 1.2.3", 9),
        ("year == -", 9),
        ("year == ٣", 9),
        ("year in []", 10),
        ("year in [1 2]", 12),
        ("year in (1, 2)", 9),
        ("year not 3", 10),
        ("year is 3", 9),
        ("year < true", 8),
        ("1 < year", 1),
        ("1 < year < 3", 1),
        ("year > 1 < 3", 10),
        ("year > 1 and", 13),
        ("and year > 1", 1),
        ("year > 1)", 9),
        ("(year > 1", 10),
        ("year > 1 && sold == true", 10),
        ("year > 1 | year < 0", 10),
        ("! year > 1", 1),
        ("year > 1; drop table items", 9),
        ("__import__('os')", 11),
        ("x == 1 -- comment", 8),
        ("a.b == 1", 2),
        ("\0 == 1", 1),
        ("x == '\udcff' \x1b[31m", 10),
        ("\u202ex == 1", 1),
        ("(" * (MAX_DEPTH + 1) + "x == 1" + ")" * (MAX_DEPTH + 1), MAX_DEPTH + 1),
        ("not " * (MAX_DEPTH + 1) + "x == 1", 4 * MAX_DEPTH + 1),
        ("(" * 1000, MAX_DEPTH + 1),
    ],
)
def test_what_is_not_a_filter_is_refused_with_the_position(text, position):
    with pytest.raises(OptionError, match=f"at character {position}: ") as refused:
        Filter.parse(text)
    assert refused.value.argument == "where"
    message = str(refused.value)
    assert message.isprintable() and len(message) < 200


def test_a_filter_has_a_greatest_length():
    names = " or ".join(["x == 1"] * 200)
    assert len(Filter.parse(names[:1996]).names()) == 1
    with pytest.raises(OptionError, match="2001 characters, at most 2000"):
        Filter.parse("x" * (MAX_LENGTH + 1))


def test_the_greatest_depth_is_allowed():
    text = "(" * MAX_DEPTH + "x == 1" + ")" * MAX_DEPTH
    assert Filter.parse(text) == Filter.parse("x == 1")
    assert Filter.parse("not " * MAX_DEPTH + "x == 1").mask(Table([{"id": "a", "x": 1}])).tolist() == [True]


def test_no_text_raises_anything_but_a_refusal():
    rng = random.Random(2)
    pieces = ["x", "'a'", '"', "'", "`", "(", ")", "[", ",", "==", "<", "=", " not ", " in ", " is ", "none", " and "]
    pieces += ["1", "-", ".5", "1e9", "true", "\\", "\0", "\n", "é", "\ud800", "💥"]
    read = 0
    for _ in range(3000):
        text = str(random_tree(rng))
        for _ in range(rng.randint(1, 3)):
            position = rng.randrange(len(text) + 1)
            text = text[:position] + rng.choice(pieces) + text[position + rng.randint(0, 2) :]
        try:
            tree = Filter.parse(text)
        except OptionError as error:
            assert str(error).startswith("`where` cannot be read at character ")
        else:
            read += 1
            assert Filter.parse(str(tree)) == tree
    assert 100 < read < 2900


@pytest.mark.parametrize("value", ["", "a", 0, 2**53, -(2**53), 0.5, True])
def test_metadata_may_hold(value):
    assert is_value(value)


@pytest.mark.parametrize("value", [None, 2**53 + 1, math.nan, math.inf, [1], {"a": 1}, b"a"])
def test_metadata_may_not_hold(value):
    assert not is_value(value)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("-12", -12), ("1.50", 1.5), ("2e3", 2000), (" 7 ", 7), ("0.25", 0.25), ("9007199254740992", 2**53)]
    + [(text, None) for text in ("", "007", "1_000", "nan", "inf", "0x1", "1,5", "٣", "9007199254740993", "1e999")],
)
def test_the_number_that_a_cell_writes(text, number):
    assert read_number(text) == number
