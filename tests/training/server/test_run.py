"""Rounds under every order of events: messages of each party in a queue of its own, delivered as the test says."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import model, part

from splitsec import RunSettings, SplitModel
from splitsec.errors import (
    ConfigError,
    PartyTimeoutError,
    RandomnessError,
    RefusedError,
    RestartedError,
    SplitsecError,
)
from splitsec.settings.timeouts import Timeouts
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.aggregation.masking import OneTime
from splitsec.training.checkpoints import Checkpoints
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.in_process import InProcessNetwork, Letter
from splitsec.training.messages import (
    BeginRun,
    Combined,
    Gradient,
    MaskSum,
    Missed,
    NewSeeds,
    OpenMasks,
    RunSeed,
    SeedsLost,
    Upload,
)
from splitsec.training.server.outbox import RunFailed
from splitsec.training.server.run import ServerRun
from splitsec.training.server.state import make_parts
from splitsec.transport import Message, NamedTensors, Refused

NAMES = ("a", "b", "c")


class Parties(InProcessNetwork):
    """A server, clients and a dealer in one process. A client that starts again loses what is on its way."""

    def __init__(
        self, directory: Path | None = None, *, cut: str = "1", timeout: float = 60.0, **settings: Any
    ) -> None:
        self.directory = directory
        self.split = SplitModel(model(), cut)
        self.cut = cut
        self.settings = RunSettings(**{"clients": NAMES, "epochs": 3, "batch_size": 4, **settings})
        self.parts = {
            name: part(index, rows=rows) for index, (name, rows) in enumerate(zip(NAMES, (12, 20, 9), strict=True))
        }
        self.opened: list[tuple[int, tuple[str, ...]]] = []
        self.masked: dict[tuple[bytes, int], torch.Tensor] = {}
        self.run = ServerRun(
            make_parts(
                copy.deepcopy(self.split.tail),
                cut=cut,
                settings=self.settings,
                timeouts=Timeouts(timeout=timeout, join_timeout=60.0),
                checkpoints=None if directory is None else Checkpoints(directory / "server"),
                seed=1,
            )
        )
        super().__init__(self.run, MaskBook(2))

    def begin(self, name: str) -> None:
        """Start a client, or start it again."""
        segments = [copy.deepcopy(segment) for segment in (self.split.front, self.split.head) if segment is not None]
        client = ClientRun(
            segments,
            self.parts[name],
            Participation(name, self.cut, seed=7),
            checkpoints=None if self.directory is None else Checkpoints(self.directory / name),
        )
        self.start(name, client)

    def deliver(self, name: str, *, to_server: bool) -> bool:
        """Deliver the next message of or for a client; return whether there was one."""
        letter = self.take_for_server(name) if to_server else self.take_for_client(name)
        if letter is None:
            return False
        if to_server:
            self.give_to_server(letter)
        else:
            self.give_to_client(letter)
        return True

    def settle(self, names: tuple[str, ...] = NAMES) -> None:
        """Deliver everything until nobody has anything to say."""
        moved = True
        while moved:
            moved = False
            for name in names:
                for way in (False, True):
                    moved |= self.deliver(name, to_server=way)

    def give_to_server(self, letter: Letter) -> None:
        body = letter.body
        if isinstance(body, Upload) and letter.tensors["masked"] and self.settings.aggregation == "average":
            self._check_mask(letter.client, body.round, letter.tensors["masked"][0])
        super().give_to_server(letter)

    def _check_mask(self, name: str, number: int, upload: torch.Tensor) -> None:
        """A mask covers one upload, whatever happens."""
        key = self.clients[name].training.seeds.current.own, number
        assert key not in self.masked or torch.equal(self.masked[key], upload), "a mask was used twice"
        self.masked[key] = upload

    def ask_dealer(self, body: Message) -> tuple[Message, NamedTensors]:
        answer = super().ask_dealer(body)
        if isinstance(body, OpenMasks) and isinstance(answer[0], MaskSum):
            assert len(body.participants) >= 2
            assert body.round not in [number for number, _ in self.opened], "a round was opened twice"
            self.opened.append((body.round, body.participants))
        return answer


def _all_started(**options: Any) -> Parties:
    parties = Parties(**options)
    for name in NAMES:
        parties.begin(name)
    return parties


def _ended_alike(parties: Parties) -> None:
    parties.settle()
    assert parties.run.finished
    assert all(client.done for client in parties.clients.values())
    if parties.settings.aggregation != "none":
        flats = [client._learner.state.flat() for client in parties.clients.values()]
        assert all(torch.equal(flats[0], other) for other in flats)


def _until(parties: Parties, condition: Any) -> None:
    """Deliver in turn until something is so."""
    for _ in range(10_000):
        for name in NAMES:
            for way in (False, True):
                if condition():
                    return
                parties.deliver(name, to_server=way)
    raise AssertionError("it never came to that")


@pytest.mark.parametrize("in_flight", [1, 3])
@pytest.mark.parametrize("combine", ["average", "relay"])
def test_a_client_that_is_back_before_its_round_is_over_goes_on_once(in_flight: int, combine: str) -> None:
    parties = _all_started(batches_in_flight=in_flight, aggregation=combine)
    _until(parties, lambda: "c" in parties.run.state.round.uploaded or "c" in parties.run.state.round.idle)
    parties.begin("c")
    parties.deliver("c", to_server=True)
    _ended_alike(parties)


@pytest.mark.parametrize("others_done", [True, False])
def test_a_client_that_starts_again_in_the_last_round_still_gets_its_end(others_done: bool) -> None:
    parties = _all_started()
    _until(
        parties, lambda: parties.run.number == 2 and (not others_done or {"a", "c"} <= parties.run.state.round.uploaded)
    )
    parties.begin("b")
    _ended_alike(parties)
    parties.begin("a")
    _ended_alike(parties)


def test_a_client_may_start_again_twice_in_a_round() -> None:
    parties = _all_started()
    _until(parties, lambda: parties.run.number == 1)
    for _ in range(3):
        parties.begin("b")
        parties.deliver("b", to_server=True)
        parties.deliver("b", to_server=False)
        parties.deliver("b", to_server=False)
    _ended_alike(parties)


def test_who_starts_again_and_again_does_not_keep_a_dead_one_in_the_round() -> None:
    parties = _all_started(timeout=60.0)
    _until(parties, lambda: parties.run.number == 1)

    def again() -> None:
        for _ in range(10):
            parties.now += 30
            parties.begin("b")
            parties.deliver("b", to_server=True)
            parties.send_from_server(parties.run.tick(parties.now))

    with pytest.raises(RunFailed, match="a, c sent nothing for 60 s"):
        again()


def test_a_relay_without_anybody_ends() -> None:
    parties = _all_started(aggregation="relay", epochs=400)
    _until(parties, lambda: parties.run.number == 1)

    def wait() -> None:
        for _ in range(10):
            parties.now += 100
            parties.send_from_server(parties.run.tick(parties.now))

    with pytest.raises(RunFailed, match="no client is left"):
        wait()


@pytest.mark.parametrize("remembers", [True, False])
def test_a_dealer_opens_no_second_sum_over_others(remembers: bool, tmp_path: Path) -> None:
    """Two sums of the same round over different clients would give one client's parameters, whether the dealer that is
    asked for the second one remembers the first or has lost its memory."""
    first = _all_started(directory=tmp_path)
    save = first.run._rounds.save

    def dies() -> None:
        if first.run.number == 2:
            raise KeyboardInterrupt
        save()

    # The server dies when round 1 is opened and not yet noted.
    first.run._rounds.save = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.settle()
    assert first.opened == [(0, NAMES), (1, NAMES)]
    again = Parties(directory=tmp_path)
    again.book = first.book if remembers else MaskBook(2)
    for name in ("a", "c"):
        again.begin(name)
        again.deliver(name, to_server=True)
    again.now = 100.0

    def goes_on() -> None:
        again.send_from_server(again.run.tick(again.now))
        assert (again.run.number, again.run.state.id) == (1, first.run.state.id)
        again.settle(("a", "c"))

    reason = "give a single client's parameters away" if remembers else "no record of the run's earlier rounds"
    with pytest.raises(RunFailed, match=reason):
        goes_on()
    assert again.opened == []


def test_checkpoints_of_another_run_are_not_gone_on_from(tmp_path: Path) -> None:
    earlier = _all_started(directory=tmp_path)
    _ended_alike(earlier)
    for path in (tmp_path / "server").iterdir():
        path.unlink()
    fresh = _all_started(directory=tmp_path)
    fresh.settle()
    assert fresh.run.rounds == 3
    assert [number for number, _ in fresh.opened] == [0, 1, 2]


def test_with_other_data_or_without_a_checkpoint_nobody_comes_back() -> None:
    parties = _all_started(aggregation="none")
    _until(parties, lambda: parties.run.number == 1)
    parties.begin("b")
    parties.deliver("b", to_server=True)
    parties.deliver("b", to_server=False)
    with pytest.raises(ConfigError, match="b has no checkpoint to come back with"):
        parties.deliver("b", to_server=False)
    parties = _all_started()
    _until(parties, lambda: parties.run.number == 1)
    parties.parts["b"] = part(1, rows=8)
    parties.begin("b")
    with pytest.raises(RefusedError, match="b has 8 samples now and began with 20"):
        parties.deliver("b", to_server=True)


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"batches_in_flight": 3},
    {"cut": "1,4"},
    {"cut": "1,4", "batches_in_flight": 2},
    {"aggregation": "relay"},
    {"compression": "topk:0.3", "batches_in_flight": 2},
    {"steps_per_round": 1, "server_momentum": 0.5},
]


def _anything(parties: Parties, choose: random.Random) -> None:
    """Deliveries in any order, restarts and waiting; then everybody is left alone."""
    restarts = choose.randrange(4)
    for _step in range(400):
        name = choose.choice(NAMES)
        event = choose.random()
        if event < 0.01 * restarts and parties.run.number is not None:
            parties.begin(name)
        elif event < 0.06:
            parties.now += choose.choice((1.0, 61.0)) * (choose.random() < 0.3)
            parties.send_from_server(parties.run.tick(parties.now))
        else:
            parties.deliver(name, to_server=choose.random() < 0.5)
    for _tick in range(12):
        parties.settle()
        parties.now += 61.0
        parties.send_from_server(parties.run.tick(parties.now))
    parties.settle()


def _harmless(error: Exception, layout: dict[str, Any]) -> bool:
    """Too few were left, or the newest segments of a relay went with the client that had them."""
    if isinstance(error, RunFailed):
        return isinstance(error.reason, PartyTimeoutError)
    return layout.get("aggregation") == "relay" and "newest segments of this relay are with" in str(error)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_whatever_happens_nobody_stalls_and_no_mask_serves_twice(layout: dict[str, Any]) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    choose = random.Random(seed)
    for _ in range(12):
        parties = _all_started(timeout=60.0, **layout)
        try:
            _anything(parties, choose)
        except (RunFailed, SplitsecError) as error:
            if not _harmless(error, layout):
                raise
            continue
        assert parties.run.finished
        assert all(client.done for client in parties.clients.values())


def test_seeds_are_renewed_where_the_dealer_has_lost_them_and_at_no_clients_word() -> None:
    parties = _all_started()
    _until(parties, lambda: parties.run.number == 1)
    start, asked, lost = parties.run.state.start, [], []
    ask = parties.ask_dealer

    def dealer(body: Any) -> Any:
        asked.append(body)
        if isinstance(body, OpenMasks) and lost:
            raise RestartedError("begin anew as well")
        if isinstance(body, BeginRun):
            lost.clear()
        return ask(body)

    parties.ask_dealer = dealer  # type: ignore[method-assign]
    for _ in range(3):
        parties.send_from_server(parties.run.handle("a", SeedsLost(start), {}, now=0.0))
        refused = parties._to_clients.pop().body
        assert isinstance(refused, Refused)
        assert refused.reason == "a says that the dealer has lost the run's seeds, and it has not"
    assert parties.run.state.start == start
    assert not any(isinstance(body, BeginRun) for body in asked)
    # The control: it has.
    lost.append(True)
    parties.send_from_server(parties.run.handle("a", SeedsLost(start), {}, now=0.0))
    assert parties.run.state.start != start
    _ended_alike(parties)


def test_a_mask_covers_one_upload_whatever_the_server_says_of_rounds() -> None:
    parties = _all_started(epochs=3)
    _until(parties, lambda: "a" in parties.run.state.round.uploaded and parties.run.number == 1)
    client = parties.clients["a"]
    given = client._learner.state.flat()
    # A server that lets the round begin anew would see the difference of two uploads.
    client.handle(Missed(1), {})
    out = client.handle(Combined(0, 0.0, 0.0), {"combined": given})
    assert out

    def learn() -> None:
        for step in range(10):
            client.handle(Gradient(1, step, 0.0, 0), {"gradient": [torch.zeros(client.training._trainer.due or ())]})

    with pytest.raises(RandomnessError, match="the mask of round 2 has been used"):
        learn()


def test_a_pad_is_used_once() -> None:
    used = OneTime()
    used.add(b"seed", "b", "2", what="pad 2")
    used.add(b"seed", "c", "2", what="pad 2")
    used.add(b"other", "b", "2", what="pad 2")
    with pytest.raises(RandomnessError, match="pad 2 has been used"):
        used.add(b"seed", "b", "2", what="pad 2")


def test_new_seeds_that_are_the_old_ones_do_not_send_an_upload_again() -> None:
    parties = _all_started()
    _until(parties, lambda: "a" in parties.run.state.round.uploaded)
    client = parties.clients["a"]
    client.handle(NewSeeds("f" * 32, 0), {})
    with pytest.raises(RandomnessError, match="has been used"):
        client.handle(RunSeed(client.training.seeds.current.own), {})
