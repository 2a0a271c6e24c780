"""Runs of virtual clients: layouts of combining, drop-outs, and going on after being killed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import model, part, world
from torch import nn
from torch.nn import functional as F

from splitsec import Part, RunSettings, SplitModel
from splitsec.data.loaders import Loader
from splitsec.errors import ConfigError, PartyTimeoutError, RandomnessError
from splitsec.local import simulation
from splitsec.local.simulation import Simulated, SimulationSettings, simulate
from splitsec.training.client.training import Training
from splitsec.training.server.rounds import Rounds
from splitsec.training.server.state import RunParts

CUT = "1"
NAMES = ("client-1", "client-2", "client-3")


def _parts(rows: tuple[int, ...] = (12, 20, 9), names: tuple[str, ...] = NAMES) -> dict[str, Part]:
    return {name: part(seed, rows=count) for seed, (name, count) in enumerate(zip(names, rows, strict=True), 1)}


def _simulate(
    cut: str = CUT,
    *,
    parts: dict[str, Part] | None = None,
    make: Callable[[], nn.Module] = model,
    drop: float = 0.0,
    checkpoints: Path | None = None,
    repeatable: bool = True,
    **settings: Any,
) -> tuple[Simulated, SplitModel]:
    parts = _parts() if parts is None else parts
    split = SplitModel(make(), cut)
    begin = [one for one in (split.front, split.head) if one is not None]
    plan = RunSettings(**{"clients": tuple(parts), "epochs": 3, "batch_size": 4, **settings})
    tail = copy.deepcopy(split.tail)
    found = simulate(
        tail,
        lambda _name: copy.deepcopy(begin),
        parts,
        cut=cut,
        settings=plan,
        how=SimulationSettings(seed=5, drop=drop, checkpoints=checkpoints, repeatable=repeatable),
    )
    split.tail.load_state_dict(tail.state_dict())
    return found, split


def _same(one: tuple[Simulated, SplitModel], other: tuple[Simulated, SplitModel]) -> bool:
    states = [
        {f"{name}.{key}": value for name, segments in run.segments.items() for key, value in _state(segments).items()}
        | {f"tail.{key}": value for key, value in split.tail.state_dict().items()}
        for run, split in (one, other)
    ]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][key]) for key, value in states[0].items()
    )


def _state(segments: Any) -> dict[str, torch.Tensor]:
    return {key: value for segment in segments for key, value in segment.state_dict().items()}


def _with_dropout() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(6, 5),
        nn.Dropout(0.2),
        nn.Linear(5, 3),
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"batches_in_flight": 3}, {"steps_per_round": 2}, {"aggregation": "relay"}, {"aggregation": "none"}],
)
@pytest.mark.parametrize("cut", ["1", "1,4"])
def test_a_simulation_is_the_run_of_separate_parties(cut: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """The same seeds at parties with sockets of their own end in the same weights, to the bit."""
    from splitsec.local.simulation import SERVER_SEED
    from splitsec.randomness import derived_seed

    parts = _parts(rows=(12, 20), names=NAMES[:2])
    found, split = _simulate(cut, parts=parts, batch_size=8, epochs=2, **settings)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with world(tmp_path, cut=cut, settings=settings, seed=derived_seed("tail", 5 + SERVER_SEED)) as here:
            made = {name: SplitModel(model(), cut) for name in parts}

            def train(name: str) -> Callable[[], None]:
                def run() -> None:
                    with here.client(name, made[name].front, head=made[name].head, cut=cut) as client:
                        client.train(parts[name], seed=derived_seed(name, 5), repeatable=True)
                        client.leave()

                return run

            assert here.together(*map(train, parts)) == [None, None]
    finally:
        torch.set_num_threads(threads)
    for name, segments in found.segments.items():
        mine = _state([one for one in (made[name].front, made[name].head) if one is not None])
        assert all(torch.equal(mine[key], value) for key, value in _state(segments).items())
    tail = here.split.tail.state_dict()
    assert all(torch.equal(tail[key], value) for key, value in split.tail.state_dict().items())


def test_a_relay_is_one_client_after_the_other_in_plain() -> None:
    parts = _parts()
    found, split = _simulate(aggregation="relay", epochs=1)
    whole = SplitModel(model(), CUT)
    tail = torch.optim.Adam(whole.tail.parameters(), lr=2e-3)
    for name, mine in parts.items():
        front = torch.optim.Adam(whole.front.parameters(), lr=2e-3)
        loader = Loader(
            mine.train_images,
            mine.train_labels,
            batch_size=4,
            seed=simulation.derived_seed(name, 5),
        )
        for step in range(loader.per_epoch):
            images, labels, _ = loader.batch(step)
            for optimizer in (tail, front):
                optimizer.zero_grad()
            F.cross_entropy(whole(images), labels).backward()
            for optimizer in (tail, front):
                optimizer.step()
    for segments in found.segments.values():
        for key, value in whole.front.state_dict().items():
            torch.testing.assert_close(_state(segments)[key], value)
    torch.testing.assert_close(split.tail.state_dict(), whole.tail.state_dict())


def test_fedprox_holds_clients_and_momentum_carries_the_average() -> None:
    begin = torch.cat([parameter.detach().flatten() for parameter in SplitModel(model(), CUT).front.parameters()])

    def moved(**settings: Any) -> float:
        found, _ = _simulate(**settings)
        end = torch.cat([parameter.detach().flatten() for parameter in found.segments["client-1"][0].parameters()])
        return float((end - begin).norm())

    free = moved()
    assert moved(proximal=100.0) < 0.8 * free
    assert moved(server_momentum=0.9) > 1.2 * free


def test_the_learning_rate_falls_along_a_cosine() -> None:
    settings = RunSettings(clients=("a", "b"), learning_rate=0.1, decay=True)
    assert [round(settings.rate(number, 4), 4) for number in range(4)] == [0.1, 0.0854, 0.05, 0.0146]
    assert RunSettings(clients=("a", "b"), learning_rate=0.1).rate(3, 4) == 0.1
    assert not _same(_simulate(), _simulate(decay=True))


def test_with_one_step_a_round_clients_step_together() -> None:
    found, _ = _simulate(steps_per_round=1)
    # 41 samples in batches of 4 at 3 clients: 4 steps an epoch.
    assert [done.round for done in found.rounds] == list(range(1, 13))
    states = [_state(segments) for segments in found.segments.values()]
    assert all(torch.equal(states[0][key], other[key]) for other in states for key in other)


@pytest.mark.parametrize("cut", ["1", "1,4"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_who_drops_out_neither_stalls_nor_spoils_a_round(
    cut: str, in_flight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each average is the plain one of those whose uploads arrived, whoever was missing."""
    uploaded: dict[str, torch.Tensor] = {}
    errors = []
    upload, close_round = Training._upload, Rounds._close

    def watch_upload(self: Any) -> list[torch.Tensor]:
        uploaded[self._learner.name] = self._learner.state.flat()
        return upload(self)

    def watch_end(self: Rounds, combined: list[torch.Tensor], names: Any, now: float) -> None:
        weights = {name: self._state.members[name].samples for name in names}
        expected = sum(uploaded[name] * weight for name, weight in weights.items()) / sum(weights.values())
        errors.append(float((combined[0][: len(expected)] - expected).abs().max()))
        close_round(self, combined, names, now)

    monkeypatch.setattr(Training, "_upload", watch_upload)
    monkeypatch.setattr(Rounds, "_close", watch_end)
    names = tuple(f"client-{number}" for number in range(1, 7))
    parts = _parts((12, 20, 9, 8, 15, 11), names)
    found, _ = _simulate(cut, parts=parts, epochs=9, batches_in_flight=in_flight, drop=0.5)
    assert len(found.rounds) == len(errors) == 9
    assert max(errors) < 2**-16
    # In every round somebody; who vanishes after its upload is not missing in the average.
    assert found.dropped >= 9
    assert sum(len(done.dropped) for done in found.rounds) >= 9
    assert max(len(done.dropped) for done in found.rounds) < 6


def test_too_few_left_end_the_run_by_name() -> None:
    with pytest.raises(PartyTimeoutError, match=r"client-\d is gone in round 1; .*the minimum is 3"):
        _simulate(minimum_clients=3, drop=0.34)


def test_wrong_settings_are_refused() -> None:
    for wrong, reason in (
        ({"minimum_clients": 4}, "must lie between 2 and the 3 clients"),
        ({"steps_per_round": -1}, "from 1 on"),
        ({"batches_in_flight": 0}, "from 1 to 16"),
        ({"server_momentum": 1.0}, "below 1"),
        ({"aggregation": "none", "proximal": 1.0}, "need averages"),
        ({"compression": "zip"}, "unknown compression 'zip'"),
        ({"clients": ("a", "a")}, "different names"),
    ):
        with pytest.raises(ConfigError, match=reason):
            _simulate(**wrong)
    with pytest.raises(ConfigError, match="not those of the run"):
        _simulate(clients=("a", "b", "c"))


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batches_in_flight": 2, "server_momentum": 0.5, "decay": True},
        {"aggregation": "relay"},
        {"steps_per_round": 2},
    ],
)
def test_killed_at_any_moment_a_run_ends_like_one_that_never_was(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _simulate(make=_with_dropout, cut="3", **settings)
    deliver_one = simulation._Simulation._deliver_one
    count = 0

    def counted(self: Any) -> None:
        nonlocal count
        count += 1
        deliver_one(self)

    monkeypatch.setattr(simulation._Simulation, "_deliver_one", counted)
    _simulate(make=_with_dropout, cut="3", **settings)
    total = count
    for number, kill in enumerate(range(3, total, max(1, total // 7))):
        count = 0

        def killed(self: Any, kill: int = kill) -> None:
            nonlocal count
            count += 1
            if count == kill:
                raise _Killed
            deliver_one(self)

        directory = tmp_path / str(number)
        monkeypatch.setattr(simulation._Simulation, "_deliver_one", killed)
        with pytest.raises(_Killed):
            _simulate(make=_with_dropout, cut="3", checkpoints=directory, **settings)
        monkeypatch.setattr(simulation._Simulation, "_deliver_one", deliver_one)
        resumed = _simulate(make=_with_dropout, cut="3", checkpoints=directory, **settings)
        assert _same(whole, resumed), kill
        # And once more, when there is nothing left to do.
        assert _same(whole, _simulate(make=_with_dropout, cut="3", checkpoints=directory, **settings))


def test_control_another_seed_ends_otherwise() -> None:
    assert not _same(_simulate(), _simulate(batch_size=5))


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    _simulate(checkpoints=tmp_path)
    with pytest.raises(ConfigError, match="of another run: batch_size is 4 there and 8 here"):
        _simulate(checkpoints=tmp_path, batch_size=8)
    # Without the server's the run begins anew, whatever clients still have of the earlier one.
    for path in (tmp_path / "server").iterdir():
        path.unlink()
    assert _same(_simulate(), _simulate(checkpoints=tmp_path))
    _simulate(checkpoints=tmp_path / "none", aggregation="none")
    for path in (tmp_path / "none" / "client-2").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="client-2 can go on from round 0 .* not of one run"):
        _simulate(checkpoints=tmp_path / "none", aggregation="none")


def test_a_client_that_lost_its_checkpoints_goes_on_with_the_average(tmp_path: Path) -> None:
    _simulate(checkpoints=tmp_path)
    for path in (tmp_path / "client-2").iterdir():
        path.unlink()
    found, _ = _simulate(checkpoints=tmp_path)
    states = [_state(segments) for segments in found.segments.values()]
    assert all(torch.equal(states[0][key], other[key]) for other in states for key in other)


def test_the_dealers_minimum_counts_in_a_simulation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunParts, "minimum", 1)
    with pytest.raises((RandomnessError, PartyTimeoutError), match="needs at least 2"):
        _simulate(drop=0.67, epochs=1)
