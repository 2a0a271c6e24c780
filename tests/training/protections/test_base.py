"""Protections are switched on by a run's rules."""

from __future__ import annotations

import pytest

from splitsec import Privacy, RunSettings
from splitsec.errors import ConfigError
from splitsec.training.protections import protections_of
from splitsec.training.protections.activation_guard import ActivationGuard
from splitsec.training.protections.nopeek import NoPeek
from splitsec.training.server.privacy import Budgeting


def test_without_rules_there_are_none() -> None:
    assert protections_of(Privacy(), 3) == ()


def test_each_rule_switches_on_its_own() -> None:
    rules = Privacy(activation_clip=1.0, nopeek=0.5)
    assert [type(protection) for protection in protections_of(rules, 3)] == [ActivationGuard, NoPeek]


@pytest.mark.parametrize(
    ("name", "why"), [("blur:1", "there is no protection 'blur'"), ("nopeek", "settings of its own")]
)
def test_the_server_refuses_a_name_that_switches_nothing_on(name: str, why: str) -> None:
    settings = RunSettings(clients=("a", "b"), privacy=Privacy(protection=name))
    with pytest.raises(ConfigError, match=why):
        Budgeting(settings, {})
