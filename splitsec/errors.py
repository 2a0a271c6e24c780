"""The errors of splitsec: a small family under `SplitsecError`.

Every message is one line that says what is wrong and what to do. The command line prints that line and exits with
`exit_code`; a program can catch the base class.
"""

from __future__ import annotations

# Enough for a list of all layers; another party's text is cut much shorter, see `transport.codec.Refused`.
MOST_TEXT = 4000


def plain_text(text: str, most: int = MOST_TEXT) -> str:
    """Return a text as one line that logs and terminals show as it is: what is not printable is escaped, the end cut.

    Line breaks, escape sequences of terminals, and marks that turn the direction of writing come from other parties
    and from files; each could make one line look like another.
    """
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 3] + "..."


class SplitsecError(Exception):
    """Base of all errors that splitsec raises on purpose; its text is always one line, see `plain_text`."""

    exit_code = 1

    def __str__(self) -> str:
        return plain_text(super().__str__())


class ConfigError(SplitsecError):
    """A setting, option or file that cannot be used as given."""

    exit_code = 2


class CutError(SplitsecError):
    """A cut that does not exist or does not separate front from tail."""

    exit_code = 2


class UnsupportedLayerError(SplitsecError):
    """A layer that has no encrypted form."""

    exit_code = 2


class RangeError(SplitsecError):
    """A value that fixed point cannot hold: not finite, or beyond the bound of its layer."""

    exit_code = 3


class MessageError(SplitsecError):
    """A message of the wrong type, shape, dtype or size."""

    exit_code = 4


class RefusedError(SplitsecError):
    """Another party refused a request; the text is the reason it gave."""

    exit_code = 4


class AuthenticationError(SplitsecError):
    """A key that is missing, wrong or unknown to the other side."""

    exit_code = 5


class PartyTimeoutError(SplitsecError):
    """A party that did not answer within the time limit; the text names it."""

    exit_code = 6


class AddressError(SplitsecError):
    """An address that cannot be bound or reached, such as a port in use or another party's."""

    exit_code = 7


class RandomnessError(SplitsecError):
    """One-time randomness that would be used twice, out of order, or by the wrong party."""

    exit_code = 8


class RestartedError(RandomnessError):
    """A run or session that the dealer no longer knows, since it was started again: begin its seeds anew."""


class BudgetError(SplitsecError):
    """A budget that is spent: of privacy, or of predictions."""

    exit_code = 9


class InsecureProviderError(SplitsecError):
    """An attempt to use one of CrypTen's own sources of randomness."""

    exit_code = 8


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's class if it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def class_and_line(error: BaseException) -> str:
    """Return an error's class and its first line, as in `KeyError: 'x'`."""
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"
