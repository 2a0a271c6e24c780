"""A layer of another package, through an entry point: the page on it runs, and it predicts encrypted as in plain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.encrypted_tail import run_tail
from support.plugins import installed_from
from torch import nn

from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.lowering import LOWERINGS, supported_layers


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-an-encrypted-layer.md", tmp_path, monkeypatch, LOWERINGS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "['linear', 'curve', 'linear'] in" in capsys.readouterr().out
    assert "Softsign" in supported_layers()


def test_encrypted_results_are_the_plain_ones(installed: str) -> None:
    model = nn.Sequential(nn.Softsign(), nn.Flatten()).eval()
    x = torch.linspace(-30, 30, 400).view(4, 100)
    opened, _, _ = run_tail(model, x)
    # Forty knots between -40 and 40, as the page has them.
    assert (opened - model(x)).abs().max() < 0.05


def test_without_the_package_the_layer_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"\(Softsign\) has no encrypted form"):
        run_tail(nn.Sequential(nn.Softsign()), torch.zeros(1, 4))
