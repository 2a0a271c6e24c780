"""A client's half of a run before and around its rounds: the greeting, the welcome, an alignment of rows."""

from __future__ import annotations

import copy

import pytest
import torch
from support.parties_in_threads import CUT, model, part

from splitsec import RunSettings, SplitModel
from splitsec.data.columns import Columns
from splitsec.errors import ConfigError, MessageError, RandomnessError, RestartedError
from splitsec.party_names import SERVER
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.messages import Aligned, Combined, Hello, Points, RunSeed, SeedsLost, Waiting, Welcome
from splitsec.transport import NO_TENSORS


def _run(data: object = None) -> ClientRun:
    front = copy.deepcopy(SplitModel(model(), CUT).front)
    run = ClientRun([front], part() if data is None else data, Participation("a", CUT, seed=1), checkpoints=None)  # type: ignore[arg-type]
    (hello,) = run.begin()
    assert hello.to == SERVER
    assert isinstance(hello.body, Hello)
    return run


def _welcome(**settings: object) -> Welcome:
    plan = RunSettings(**{"clients": ("a", "b"), "epochs": 1, "batch_size": 4, **settings})  # type: ignore[arg-type]
    return Welcome("0" * 32, "1" * 32, plan, 0, 1)


def test_before_the_welcome_nothing_else_is_due() -> None:
    run = _run()
    assert run.handle(Waiting(), NO_TENSORS) == []
    assert (run.done, run.welcome, run.protection) == (False, None, None)
    with pytest.raises(MessageError, match="Combined was not due"):
        run.handle(Combined(0, 0.0, 0.0), NO_TENSORS)


def test_rows_do_not_fit_a_run_of_columns() -> None:
    with pytest.raises(
        ConfigError, match="a has rows of the data, but the server's run is one of clients with columns"
    ):
        _run().handle(_welcome(join="concat"), {"combined": None})


def test_a_dealer_that_was_started_again_is_told_to_the_server_and_other_errors_end_the_run() -> None:
    run = _run()
    run.handle(_welcome(), {"combined": None})
    (lost,) = run.dealer_failed(RestartedError("unknown"))
    assert lost.body == SeedsLost("1" * 32)
    with pytest.raises(RandomnessError):
        run.dealer_failed(RandomnessError("no"))


def test_columns_are_aligned_before_the_first_round() -> None:
    values = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    columns = Columns(tuple(map(str, range(12))), values, torch.arange(12) % 3)
    run = _run(columns)
    run.handle(_welcome(join="concat"), {"combined": None})
    (points,) = run.handle(RunSeed(b"a" * 16, (b"b" * 16,)), NO_TENSORS)
    assert points.body == Points("a")
    assert points.tensors["points"].shape == (12, 32)
    with pytest.raises(MessageError, match="Aligned was not due"):
        run.handle(Aligned(12), NO_TENSORS)
