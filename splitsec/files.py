"""Writing files so that a crash or a power failure leaves the old content or the new, never a part."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType


class whole_file:
    """A file that is there with all that was written, also after the power fails, or not at all.

    Within the `with` block write to the path that it gives. What was there before stays until the block has ended
    without an error and all of the new content is on the disk. The directory must exist. What is not an ordinary file,
    such as `/dev/stdout`, is written to directly.

    Example:
        >>> with whole_file(path) as partial:
        ...     partial.write_text("all of it")  # doctest: +SKIP
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        ordinary = path.is_file() or not path.exists()
        self._partial = path.with_name(path.name + ".partial") if ordinary else path

    def __enter__(self) -> Path:
        return self._partial

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._partial == self._path:
            return
        if kind is not None:
            self._partial.unlink(missing_ok=True)
            return
        _sync(self._partial)
        os.replace(self._partial, self._path)
        _sync(self._path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
