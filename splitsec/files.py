"""Writing files so that a crash or a power failure leaves the old content or the new, never a part."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Replace a file by what the `with` block writes to the path that it gets, all of it or nothing.

    What was there before stays until the block has ended without an error and all of the new content is on the disk,
    so that it holds even if the power fails. The directory must exist. What is not an ordinary file, such as
    `/dev/stdout`, is written to directly.

    Example:
        >>> with whole_file(path) as partial:
        ...     partial.write_text("all of it")  # doctest: +SKIP
    """
    if path.exists() and not path.is_file():
        yield path
        return
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
