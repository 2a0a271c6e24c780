"""An attack of another package, through an entry point: the page on it runs, and the attack finds what is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.attacked import Steps, target_at
from support.plugins import installed_from

from splitsec.errors import ConfigError
from splitsec.privacy.audit import ATTACKS


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-an-attack.md", tmp_path, monkeypatch, ATTACKS) as code:
        yield code


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    said = capsys.readouterr().out.splitlines()
    assert sum("| nearest image | mean squared error" in line for line in said) == 2


@pytest.mark.usefixtures("installed")
def test_the_nearest_image_is_found_where_the_attacker_has_it_and_not_in_noise(digits: torch.Tensor) -> None:
    attack = ATTACKS.get("nearest")
    twice = target_at("conv1", torch.cat([digits[:40], digits[:40]]))
    finding, steps = attack.run(twice, Steps()), Steps()
    assert finding.rows[0].value == 0
    assert finding.rows[0].leaks
    # The control: noise that hides everything.
    hidden = attack.run(target_at("conv1", torch.cat([digits[:40], digits[:40]]), clip=0.1, noise=100.0), steps)
    assert not hidden.rows[0].leaks
    assert steps.taken == attack.stages(twice)


def test_without_the_package_the_attack_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="there is no attack 'nearest'; choose one of: "):
        ATTACKS.get("nearest")
