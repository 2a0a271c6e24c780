"""What the parts of a server's run share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.server_parts import NAMES, ServerParts

from splitsec.training.checkpoints import Checkpoints
from splitsec.training.server.state import RunState


def test_a_client_that_is_back_is_present_once() -> None:
    state = RunState(id="1", rounds=1, samples=1, finished=False)
    state.round.active, state.round.idle, state.returning = ["b"], ["c"], {"b", "a"}
    assert state.present == ["b", "c", "a"]


def test_each_run_has_a_start_of_its_own() -> None:
    starts = {RunState(id="1", rounds=1, samples=1, finished=False).start for _ in range(3)}
    assert len(starts) == 3


@pytest.mark.parametrize(("settings", "minimum"), [({}, 2), ({"minimum_clients": 3}, 3), ({"aggregation": "none"}, 1)])
def test_a_round_needs_as_many_clients_as_its_rule_says(settings: dict[str, object], minimum: int) -> None:
    assert ServerParts(**settings).parts.minimum == minimum


def test_a_checkpoint_says_where_the_run_is(tmp_path: Path) -> None:
    run = ServerParts(tmp_path)
    run.state.number, run.state.mark = 1, "m"
    run.parts.save(run.state)
    _, facts = Checkpoints(tmp_path).load(1)
    assert {name: facts[name] for name in ("run", "rounds", "samples", "mark")} == {
        "run": run.state.id,
        "rounds": 2,
        "samples": 36,
        "mark": "m",
    }
    assert len(run.state.members) == len(NAMES)
