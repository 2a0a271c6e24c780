import os
from pathlib import Path

import pytest

from splitsec.files import whole_file
from splitsec.privacy.ledger import Ledger


def _log_of_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is synced and replaced, in order; filled while the test runs."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        calls.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def replaced(source: Path, target: Path) -> None:
        calls.append("replace " + target.name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return calls


def test_a_file_is_on_the_disk_before_it_takes_its_place_and_so_is_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _log_of_calls(monkeypatch)
    with whole_file(tmp_path / "x.json") as partial:
        partial.write_text("all")
    assert (tmp_path / "x.json").read_text() == "all"
    assert calls == ["sync x.json.partial", "replace x.json", f"sync {tmp_path.name}"]


def test_a_ledger_survives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _log_of_calls(monkeypatch)
    Ledger("ada", "0" * 32, 3.0, 1e-5, "prv").save(tmp_path / "ledger.json")
    assert calls == ["sync ledger.json.partial", "replace ledger.json", f"sync {tmp_path.name}"]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")

    def write_half() -> None:
        with whole_file(path) as partial:
            partial.write_text("ne")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_ordinary_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with whole_file(pipe) as partial:
        partial.write_text("all")
    assert os.read(reader, 10) == b"all"
    os.close(reader)
    assert pipe.is_fifo()
