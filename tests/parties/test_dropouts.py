"""Clients that go and come back, over real sockets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import World, part, world

from splitsec.errors import PartyTimeoutError, RandomnessError
from splitsec.parties.client import Client
from splitsec.parties.messages import ServerBody
from splitsec.training.messages import Batch, RunSeed, Upload
from splitsec.transport import NO_TENSORS


class _Vanished(Exception):
    pass


def _train(here: World, name: str, seed: int, **options: Any) -> Any:
    def run() -> Client:
        with here.client(name, **options) as client:
            client.train(part(seed), seed=seed)
            client.leave()
        return client

    return run


def _vanishing(here: World, kind: type[ServerBody], *, sends: bool, again: float | None) -> Any:
    """Client 3, which is gone when it is to send its first message of this kind, or right after; and comes back."""

    def run() -> Any:
        with here.client("client-3") as client:
            send = client._connection.server.send

            def watched(body: Any, tensors: Any = NO_TENSORS) -> None:
                if isinstance(body, kind):
                    if sends:
                        send(body, tensors)
                        time.sleep(0.2)
                    raise _Vanished
                send(body, tensors)

            client._connection.server.send = watched  # type: ignore[method-assign]
            with pytest.raises(_Vanished):
                client.train(part(3), seed=3)
        if again is None:
            return None
        time.sleep(again)
        return _train(here, "client-3", 3)()

    return run


def _kinds(events: list[Any]) -> list[str]:
    return [type(event).__name__ for event in events]


def _states(clients: list[Any]) -> list[dict[str, torch.Tensor]]:
    assert all(isinstance(client, Client) for client in clients), clients
    return [client.front.state_dict() for client in clients]


@pytest.mark.parametrize(("kind", "sends"), [(Batch, False), (Batch, True), (Upload, False), (Upload, True)], ids=str)
def test_a_client_that_vanishes_does_not_stall_the_others(kind: type[ServerBody], sends: bool, tmp_path: Path) -> None:
    events: list[Any] = []
    with world(tmp_path, clients=3, epochs=3, timeout=2.5, report=events.append) as here:
        vanishing = _vanishing(here, kind, sends=sends, again=None)
        one, other, _ = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2), vanishing)
        states = _states([one, other])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    dropped = [event.dropped for event in events if type(event).__name__ == "RoundDone"]
    # Its upload counts if it arrived.
    late = (kind, sends) == (Upload, True)
    assert dropped == ([(), ("client-3",), ()] if late else [("client-3",), (), ()])


def test_a_client_that_comes_back_takes_part_again(tmp_path: Path) -> None:
    events: list[Any] = []
    with world(tmp_path, clients=3, epochs=6, timeout=20.0, report=events.append) as here:
        slow = {"clients": 0}

        def slowly(name: str, seed: int) -> Any:
            def run() -> Client:
                with here.client(name) as client:
                    send = client._connection.server.send

                    def delayed(body: Any, tensors: Any = NO_TENSORS) -> None:
                        slow["clients"] += 1
                        time.sleep(0.1)
                        send(body, tensors)

                    client._connection.server.send = delayed  # type: ignore[method-assign]
                    client.train(part(seed), seed=seed)
                    client.leave()
                return client

            return run

        results = here.together(
            slowly("client-1", 1), slowly("client-2", 2), _vanishing(here, Batch, sends=True, again=0.1)
        )
        states = _states(results)
    assert all(torch.equal(states[0][key], other[key]) for other in states for key in other)
    joined = [event.name for event in events if type(event).__name__ == "Joined"]
    assert joined.count("client-3") == 2
    dropped = [event.dropped for event in events if type(event).__name__ == "RoundDone"]
    assert dropped[0] == ("client-3",)
    # It was back before the end, and missed no later round.
    assert dropped[2:] == [()] * 4


def test_a_round_has_a_time_limit(tmp_path: Path) -> None:
    """Client 3 sends something now and then, so it is not silent, but it never finishes."""
    events: list[Any] = []
    with world(tmp_path, clients=3, epochs=1, round_timeout=3.0, report=events.append) as here:

        def slow() -> Any:
            with here.client("client-3") as client:
                send = client._connection.server.send

                def delayed(body: Any, tensors: Any = NO_TENSORS) -> None:
                    while isinstance(body, Batch) and body.step and "Dropped" not in _kinds(events):
                        time.sleep(0.05)
                    send(body, tensors)

                client._connection.server.send = delayed  # type: ignore[method-assign]
                client.train(part(3), seed=3)
                client.leave()
            return client

        results = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2), slow)
        states = _states(results)
    # It is told, waits for the others, and ends with what they made.
    assert all(torch.equal(states[0][key], other[key]) for other in states for key in other)
    (dropped,) = [event for event in events if type(event).__name__ == "Dropped"]
    assert (dropped.name, dropped.reason) == ("client-3", "kept the others waiting in round 1 beyond its time limit")


def test_a_run_begins_without_who_did_not_come_if_there_are_enough(tmp_path: Path) -> None:
    with world(tmp_path, clients=3, epochs=1, timeout=3.0) as here:
        _states(here.together(_train(here, "client-1", 1), _train(here, "client-2", 2)))
    with world(tmp_path / "b", clients=3, epochs=1, timeout=3.0, settings={"minimum_clients": 3}) as here:
        errors = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
    assert all(isinstance(error, PartyTimeoutError) and "client-3 did not come" in str(error) for error in errors)


def test_the_dealer_has_a_minimum_of_its_own(tmp_path: Path) -> None:
    with world(tmp_path, clients=3, epochs=1, timeout=3.0, dealer_options={"minimum_clients": 3}) as here:
        errors = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
    assert all(isinstance(error, RandomnessError) for error in errors)
    assert "masks of 2 clients are not opened; the sum needs at least 3" in str(errors[0])


@pytest.mark.parametrize("clients", [3, 2])
def test_an_upload_without_a_seed_ends_its_own_client_alone(clients: int, tmp_path: Path) -> None:
    """A client that never joined the run at the dealer: its mask is unknown there, so nobody could take it off."""
    events: list[Any] = []

    def unseeded(name: str) -> Any:
        def run() -> None:
            with here.client(name) as client:
                client._connection.dealer.request_again = lambda *_, **_options: (RunSeed(b"1" * 16), {})  # type: ignore[method-assign]
                client.train(part(3), seed=3)

        return run

    last = f"client-{clients}"
    with world(tmp_path, clients=clients, epochs=3, timeout=20.0, report=events.append) as here:
        honest = [_train(here, f"client-{number}", number) for number in range(1, clients)]
        *results, refused = here.together(*honest, unseeded(last))
    assert isinstance(refused, RandomnessError)
    assert f"{last} uploaded without a seed from the dealer for round 1; join the run" in str(refused)
    if clients == 2:
        assert "the minimum is 2" in str(results[0])
        return
    states = _states(results)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert [event.dropped for event in events if type(event).__name__ == "RoundDone"] == [(last,), (), ()]
