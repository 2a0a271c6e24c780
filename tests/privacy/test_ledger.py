from pathlib import Path

import pytest

from splitsec.errors import ConfigError
from splitsec.privacy.accounting import epsilon_of
from splitsec.privacy.ledger import RECORD, Ledger, Point, find_ledgers, ledger_path, plot_ledgers, read_ledger


def _ledger(**changed: object) -> Ledger:
    return Ledger("client-1", "0123456789abcdef" * 2, 3.0, 1e-5, "prv", **changed)  # type: ignore[arg-type]


def _charge(ledger: Ledger, steps: int, **changed: float) -> float:
    parameters = {"noise": 1.2, "rate": 0.1, **changed}
    return ledger.charge(RECORD, covers="one record", steps=steps, parameters={"clip": 1.0}, **parameters)  # type: ignore[arg-type]


def test_charges_add_up() -> None:
    ledger = _ledger()
    _charge(ledger, 10)
    spent = _charge(ledger, 20)
    assert ledger.steps_of(RECORD) == 30
    assert spent == ledger.spent == epsilon_of([(1.2, 0.1, 30)], delta=1e-5)
    assert len(ledger.entries) == 1


def test_what_has_no_noise_promises_nothing() -> None:
    ledger = _ledger()
    ledger.charge("NoPeek", covers="nothing", noise=0, rate=1.0, steps=3, parameters={})
    assert ledger.entries[0].epsilon is None
    assert ledger.spent == 0


def test_one_mechanism_has_one_noise() -> None:
    ledger = _ledger()
    _charge(ledger, 10)
    with pytest.raises(ConfigError, match="other parameters"):
        _charge(ledger, 10, noise=0.1)


def test_it_is_read_back(tmp_path: Path) -> None:
    ledger = _ledger()
    _charge(ledger, 10)
    ledger.points.append(Point(1, 1.0, 10, ledger.spent, 0.5))
    path = ledger_path(tmp_path / "client-1", ledger.run)
    ledger.save(path)
    assert read_ledger(path) == ledger
    assert find_ledgers(tmp_path) == [ledger] == find_ledgers(path)
    plot_ledgers([ledger], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_what_is_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no ledger in"):
        find_ledgers(tmp_path)
    (tmp_path / "ledger-1.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a ledger"):
        find_ledgers(tmp_path)
