"""Errors are one line for people, whatever text they are made of."""

import pytest

from splitsec.errors import MOST_TEXT, ConfigError, SplitsecError, class_and_line, first_line, plain_text


def _family(base: type[SplitsecError]) -> list[type[SplitsecError]]:
    return [base, *(member for error in base.__subclasses__() for member in _family(error))]


@pytest.mark.parametrize("error", _family(SplitsecError), ids=lambda error: error.__name__)
def test_an_error_has_an_exit_code_that_is_no_success_and_no_signal(error: type[SplitsecError]) -> None:
    assert 1 <= error.exit_code < 128


def test_the_text_of_an_error_is_one_printable_line_of_limited_length() -> None:
    assert str(ConfigError("a\nb\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}c")) == r"a\nb\x1b[31m\u202ec"
    assert str(ConfigError("größer")) == "größer"
    assert len(str(ConfigError("x" * 10 * MOST_TEXT))) == MOST_TEXT
    assert plain_text("abcdefgh", 6) == "abc..."


@pytest.mark.parametrize(
    ("error", "line", "with_class"),
    [
        (ValueError("bad\nworse"), "bad", "ValueError: bad"),
        (ValueError("\n  bad \n"), "bad", "ValueError: bad"),
        (KeyError("x"), "'x'", "KeyError: 'x'"),
        (AssertionError(), "AssertionError", "AssertionError"),
    ],
)
def test_of_another_librarys_error_the_first_line_is_shown(error: Exception, line: str, with_class: str) -> None:
    assert first_line(error) == line
    assert class_and_line(error) == with_class
