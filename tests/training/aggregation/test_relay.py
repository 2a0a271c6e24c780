"""What a relay hands over is for the next client alone, whoever else works together with the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import CUT, part
from support.tensors import all_of

from splitsec import RunSettings, SplitModel
from splitsec.cut import origin_of
from splitsec.errors import MessageError
from splitsec.local.simulation import SimulationSettings, simulate
from splitsec.mpc.prg import fresh_seed
from splitsec.training.aggregation import Member, Seeds
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.aggregation.masking import OneTime, take_over
from splitsec.training.aggregation.relay import RelayAtClient, RelayAtServer, receivers, turn_of
from splitsec.training.client.run import ClientRun
from splitsec.training.flat_state import Combinable
from splitsec.training.messages import Combined

NAMES = ("a", "b", "c")


def _net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


def _member(name: str, length: int = 2) -> RelayAtClient:
    state = Combinable([torch.nn.Linear(length, 1, bias=False)])
    settings = RunSettings(clients=NAMES, epochs=2, aggregation="relay")
    return RelayAtClient(Member(name, settings, state, state.flat(), 0, None, OneTime()))  # type: ignore[arg-type]


def test_turns_and_who_is_handed_the_segments() -> None:
    assert [turn_of(NAMES, number) for number in range(4)] == ["a", "b", "c", "a"]
    assert receivers(NAMES, 1, 6) == ("c",)
    assert receivers(NAMES, 5, 6) == ("a", "b")
    assert receivers(("a",), 0, 6) == ()


def test_the_server_and_a_third_client_read_nothing() -> None:
    book = MaskBook()
    book.begin()
    seeds = {name: dict(zip(others, book.pair_seeds(name, others), strict=True)) for name, others in _others()}
    flat = torch.randn(100, dtype=torch.float64)
    (sealed,) = _member("a", 100).seal(flat, ("b",), Seeds(b"", seeds["a"]), number=0)
    # The control: the client that it is for.
    assert torch.equal(_member("b", 100).open(sealed, "a", 0, Seeds(b"", seeds["b"])), flat)
    # The server has `sealed`; c has its own two seeds, and may try them as anybody's.
    for seed in seeds["c"].values():
        for sender, receiver in (("a", "b"), ("a", "c"), ("c", "a")):
            guess = take_over(sealed, seed=seed, sender=sender, receiver=receiver, number=0)
            assert not torch.equal(guess, flat)


def _others() -> list[tuple[str, list[str]]]:
    return [(name, [other for other in NAMES if other != name]) for name in NAMES]


def test_the_holder_hands_on_once_more_where_the_next_client_is_gone() -> None:
    book = RelayAtServer(RunSettings(clients=NAMES, epochs=2, aggregation="relay"))
    assert book.can_train("c", ["c"])
    vector = torch.zeros(3, dtype=torch.int64)
    book.add_upload("a", [vector], length=3, round_number=0, rounds=6)
    # b has gone, so c needs them, and a is there to ask.
    assert book.owed(2, 6, ["a", "c"]) == ("c",)
    assert book.owed(2, 6, ["c"]) == ()
    assert not book.can_train("c", ["c"])
    assert book.can_train("b", ["b"])
    with pytest.raises(MessageError, match="does not hold"):
        book.hand_on("b", ("c",), 1, [vector])
    book.hand_on("a", ("c",), 1, [vector])
    assert (book.pad, book.sealed_for("c") is vector, book.sealed_for("b")) == (3, True, None)
    with pytest.raises(MessageError, match="2 vectors are due"):
        book.add_upload("c", [vector], length=3, round_number=5, rounds=6)


def test_a_client_seals_for_nobody_out_of_turn() -> None:
    member = _member("a")
    with pytest.raises(MessageError, match="whose turn it is not"):
        member.opened(Combined(0, 0.0, 0.0, holder="a", owed=("c",)), {}, Seeds(), 6)
    member.opened(Combined(1, 0.0, 0.0, holder="a", owed=("c",)), {}, Seeds(), 6)
    assert (member.owes, member.stale) == (("c",), False)
    with pytest.raises(MessageError, match="takes no part"):
        member.open(torch.zeros(2, dtype=torch.int64), "stranger", 0, Seeds(b"", {"b": fresh_seed()}))


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_all_clients_end_with_the_segments_of_the_last_turn(drop: float, tmp_path: Path) -> None:
    split = SplitModel(_net(), CUT)
    settings = RunSettings(clients=NAMES, epochs=3, batch_size=6, aggregation="relay")
    parts = {name: part(index) for index, name in enumerate(NAMES)}
    result = simulate(
        split.tail,
        lambda _: [SplitModel(_net(), CUT).front],
        parts,
        cut=CUT,
        settings=settings,
        how=SimulationSettings(seed=5, drop=drop),
    )
    states = [next(iter(result.segments[name][0].parameters())) for name in NAMES]
    assert all(torch.equal(states[0], state) for state in states)
    assert not torch.equal(states[0], next(iter(_net().parameters())))
    assert {origin_of(result.segments[name][0]).mark for name in NAMES} == {origin_of(split.tail).mark}


def test_only_whose_turn_is_next_is_sent_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int, int]] = []
    handle = ClientRun.handle

    def note(self: ClientRun, body: Any, tensors: Any) -> Any:
        if isinstance(body, Combined):
            sent.append((self._learner.name, body.round, len(all_of(tensors))))
        return handle(self, body, tensors)

    monkeypatch.setattr(ClientRun, "handle", note)
    split = SplitModel(_net(), CUT)
    settings = RunSettings(clients=NAMES, epochs=2, batch_size=6, aggregation="relay")
    parts = {name: part(index) for index, name in enumerate(NAMES)}
    simulate(
        split.tail,
        lambda _: [SplitModel(_net(), CUT).front],
        parts,
        cut=CUT,
        settings=settings,
        how=SimulationSettings(seed=5),
    )
    assert len(sent) == 6 * 3
    for name, number, count in sent:
        following = turn_of(NAMES, number + 1)
        last = number + 1 == 6 and name != turn_of(NAMES, number)
        assert count == int(name == following or last), (name, number)
