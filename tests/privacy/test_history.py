from pathlib import Path

import pytest
import torch

from splitsec.errors import ConfigError
from splitsec.privacy.accounting import epsilon_of
from splitsec.privacy.history import SALT, RunHistory, epsilon_together
from splitsec.privacy.ledger import CLIENT, NOISY, RECORD, Ledger, ledger_path


def _rows(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop, dtype=torch.float32).view(-1, 1, 1) * torch.ones(1, 2, 3)


def _run(directory: Path, number: int, records: torch.Tensor | list[str] | None, mechanism: str = RECORD) -> Ledger:
    data = "" if records is None else RunHistory(directory).note(records)
    ledger = Ledger("ada", f"{number:032x}", 3.0, 1e-5, "rdp", data=data)
    ledger.charge(mechanism, covers="x", noise=1.2, rate=0.1, steps=10, parameters={})
    ledger.save(ledger_path(directory, ledger.run))
    return ledger


def _sharing(directory: Path, records: torch.Tensor | list[str]) -> list[int]:
    history = RunHistory(directory)
    return [int(one.run, 16) for one in history.sharing(history.note(records), run=f"{99:032x}")]


def test_runs_that_share_a_record_are_found(tmp_path: Path) -> None:
    _run(tmp_path, 1, _rows(0, 10))
    _run(tmp_path, 2, _rows(10, 20))
    assert _sharing(tmp_path, _rows(0, 10)) == [1]
    # Another order, one record more, one in common: nothing of this makes it other data.
    assert _sharing(tmp_path, _rows(0, 10).flip(0)) == [1]
    assert _sharing(tmp_path, _rows(9, 11)) == [1, 2]
    assert _sharing(tmp_path, torch.cat([_rows(3, 4), _rows(50, 60)])) == [1]
    assert _sharing(tmp_path, _rows(20, 30)) == []
    assert _sharing(tmp_path, ["ada", "bob"]) == []


def test_people_are_told_by_their_ids(tmp_path: Path) -> None:
    _run(tmp_path, 1, ["ada", "bob"])
    assert _sharing(tmp_path, ["eve", "bob"]) == [1]
    assert _sharing(tmp_path, ["eve"]) == []


@pytest.mark.parametrize("lost", ["salt", "records", "ledger without data"])
def test_what_cannot_be_told_apart_counts(lost: str, tmp_path: Path) -> None:
    _run(tmp_path, 1, None if lost == "ledger without data" else _rows(0, 10))
    for path in tmp_path.glob(SALT if lost == "salt" else "*.records") if lost != "ledger without data" else ():
        path.unlink()
    assert _sharing(tmp_path, _rows(100, 110)) == [1]


def test_the_salt_is_the_owners_and_fingerprints_do_not_repeat_elsewhere(tmp_path: Path) -> None:
    names = [RunHistory(tmp_path / place).note(_rows(0, 10)) for place in ("a", "b")]
    assert names[0] != names[1]
    files = [(tmp_path / place / f"{name}.records").read_bytes() for place, name in zip("ab", names, strict=True)]
    assert len(files[0]) == 80
    assert files[0] != files[1]
    assert (tmp_path / "a" / SALT).stat().st_mode & 0o777 == 0o600
    # The control: in one directory they do.
    assert RunHistory(tmp_path / "a").note(_rows(0, 10)) == names[0]


def test_a_broken_salt_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / SALT).write_text("no")
    with pytest.raises(ConfigError, match="holds no salt; remove it"):
        RunHistory(tmp_path).note(_rows(0, 1))


def test_what_runs_have_spent_together(tmp_path: Path) -> None:
    ledgers = [_run(tmp_path, 1, _rows(0, 5)), _run(tmp_path, 2, _rows(4, 9), CLIENT), _run(tmp_path, 3, _rows(8, 12))]
    apart = _run(tmp_path, 4, _rows(50, 60), NOISY)
    groups = RunHistory(tmp_path).groups([*ledgers, apart])
    assert [[int(one.run, 16) for one in group] for group in groups] == [[1, 2, 3], [4]]
    together = epsilon_together(groups[0], delta=1e-5, accountant="rdp")
    assert together == epsilon_of([(1.2, 0.1, 30)], delta=1e-5, accountant="rdp")
    # Noise on activations is against the server, and no part of a budget.
    assert epsilon_together([*ledgers, apart], delta=1e-5, accountant="rdp") == together
