"""A protection of another package, through an entry point: the page on it runs, and it does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.plugins import installed_from
from torch import nn

from splitsec import Privacy
from splitsec.errors import ConfigError
from splitsec.training.protections import PROTECTIONS, protections_of


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-a-protection.md", tmp_path, monkeypatch, PROTECTIONS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "KeepLargest in 2 rounds" in capsys.readouterr().out


def test_half_of_the_values_are_zeros_and_without_it_none(installed: str) -> None:
    torch.manual_seed(0)
    front, rows = nn.Linear(4, 8), torch.randn(5, 4)
    # The control.
    assert front(rows).count_nonzero() == 40
    (protection,) = protections_of(Privacy(protection="keep_largest:0.5"), 5)
    protection.attach(front)
    assert front(rows).count_nonzero() == 20


def test_an_argument_that_is_no_fraction_is_refused(installed: str) -> None:
    for argument in ("", "2", "half"):
        with pytest.raises(ConfigError, match="write a fraction"):
            protections_of(Privacy(protection=f"keep_largest:{argument}"), 5)


def test_without_the_package_it_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no protection 'keep_largest'; choose one of: activation_guard"):
        protections_of(Privacy(protection="keep_largest:0.5"), 5)
