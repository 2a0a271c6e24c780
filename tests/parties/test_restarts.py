"""Parties that are started again, or end before their time, in the middle of a run."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import CUT, World, model, part, world

from splitsec import SplitModel, Storage
from splitsec.errors import ConfigError, RefusedError
from splitsec.events import Predicted, RoundDone
from splitsec.parties.setup import Runtime
from splitsec.training.checkpoints import Checkpoints


def _train(here: World, name: str, seed: int, **options: Any) -> Any:
    def act() -> Any:
        with here.client(name, timeout=15, join_timeout=15) as client:
            client.train(part(seed), seed=seed, repeatable=True, **options)
            return {key: value.clone() for key, value in client.front.state_dict().items()}

    return act


class _After:
    """Does something in another thread when the server has finished a round, once."""

    def __init__(self, number: int, act: Any) -> None:
        self.number = number
        self.act = act
        self.here: World | None = None
        self.done = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, RoundDone) and event.party == "server" and event.round == self.number and not self.done:
            self.done = 1
            thread = threading.Thread(target=self.act, args=(self.here,))
            thread.start()
            # The server's own thread can wait for the dealer to be there again, and not for itself.
            if self.act is _restart_dealer:
                thread.join()


def _restart_dealer(here: World) -> None:
    here.restart_dealer()


def _server_restarts() -> Any:
    # Made before any party runs: torch's generator is the whole process's.
    tail = SplitModel(model(), CUT).tail
    return lambda here: here.restart_server(tail)


@pytest.mark.parametrize(
    "settings", [{}, {"compression": "float16"}, {"aggregation": "relay"}], ids=["average", "compressed", "relay"]
)
def test_a_dealer_that_is_started_again_does_not_end_the_run(tmp_path: Path, settings: dict[str, Any]) -> None:
    results = []
    for name, after in (("control", 99), ("restarted", 1)):
        restarting = _After(after, _restart_dealer)
        with world(tmp_path / name, epochs=3, timeout=15, settings=settings, seed=3, report=restarting) as here:
            restarting.here = here
            fronts = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
            assert all(isinstance(front, dict) for front in fronts), fronts
            assert all(torch.equal(fronts[0][key], fronts[1][key]) for key in fronts[0])
            results.append(fronts[0])
        assert restarting.done == (after == 1)
    # Nothing is trained twice, and nothing left out.
    assert all(torch.allclose(results[0][key], results[1][key], atol=1e-7) for key in results[0])


@pytest.mark.parametrize("clients_keep", [True, False])
def test_a_server_that_is_started_again_finds_its_clients_waiting(tmp_path: Path, clients_keep: bool) -> None:
    results = []
    for name, after in (("control", 99), ("restarted", 1)):
        restarting = _After(after, _server_restarts())
        places = {party: tmp_path / name / party for party in ("server", "client-1", "client-2", "dealer")}
        options: dict[str, Any] = {"checkpoints": places["server"], "seed": 3, "report": restarting}
        options["dealer_options"] = {"storage": Storage(checkpoints=places["dealer"])}
        with world(tmp_path / name / "keys", epochs=3, timeout=15, **options) as here:
            restarting.here = here
            fronts = here.together(
                *(
                    _train(here, client, index, storage=Storage(checkpoints=places[client] if clients_keep else None))
                    for index, client in enumerate(("client-1", "client-2"), 1)
                )
            )
            assert all(isinstance(front, dict) for front in fronts), fronts
            assert all(torch.equal(fronts[0][key], fronts[1][key]) for key in fronts[0])
            results.append(fronts[0])
        assert restarting.done == (after == 1)
    # The run goes on where it was, to the bit, whether clients keep checkpoints on a disk or in memory alone.
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("keeps", [True, False])
def test_of_two_clients_one_is_started_again_and_the_round_begins_anew(tmp_path: Path, keeps: bool) -> None:
    results = []
    for name, dies in (("control", 99), ("restarted", 1)):
        places = {party: tmp_path / name / party for party in ("server", "client-1", "client-2", "dealer")}
        options: dict[str, Any] = {"checkpoints": places["server"] if keeps else None, "seed": 3}
        options["dealer_options"] = {"storage": Storage(checkpoints=places["dealer"])}
        with world(tmp_path / name / "keys", epochs=3, timeout=15, **options) as here:

            def falls(here: World = here, dies: int = dies, places: dict[str, Path] = places) -> Any:
                client = here.client("client-2", timeout=15, join_timeout=15)
                # As a killed process does: it says nothing more.
                client._connection.give_up = lambda _error: None  # type: ignore[method-assign]

                def die(event: Any) -> None:
                    if isinstance(event, RoundDone) and event.round == dies:
                        raise KeyboardInterrupt

                client._report = die
                with contextlib.suppress(KeyboardInterrupt):
                    client.train(part(2), seed=2, repeatable=True, storage=Storage(checkpoints=places["client-2"]))
                    return {key: value.clone() for key, value in client.front.state_dict().items()}
                client.close()
                return _train(here, "client-2", 2, storage=Storage(checkpoints=places["client-2"]))()

            results.append(
                here.together(_train(here, "client-1", 1, storage=Storage(checkpoints=places["client-1"])), falls)
            )
    assert all(isinstance(front, dict) for front in results[0]), results
    if not keeps:
        # The control: a server without checkpoints has nothing to begin the round from.
        assert "only client-1 is left, and the minimum is 2" in str(results[1][0])
        return
    assert all(isinstance(front, dict) for front in results[1]), results
    fronts = [front for both in results for front in both]
    assert all(torch.equal(fronts[0][key], front[key]) for front in fronts for key in front)


def test_a_server_without_checkpoints_begins_anew_and_so_do_its_clients(tmp_path: Path) -> None:
    fronts = []
    for name, after in (("control", 99), ("restarted", 1)):
        restarting = _After(after, _server_restarts())
        with world(tmp_path / name, epochs=3, timeout=15, seed=3, report=restarting) as here:
            restarting.here = here
            both = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
            assert all(isinstance(front, dict) for front in both), both
            fronts.append(both[0])
    # Nothing of the run that was lost is left in the fronts.
    assert all(torch.equal(fronts[0][key], fronts[1][key]) for key in fronts[0])


def test_predictions_go_on_when_the_dealer_is_started_again(tmp_path: Path) -> None:
    images = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    with world(tmp_path, epochs=0, stay=True, timeout=10) as here, here.client("client-1") as client:
        with torch.no_grad():
            right = here.split.eval()(images)
        restarts = []

        def restart(event: Any) -> None:
            if isinstance(event, Predicted) and event.done == 20 and not restarts:
                restarts.append(True)
                here.restart_dealer()

        client._predictions._runtime = Runtime(report=restart)
        found = client.predict(images)
    assert restarts
    assert found.logits is not None
    assert found.logits.shape == (60, 3)
    assert (found.logits - right).abs().max() < 2e-3
    assert len(found.online_ms) == len(found.offline_ms) == 60


def test_a_client_that_gives_up_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    with world(tmp_path, epochs=2, clients=3, timeout=60) as here:

        def interrupted() -> Any:
            with here.client("client-3", timeout=60) as client:
                events = iter(range(3))

                def interrupt(_event: Any) -> None:
                    if next(events, None) == 1:
                        raise KeyboardInterrupt

                client._report = interrupt
                client.train(part(3), seed=3)

        results = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2), interrupted)
        assert isinstance(results[2], KeyboardInterrupt)
        assert all(isinstance(front, dict) for front in results[:2]), results
        # Nor is it when the others have left.
        for name in ("client-1", "client-2"):
            with here.client(name) as client:
                client.leave()
        here.threads[1].join(15)
        assert not here.threads[1].is_alive()
        assert not here.server_error
    # Its time limit of a minute was not waited for.
    assert time.monotonic() - began < 45


def test_of_two_clients_the_other_hears_why_the_run_ends(tmp_path: Path) -> None:
    with world(tmp_path, epochs=2, timeout=60) as here:

        def wrong() -> Any:
            with here.client("client-2", timeout=60) as client:
                client._report = lambda _event: (_ for _ in ()).throw(ConfigError("not today"))
                client.train(part(3), seed=3)

        results = here.together(_train(here, "client-1", 1), wrong)
        assert isinstance(results[1], ConfigError)
        # What was wrong with its data is said to nobody else.
        assert "client-2 gave up (ConfigError)" in str(results[0])
        assert "not today" not in str(results[0])


@pytest.mark.parametrize("party", ["server", "client-1"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_not_in_silence(
    tmp_path: Path, party: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: tmp_path / name for name in ("server", "client-1", "client-2")}
    write = Checkpoints._write

    def full(self: Checkpoints, number: int, *rest: Any) -> None:
        if self.directory == places[party] and number == 2:
            raise OSError(28, "No space left on device")
        write(self, number, *rest)

    monkeypatch.setattr(Checkpoints, "_write", full)
    with world(tmp_path / "keys", epochs=4, timeout=60, checkpoints=places["server"]) as here:
        results = here.together(
            *(
                _train(here, name, index, storage=Storage(checkpoints=places[name]))
                for index, name in enumerate(("client-1", "client-2"))
            )
        )
    wanted = f"cannot write the checkpoint of round 2 in {places[party]}: No space left on device"
    assert all(isinstance(result, BaseException) for result in results)
    if party == "server":
        assert all(f"server: {wanted}" in str(result) for result in results)
    else:
        assert str(results[0]).startswith(wanted)
        assert "goes on from round 1" in str(results[0])
        assert "client-1 gave up (ConfigError)" in str(results[1])


def test_a_server_that_is_interrupted_says_so(tmp_path: Path) -> None:
    def interrupt(event: Any) -> None:
        if isinstance(event, RoundDone) and event.party == "server":
            raise KeyboardInterrupt

    with world(tmp_path, epochs=3, timeout=60, report=interrupt) as here:
        results = here.together(_train(here, "client-1", 1), _train(here, "client-2", 2))
        assert all(isinstance(result, RefusedError) and "interrupted" in str(result) for result in results)
