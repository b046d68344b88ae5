"""What errors say about arguments."""

from __future__ import annotations

import pytest

from lookalike.errors import OptionError, describe_error, renamed_argument


def test_an_error_concerns_the_argument_of_the_caller():
    with pytest.raises(OptionError) as caught, renamed_argument("index", "path", "model"):
        raise OptionError("`path` must exist.", argument="path")
    assert (str(caught.value), caught.value.argument) == ("`index` must exist.", "index")


@pytest.mark.parametrize("argument", ["top_k", None])
def test_an_error_that_concerns_something_else_is_unchanged(argument):
    with pytest.raises(OptionError) as caught, renamed_argument("index", "path"):
        raise OptionError("`path` and `top_k`.", argument=argument)
    assert (str(caught.value), caught.value.argument) == ("`path` and `top_k`.", argument)


def test_an_error_is_described_by_its_type_and_first_line() -> None:
    assert describe_error(ValueError("one.\ntwo")) == "ValueError: one"
    assert describe_error(KeyError()) == "KeyError"
    places = "Exception from src/core.cpp:84:\nCheck 'exists(path)' failed at src/frontend.cpp:117:\n"
    assert (
        describe_error(RuntimeError(f"{places}Could not open the file\n\n")) == "RuntimeError: Could not open the file"
    )
    assert len(describe_error(ValueError("x" * 500))) == len("ValueError: ") + 160
