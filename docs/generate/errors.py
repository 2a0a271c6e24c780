"""The page of exit codes and errors, from `splitsec/errors.py`."""

from __future__ import annotations

import inspect
from collections import defaultdict

from generate.markdown import code, read_docstring, table
from splitsec import errors
from splitsec.errors import SplitsecError

INTRODUCTION = """# Exit codes and errors

Every error that splitsec raises on purpose is of one family, `splitsec.SplitsecError`. Its message is one line that
says what is wrong and what to do. A command prints that line to standard error and exits with the error's code; a
program catches the base class or one of those below. `--verbose` adds the log and the trace.
"""

# Codes that a command exits with and that no error class has.
OTHER_CODES = {
    0: "The command did what it was asked to do.",
    1: "An error that splitsec did not expect: a fault of splitsec, or of a model or a library that it calls.",
    130: "Interrupted (Ctrl-C, or a signal to end); everything that was started has been ended.",
}


def family() -> list[type[SplitsecError]]:
    """Return every error class of `splitsec/errors.py` but the base, in the order of the file."""
    return [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, SplitsecError) and kind is not SplitsecError
    ]


def page() -> str:
    """Return the page as Markdown."""
    by_code: dict[int, list[type[SplitsecError]]] = defaultdict(list)
    for kind in family():
        by_code[kind.exit_code].append(kind)
    parts = [INTRODUCTION]
    for number in sorted({*by_code, *OTHER_CODES}):
        parts.append(f"## {number}\n")
        if number in OTHER_CODES:
            parts.append(OTHER_CODES[number] + "\n")
        if number in by_code:
            parts.append(table(["error", "when"], [(code(kind.__name__), _when(kind)) for kind in by_code[number]]))
    return "\n".join(parts)


def _when(kind: type[SplitsecError]) -> str:
    base = kind.__mro__[1]
    suffix = f" A kind of {code(base.__name__)}." if base is not SplitsecError else ""
    return read_docstring(kind).text + suffix
