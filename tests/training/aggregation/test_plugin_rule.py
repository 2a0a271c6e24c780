"""A rule of another package, through an entry point: the page on it runs, and the rule does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.plugins import installed_from

from splitsec import RunSettings
from splitsec.errors import ConfigError
from splitsec.settings.run import RULE_TRAITS, check_run_settings
from splitsec.training.aggregation import RULES


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-a-rule.md", tmp_path, monkeypatch, RULES, RULE_TRAITS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "2 rounds by the rule of another package" in capsys.readouterr().out


def test_every_client_counts_the_same(installed: str) -> None:
    vectors = {"large": torch.tensor([1.0, 3.0]).double(), "small": torch.tensor([3.0, 5.0]).double()}
    members: dict[str, Any] = {
        name: SimpleNamespace(samples=rows, parameters=2) for name, rows in (("large", 9), ("small", 1))
    }

    def combined(rule: str) -> torch.Tensor:
        settings = RunSettings(clients=("large", "small"), aggregation=rule)
        check_run_settings(settings)
        server, client = RULES.get(rule).server(settings), RULES.get(rule).client
        weight = {name: client.weight(None, hello.samples) for name, hello in members.items()}  # type: ignore[attr-defined]
        uploads = {name: torch.round(vector * 2**24).long() * weight[name] for name, vector in vectors.items()}
        no_masks = torch.zeros(2, dtype=torch.int64)
        return server.combine(uploads, no_masks, members, learning_rate=0.1, expected=1.0)

    torch.testing.assert_close(combined("equal"), torch.tensor([2.0, 4.0]).double())
    # The control: an average weighs by samples.
    torch.testing.assert_close(combined("average"), torch.tensor([1.2, 3.2]).double())


def test_without_the_package_the_rule_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match="there is no rule of aggregation 'equal'; choose one of: average, relay, none"
    ):
        check_run_settings(RunSettings(clients=("a", "b"), aggregation="equal"))
