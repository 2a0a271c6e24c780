"""What a relay hands over is for the next client alone, whoever else works together with the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parties_in_threads import CUT, part

from splitsec import Schedule, SplitModel
from splitsec.cut import origin_of
from splitsec.errors import MessageError
from splitsec.launch.simulation import simulate
from splitsec.mpc.prg import fresh_seed
from splitsec.parties.learning import Learner
from splitsec.parties.relay import RelayBook, RelayMember, receivers, turn_of
from splitsec.training.aggregation import MaskBook, take_over
from splitsec.training.messages import Combined

NAMES = ("a", "b", "c")


def _net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))


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
    (sealed,) = RelayMember("a", NAMES).seal(flat, ("b",), seeds["a"], round_number=0, again=False)
    # The control: the client that it is for.
    assert torch.equal(RelayMember("b", NAMES).open(sealed, "a", 0, seeds["b"], 100), flat)
    # The server has `sealed`; c has its own two seeds, and may try them as anybody's.
    for seed in seeds["c"].values():
        for sender, receiver in (("a", "b"), ("a", "c"), ("c", "a")):
            guess = take_over(sealed, seed=seed, sender=sender, receiver=receiver, number=0)
            assert not torch.equal(guess, flat)


def _others() -> list[tuple[str, list[str]]]:
    return [(name, [other for other in NAMES if other != name]) for name in NAMES]


def test_the_holder_hands_on_once_more_where_the_next_client_is_gone() -> None:
    book = RelayBook(NAMES)
    assert book.can_train("c", ["c"])
    vector = torch.zeros(3, dtype=torch.int64)
    book.upload("a", 0, 6, [vector], 3)
    # b has gone, so c needs them, and a is there to ask.
    assert book.owed(2, 6, ["a", "c"]) == ("c",)
    assert book.owed(2, 6, ["c"]) == ()
    assert not book.can_train("c", ["c"])
    assert book.can_train("b", ["b"])
    with pytest.raises(MessageError, match="does not hold"):
        book.hand_on("b", ("c",), 1, [vector])
    book.hand_on("a", ("c",), 1, [vector])
    assert (book.pad, len(book.vectors_for("c")), book.vectors_for("b")) == (3, 1, [])
    with pytest.raises(MessageError, match="2 vectors are due"):
        book.upload("c", 5, 6, [vector], 3)


def test_a_client_seals_for_nobody_out_of_turn() -> None:
    member = RelayMember("a", NAMES)
    with pytest.raises(MessageError, match="whose turn it is not"):
        member.told(Combined(0, 0.0, 0.0, holder="a", owed=("c",)), [], 6)
    member.told(Combined(1, 0.0, 0.0, holder="a", owed=("c",)), [], 6)
    assert (member.owes, member.stale) == (("c",), False)
    with pytest.raises(MessageError, match="takes no part"):
        member.open(torch.zeros(2, dtype=torch.int64), "stranger", 0, {"b": fresh_seed()}, 2)


@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_all_clients_end_with_the_segments_of_the_last_turn(drop: float, tmp_path: Path) -> None:
    split = SplitModel(_net(), CUT)
    schedule = Schedule(clients=NAMES, epochs=3, batch_size=6, combine="relay")
    parts = {name: part(index) for index, name in enumerate(NAMES)}
    result = simulate(
        split.tail, lambda _: [SplitModel(_net(), CUT).front], parts, cut=CUT, schedule=schedule, seed=5, drop=drop
    )
    states = [next(iter(result.segments[name][0].parameters())) for name in NAMES]
    assert all(torch.equal(states[0], state) for state in states)
    assert not torch.equal(states[0], next(iter(_net().parameters())))
    assert {origin_of(result.segments[name][0]).mark for name in NAMES} == {origin_of(split.tail).mark}


def test_only_whose_turn_is_next_is_sent_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, int, int]] = []
    take = Learner.take

    def note(self: Learner, body: Any, tensors: Any) -> Any:
        if isinstance(body, Combined):
            sent.append((self._name, body.round, len(tensors)))
        return take(self, body, tensors)

    monkeypatch.setattr(Learner, "take", note)
    split = SplitModel(_net(), CUT)
    schedule = Schedule(clients=NAMES, epochs=2, batch_size=6, combine="relay")
    parts = {name: part(index) for index, name in enumerate(NAMES)}
    simulate(split.tail, lambda _: [SplitModel(_net(), CUT).front], parts, cut=CUT, schedule=schedule, seed=5)
    assert len(sent) == 6 * 3
    for name, number, count in sent:
        following = turn_of(NAMES, number + 1)
        last = number + 1 == 6 and name != turn_of(NAMES, number)
        assert count == int(name == following or last), (name, number)
