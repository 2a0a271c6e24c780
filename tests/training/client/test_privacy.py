"""Runs with a privacy budget: virtual clients, and clients over real sockets."""

from __future__ import annotations

import copy
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from opacus.accountants import PRVAccountant
from support.parties_in_threads import model, part, world
from torch import nn

from splitsec import Part, RunSettings, SplitModel, Storage
from splitsec.errors import BudgetError, ConfigError, MessageError
from splitsec.events import Dropped
from splitsec.local.simulation import Simulated, SimulationSettings, simulate
from splitsec.privacy.history import epsilon_together
from splitsec.privacy.ledger import CLIENT, NOISY, RECORD, find_ledgers, read_ledger
from splitsec.privacy.plan import PrivacyPlan
from splitsec.settings.privacy import Privacy
from splitsec.settings.run import check_run_settings
from splitsec.training.client import privacy as protecting

NAMES = ("client-1", "client-2", "client-3")
# By the accountant that takes less time; the tests of accounting and the first here have the other.
BY_RECORD: dict[str, Any] = {"steps_per_round": 1, "privacy": Privacy(epsilon=5, delta=1e-3, accountant="rdp")}
# With noise that need not be looked for.
RULES: dict[str, Any] = {"steps_per_round": 1, "privacy": Privacy(epsilon=5, delta=1e-3, noise=2.0, accountant="rdp")}


def _parts(rows: tuple[int, ...] = (12, 20, 9)) -> dict[str, Part]:
    return {name: part(seed, rows=count) for seed, (name, count) in enumerate(zip(NAMES, rows, strict=True), 1)}


def _run(
    cut: str = "1",
    *,
    drop: float = 0.0,
    checkpoints: Path | None = None,
    ledgers: Path | None = None,
    epsilon_limit: float = 0.0,
    parts: dict[str, Part] | None = None,
    **settings: Any,
) -> tuple[Simulated, SplitModel]:
    split = SplitModel(model(), cut)
    begin = [one for one in (split.front, split.head) if one is not None]
    plan = RunSettings(**{"clients": NAMES, "epochs": 3, "batch_size": 4, **settings})
    found = simulate(
        split.tail,
        lambda _name: copy.deepcopy(begin),
        _parts() if parts is None else parts,
        cut=cut,
        settings=plan,
        how=SimulationSettings(
            seed=5, drop=drop, checkpoints=checkpoints, ledgers=ledgers, epsilon_limit=epsilon_limit, repeatable=True
        ),
    )
    return found, split


def _weights(segments: Any) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for segment in segments for parameter in segment.parameters()])


@pytest.mark.parametrize("cut", ["1", "1,3"])
def test_the_epsilon_of_a_run_is_opacuss_for_the_same_steps(cut: str) -> None:
    found, _ = _run(cut, steps_per_round=1, privacy=Privacy(epsilon=5, delta=1e-3))
    # 41 samples in steps of 12 on average: 4 steps an epoch, 3 epochs.
    ledger = found.ledgers["client-2"]
    entry = ledger.entries[0]
    assert (entry.mechanism, entry.rate, entry.steps) == (RECORD, 0.25, 12)
    accountant = PRVAccountant()
    for _ in range(12):
        accountant.step(noise_multiplier=entry.noise, sample_rate=0.25)
    assert entry.epsilon == pytest.approx(accountant.get_epsilon(1e-3), abs=1e-6)
    assert 4.9 < ledger.spent <= 5
    assert [point.steps for point in ledger.points] == [4, 8, 12]
    against = ledger.against_another_client()
    assert against is not None
    assert against > ledger.spent


@pytest.mark.parametrize("cut", ["1", "1,3"])
def test_all_clients_have_the_same_front_and_no_losses_are_told(cut: str) -> None:
    found, split = _run(cut, **BY_RECORD)
    fronts = [_weights(found.segments[name]) for name in NAMES]
    assert all(torch.equal(front, fronts[0]) for front in fronts)
    assert torch.isfinite(fronts[0]).all()
    assert not any(hasattr(parameter, "grad_sample") for parameter in split.tail.parameters())


def test_two_runs_of_one_seed_differ_by_the_noise() -> None:
    first, second = (_run(**BY_RECORD)[0].segments["client-1"] for _ in range(2))
    assert not torch.equal(_weights(first), _weights(second))
    # The control: without a budget they are the same.
    first, second = (_run()[0].segments["client-1"] for _ in range(2))
    assert torch.equal(_weights(first), _weights(second))


@pytest.mark.parametrize("changed", [{}, {"compression": "bfloat16"}, {"compression": "topk:0.5"}])
def test_clients_that_drop_out_and_come_back(changed: dict[str, Any]) -> None:
    found, _ = _run(drop=0.34, **BY_RECORD, **changed)
    assert found.dropped
    fronts = [_weights(found.segments[name]) for name in NAMES]
    assert all(torch.equal(front, fronts[0]) for front in fronts)
    # Who was started again has forgotten everything, and its ledger says what the run has cost all the same.
    assert [ledger.steps_of(RECORD) for ledger in found.ledgers.values()] == [12] * 3
    assert all(4.9 < ledger.spent <= 5 for ledger in found.ledgers.values())


@pytest.mark.parametrize("combine", ["average", "none"])
def test_noise_of_each_clients_own(combine: str) -> None:
    rules = Privacy(epsilon=5, delta=1e-3, local=True, accountant="rdp")
    found, _ = _run(aggregation=combine, privacy=rules)
    assert found.ledgers["client-1"].steps_of(RECORD) == 12
    assert found.ledgers["client-1"].against_another_client() is None


@pytest.mark.parametrize("cut", ["1", "1,3"])
def test_a_budget_by_client(cut: str) -> None:
    rules = Privacy(epsilon=5, delta=1e-2, unit="client", accountant="rdp")
    found, _ = _run(cut, privacy=rules, epochs=4)
    entry = found.ledgers["client-3"].entries[0]
    assert (entry.mechanism, entry.rate, entry.steps) == (CLIENT, 1.0, 4)
    assert entry.epsilon is not None
    assert entry.epsilon <= 5
    fronts = [_weights(found.segments[name]) for name in NAMES]
    assert all(torch.equal(front, fronts[0]) for front in fronts)


def test_a_client_moves_the_average_by_its_clip_at_most() -> None:
    rules = Privacy(epsilon=1e7, delta=1e-2, unit="client", clip=0.01, noise=1e-3, accountant="rdp")
    split = SplitModel(model(), "1")
    begun = _weights([split.front])
    found, _ = _run(privacy=rules, epochs=1, learning_rate=0.5)
    moved = float((_weights(found.segments["client-1"]) - begun).norm())
    assert moved <= 0.01 * rules.front_fraction * 1.1
    # The control: without a clip it goes far.
    free, _ = _run(epochs=1, learning_rate=0.5)
    assert float((_weights(free.segments["client-1"]) - begun).norm()) > 0.5


def test_activations_are_guarded_and_charged() -> None:
    rules = Privacy(activation_clip=1.0, activation_noise=0.5, nopeek=0.3)
    found, _ = _run(privacy=rules)
    entries = {entry.mechanism: entry for entry in found.ledgers["client-1"].entries}
    assert set(entries) == {NOISY, "NoPeek"}
    # Each row is sent once an epoch; every release counts.
    assert entries[NOISY].steps == 3
    assert entries[NOISY].epsilon is not None
    assert entries[NOISY].epsilon > 50
    front = found.segments["client-1"][0].eval()
    assert front(torch.randn(9, 4) * 100).norm(dim=1).max().item() <= 1 + 1e-5


def test_a_run_stops_before_it_would_exceed_its_budget(tmp_path: Path) -> None:
    """With noise for less than all of its rounds."""
    whole, _ = _run(**BY_RECORD)
    noise = whole.ledgers["client-1"].entries[0].noise
    tight = Privacy(epsilon=4, delta=1e-3, noise=noise, accountant="rdp")
    found, _ = _run(steps_per_round=1, privacy=tight)
    taken = found.ledgers["client-1"].steps_of(RECORD)
    assert 0 < taken < 12
    assert found.ledgers["client-1"].spent <= 4
    assert tight.epsilon < PrivacyPlan(noise, 0.25, 1, 4).epsilon(tight, taken + 1)
    with pytest.raises(BudgetError, match="is spent: 0 of 0 steps"):
        _run(steps_per_round=1, privacy=Privacy(epsilon=0.01, delta=1e-3, noise=0.5, accountant="rdp"))


def test_runs_over_the_same_data_add_up_and_a_limit_ends_them(tmp_path: Path) -> None:
    first, _ = _run(ledgers=tmp_path, **RULES)
    second, _ = _run(ledgers=tmp_path, **RULES)
    one, two = first.ledgers["client-1"], second.ledgers["client-1"]
    assert two.earlier == [one.run]
    # Opacus's own composition of the steps of both.
    assert two.together == pytest.approx(epsilon_together([one, two], delta=1e-3, accountant="rdp"))
    assert two.spent == one.spent == one.together < two.together < 2 * one.spent
    # A run over other records does not count.
    other = {name: part(seed + 50) for seed, name in enumerate(NAMES)}
    third, _ = _run(ledgers=tmp_path, parts=other, **RULES)
    assert third.ledgers["client-1"].earlier == []
    limit = two.together + 0.5
    wanted = rf"may spend epsilon {limit:g} over all runs: 2 earlier ones have spent {two.together:.3f}, this one wants"
    with pytest.raises(BudgetError, match=wanted):
        _run(ledgers=tmp_path, epsilon_limit=limit, **RULES)
    # It was refused before its first step: nothing is charged. The control: without a limit it runs.
    assert len(list((tmp_path / "client-1").glob("ledger-*.json"))) == 3
    fourth, _ = _run(ledgers=tmp_path, **RULES)
    assert fourth.ledgers["client-1"].together > limit


def test_a_limit_needs_a_budget_and_a_place_for_ledgers(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="this run has no budget"):
        _run(ledgers=tmp_path, epsilon_limit=3)
    with pytest.raises(ConfigError, match="say where they are kept"):
        _run(epsilon_limit=3, **BY_RECORD)
    with pytest.raises(ConfigError, match="an epsilon of -1"):
        _run(ledgers=tmp_path, epsilon_limit=-1, **BY_RECORD)


@pytest.mark.parametrize("run", ["../../../tmp/x", "0" * 31 + "/", "0" * 33, "A" * 32, ""])
def test_the_servers_name_of_a_run_does_not_choose_a_path(run: str, tmp_path: Path) -> None:
    from splitsec.parties.messages import server_codec
    from splitsec.training.client.privacy import ClientPrivacy
    from splitsec.training.messages import Welcome

    settings = RunSettings(clients=NAMES, **BY_RECORD)
    welcome = Welcome(run, "start", settings, 0, 12, False, PrivacyPlan(5.0, 0.25, 1, 4))
    with pytest.raises(MessageError, match="run"):
        server_codec.decode(server_codec.encode(welcome))
    keep = {"records": torch.zeros(12, 4), "trained": torch.ones(3, dtype=torch.bool), "directory": tmp_path / "deep"}
    with pytest.raises(MessageError, match="32 hexadecimal digits"):
        ClientPrivacy("client-1", welcome, **keep)  # type: ignore[arg-type]
    assert not list(tmp_path.rglob("*"))
    # The control: with a name as servers give it, there is a ledger.
    protection = ClientPrivacy("client-1", msgspec.structs.replace(welcome, run="0" * 32), **keep)  # type: ignore[arg-type]
    protection.begin_round(lambda: torch.zeros(3), [])
    assert (tmp_path / "deep" / f"ledger-{'0' * 32}.json").exists()


def test_what_is_lost_when_a_run_is_killed_is_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Exception):
        pass

    count = 0
    begin = protecting.ClientPrivacy.begin_round

    def dying(self: protecting.ClientPrivacy, *rest: Any) -> None:
        nonlocal count
        count += 1
        if count == 16:
            raise Killed
        begin(self, *rest)

    monkeypatch.setattr(protecting.ClientPrivacy, "begin_round", dying)
    with pytest.raises(Killed):
        _run(checkpoints=tmp_path, **BY_RECORD)
    monkeypatch.undo()
    found, _ = _run(checkpoints=tmp_path, **BY_RECORD)
    # The round that was killed was charged, and the one before it, which not all had ended: two steps less are left.
    assert len(find_ledgers(tmp_path)) == 3
    for ledger in found.ledgers.values():
        assert ledger.spent <= 5
        assert ledger.steps_of(RECORD) <= 12
    assert found.rounds[-1].rounds == 10
    # A finished run is not trained further.
    again, _ = _run(checkpoints=tmp_path, **BY_RECORD)
    assert not again.rounds


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps_per_round": None}, "steps_per_round = 1"),
        ({"aggregation": "relay"}, "steps_per_round = 1"),
        ({"batches_in_flight": 2}, "batches_in_flight = 1"),
        ({"server_momentum": 0.5}, "server_momentum = 0"),
        ({"proximal": 0.5}, "proximal = 0"),
        ({"join": "concat", "aggregation": "none", "steps_per_round": None}, "columns are joined"),
        ({"layout": "model_parts", "epochs": 0}, "trained by its client alone"),
        ({"privacy": Privacy(epsilon=3, unit="client"), "aggregation": "none"}, "lies in the average"),
        ({"privacy": Privacy(epsilon=-1)}, "privacy.epsilon = -1: write a number above 0"),
    ],
)
def test_settings_that_cannot_keep_a_budget(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_run_settings(RunSettings(**{"clients": NAMES, **BY_RECORD, **changed}))


def test_batch_norm_is_refused_at_either_side() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    torch.manual_seed(0)
    for cut in ("0", "1", "2"):
        split = SplitModel(normed(), cut)
        with pytest.raises(ConfigError, match=r"batch norm.*with_group_norm"):
            simulate(
                split.tail,
                lambda _name, split=split: copy.deepcopy([split.front]),
                _parts(),
                cut=cut,
                settings=RunSettings(clients=NAMES, **BY_RECORD),
                how=SimulationSettings(seed=0),
            )


@pytest.mark.parametrize(
    "rules", [BY_RECORD["privacy"], Privacy(epsilon=5, delta=1e-2, unit="client", accountant="rdp")]
)
def test_what_is_not_trained_stays_as_it_is(rules: Privacy) -> None:
    """Noise would ruin frozen weights and constants."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.learning = nn.Linear(4, 6), nn.Linear(6, 5)
            self.last = nn.Linear(5, 3)
            self.frozen.requires_grad_(False)
            self.register_buffer("mean", torch.full((4,), 0.25))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.learning(self.frozen(x - self.mean)))

    torch.manual_seed(0)
    split = SplitModel(Normed(), "learning")
    begun = {name: one.clone() for name, one in split.front.state_dict().items()}
    settings = RunSettings(
        clients=NAMES, epochs=2, batch_size=4, steps_per_round=1 if rules.by_record else None, privacy=rules
    )
    found = simulate(
        split.tail,
        lambda _name: [copy.deepcopy(split.front)],
        _parts(),
        cut=split.cut,
        settings=settings,
        how=SimulationSettings(seed=0, drop=0.34),
    )
    ended = found.segments["client-1"][0].state_dict()
    assert torch.equal(ended["mean"], begun["mean"])
    assert torch.equal(ended["frozen.weight"], begun["frozen.weight"])
    assert not torch.equal(ended["learning.weight"], begun["learning.weight"])


def test_delta_above_one_over_n_ends_the_run() -> None:
    with pytest.raises(ConfigError, match="above 1/41, with 41 records"):
        _run(steps_per_round=1, privacy=Privacy(epsilon=5, delta=0.05))


def test_a_client_does_its_own_accounting() -> None:
    """A plan with too little noise is found out, whatever the server says."""
    from splitsec.training.client.privacy import ClientPrivacy
    from splitsec.training.messages import Welcome

    settings = RunSettings(clients=NAMES, **BY_RECORD)
    for plan, error in ((PrivacyPlan(0.3, 0.25, 1, 4), BudgetError), (None, ConfigError)):
        welcome = Welcome(secrets.token_hex(16), "start", settings, 0, 12, False, plan)
        with pytest.raises(error):  # noqa: PT012  (either the plan is refused, or its first round)
            protection = ClientPrivacy(
                "client-1", welcome, records=torch.zeros(12, 4), trained=torch.ones(3, dtype=torch.bool)
            )
            protection.begin_round(lambda: torch.zeros(3), [])


def test_over_real_sockets(tmp_path: Path) -> None:
    with world(tmp_path, settings=BY_RECORD) as here:
        clients = [here.client(name) for name in NAMES[:2]]
        train = [
            lambda client=client, seed=seed: client.train(
                part(seed), seed=0, storage=Storage(ledgers=tmp_path / client.name)
            )
            for seed, client in enumerate(clients)
        ]
        schedules = here.together(*train)
        assert not here.server_error
        assert [one.privacy for one in schedules] == [BY_RECORD["privacy"]] * 2
        assert torch.equal(_weights([clients[0].front]), _weights([clients[1].front]))
        for client in clients:
            client.close()
    ledger = read_ledger(next((tmp_path / "client-1").glob("ledger-*.json")))
    # 24 samples in steps of 16 on average, for 2 epochs.
    assert (ledger.client, ledger.steps_of(RECORD)) == ("client-1", 4)


def test_who_refuses_a_run_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    events: list[Any] = []
    with world(tmp_path, clients=3, settings=BY_RECORD, round_timeout=600.0, report=events.append) as here:
        clients = [here.client(name) for name in NAMES]
        limits = [0.0, 0.0, 0.5]

        def train(seed: int) -> BudgetError | None:
            try:
                clients[seed].train(
                    part(seed), seed=0, storage=Storage(ledgers=tmp_path / NAMES[seed], epsilon_limit=limits[seed])
                )
            except BudgetError as error:
                return error
            return None

        first, second, third = here.together(*(partial(train, seed) for seed in range(3)))
        assert first is None
        assert second is None
        assert "may spend epsilon 0.5 over all runs: 0 earlier ones have spent 0.000, this one wants" in str(third)
        for client in clients:
            client.close()
    assert [(event.name, event.round) for event in events if isinstance(event, Dropped)] == [("client-3", 1)]
