"""What an index may cost."""

import pytest

from lookalike.errors import OptionError
from lookalike.index.budget import Budget, parse_size, size_words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000),
        ("1.5GiB", 1_610_612_736),
        ("2g", 2_000_000_000),
        ("64 kB", 64_000),
        ("300000000", 300_000_000),
        (4096, 4096),
        (".5M", 500_000),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5 bananas", "0", "1,5GB", "5iB"])
def test_what_is_no_size(text):
    with pytest.raises(OptionError, match="a size must be written like 500MB"):
        parse_size(text)


def test_sizes_for_people():
    assert [size_words(n) for n in (12, 2048, 614_400_000, 2_048_000_000)] == [
        "12 bytes",
        "2.05 kB",
        "614 MB",
        "2.05 GB",
    ]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"min_recall": 0}, "min_recall must be above 0 and at most 1, got 0."),
        ({"min_recall": 1.01}, "min_recall must be above 0 and at most 1, got 1.01."),
        ({"max_memory": 0}, "max_memory must be at least 1 byte, got 0."),
        ({"max_ms": 0}, "max_ms must be above 0, got 0."),
        ({"max_ms": float("nan")}, "max_ms must be above 0, got nan."),
    ],
)
def test_what_cannot_be_asked_for(given, sentence):
    with pytest.raises(OptionError) as raised:
        Budget(**given)
    assert str(raised.value) == sentence


def test_a_budget_in_words():
    assert str(Budget.of(0.95, "600MB", 2)) == "recall of at least 0.95, at most 600 MB, at most 2 ms a query"
    assert Budget().exact
    assert not Budget(0.99).exact
