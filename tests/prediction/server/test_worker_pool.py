import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import PATIENCE, World, world

from splitsec import Client, Query
from splitsec.cut import origin_of
from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError, SplitsecError
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.session.messages import Prepare
from splitsec.prediction.client.session import ClientSession
from splitsec.prediction.messages import OpenSession, SessionOpened
from splitsec.prediction.server.session_end import MAKES_WAY, STOPPING


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    """Parties for a test that ends the server or its forker."""
    with world(tmp_path, epochs=0, stay=True, timeout=4.0, own_pool=True) as made:
        yield made


@pytest.fixture(scope="module")
def _quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("quick"), epochs=0, stay=True, timeout=4.0, own_pool=True) as made:
        yield made


@pytest.fixture
def quick(_quick: World) -> World:
    """Parties that several tests share, since a forker takes seconds to start; no session of another test is left."""
    _until(lambda: _quick.server._predictions._pool is None or not _workers(_quick))
    return _quick


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _open(client: Client) -> tuple[ClientSession, Callable[[], None]]:
    """An open session, and what ends it without a word, as the kernel ends the connections of a killed process."""
    manager = client.session((1, 6))
    session = manager.__enter__()
    return session, manager.gen.close  # type: ignore[attr-defined]


def _begin_query(session: ClientSession) -> None:
    """Half a query: the worker waits for the client's next masked values."""
    session.prepare()
    session._peer.send_raw(session.next_query << 16, [torch.zeros(1, 6, dtype=torch.int64)])


def _workers(here: World) -> list[int]:
    assert here.server._predictions._pool is not None
    return _children(here.server._predictions._pool._forker.pid)


def _right(here: World, name: str, front_input: torch.Tensor) -> None:
    with torch.no_grad():
        plain = here.split.eval()(front_input)
    with here.client(name) as client:
        torch.testing.assert_close(client.predict(front_input).logits, plain, atol=1e-3, rtol=0)


def _until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_session_has_a_process_of_its_own_that_ends_with_it(quick: World) -> None:
    with quick.client("client-1") as one, quick.client("client-2") as other:
        with one.session((1, 6)) as first, other.session((1, 6)) as second:
            for session in (first, second, first):
                assert session.run(torch.rand(1, 6)).shape == (1, 3)
            assert len(set(_workers(quick))) == 2
        _until(lambda: not _workers(quick))


def test_a_worker_that_is_killed_ends_its_session_alone(quick: World) -> None:
    def lose(client: Client) -> None:
        with client.session((1, 6)) as lost:
            lost.run(torch.rand(1, 6))
            os.kill(_workers(quick)[-1], signal.SIGKILL)
            lost.run(torch.rand(1, 6))

    one, other = quick.client("client-1", timeout=10.0), quick.client("client-2")
    with one, other, other.session((1, 6)) as kept:
        kept.run(torch.rand(1, 6))
        with pytest.raises(PartyTimeoutError, match="server fell silent|connection to server .* was lost"):
            lose(one)
        assert kept.run(torch.rand(1, 6)).shape == (1, 3)
    _right(quick, "client-1", torch.rand(3, 4))


def test_a_client_that_vanishes_in_a_query_leaves_a_usable_pool(quick: World) -> None:
    """It stops in the middle of the protocol: the worker notices within the time limit and ends."""
    with quick.client("client-1") as client:
        with pytest.raises(ZeroDivisionError), client.session((1, 6)) as session:
            session.run(torch.rand(1, 6), on_step=lambda _step: 1 // 0)
        _right(quick, "client-1", torch.rand(2, 4))
        session_ends = client.session((1, 6))
        silent = session_ends.__enter__()
        silent._peer.send_raw(0, [torch.zeros(1, dtype=torch.int64)])
        _until(lambda: not _workers(quick))
        silent._supply.close()
        silent._peer.close()
        _right(quick, "client-1", torch.rand(2, 4))


def test_the_forker_itself_may_die(here: World) -> None:
    with here.client("client-1", timeout=60) as client:
        session, crash = _open(client)
        session.run(torch.rand(1, 6))
        (worker,) = _workers(here)
        assert here.server._predictions._pool is not None
        os.kill(here.server._predictions._pool._forker.pid, signal.SIGKILL)
        # Its workers do not outlive it.
        _until(lambda: not Path(f"/proc/{worker}").exists(), 30)
        with pytest.raises(RefusedError, match=STOPPING):
            session.run(torch.rand(1, 6))
        crash()
    _right(here, "client-1", torch.rand(2, 4))


def test_a_forker_that_hangs_is_replaced(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _right(here, "client-1", torch.rand(1, 4))
    assert here.server._predictions._pool is not None
    monkeypatch.setattr(here.server._predictions._pool, "_patience", 0.5)
    stopped = here.server._predictions._pool._forker.pid
    os.kill(stopped, signal.SIGSTOP)
    with here.client("client-1", timeout=60) as client, pytest.raises(RefusedError, match="worker did not start"):
        client.session((1, 6)).__enter__()
    _right(here, "client-1", torch.rand(2, 4))
    assert here.server._predictions._pool._forker.pid != stopped
    assert not Path(f"/proc/{stopped}").exists()


def test_queries_made_ready_ahead_give_the_same_and_never_more_than_allowed(quick: World) -> None:
    with quick.client("client-1") as client, torch.no_grad():
        with client.session((2, 6), Query(ahead=3)) as session:
            for count in range(8):
                x = torch.rand(2, 6)
                torch.testing.assert_close(session.run(x), quick.split.tail.eval()(x), atol=1e-3, rtol=0)
                assert session._asked == count + 4
            assert session.prepare() > 0
            assert len(session._session._ready) <= 4
        with client.session((2, 6), Query(ahead=0)) as session:
            session.run(torch.rand(2, 6))
            assert session._asked == 1

        def greedy() -> None:
            with client.session((2, 6)) as session:
                session._peer.send(Prepare(10_000))
                session._peer.receive()

        with pytest.raises(MessageError, match="queries may be prepared ahead"):
            greedy()

        def unprepared() -> None:
            with client.session((2, 6)) as session:
                session._supply.want(1)
                session._supply.wait(0, timeout=PATIENCE)
                session._prepared = 0
                session._ask = lambda _below: None  # type: ignore[method-assign]
                session.run(torch.rand(2, 6))

        with pytest.raises(RandomnessError, match="query 0 was never asked for"):
            unprepared()


def test_a_server_that_stops_lets_idle_sessions_know(here: World) -> None:
    def idle() -> None:
        with here.client("client-1") as client, client.session((1, 6)) as session:
            session.run(torch.rand(1, 6))
            here.server.stop()
            _until(lambda: not here.threads[1].is_alive())
            session.run(torch.rand(1, 6))

    with pytest.raises(SplitsecError) as caught:
        idle()
    assert isinstance(caught.value, RefusedError)
    assert "the server is stopping" in str(caught.value)


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Parties that wait for each other for long, so that only what they notice ends a session soon."""
    with world(tmp_path_factory.mktemp("patient"), epochs=0, stay=True, timeout=90, own_pool=True) as made:
        yield made


def test_a_client_that_crashes_in_a_query_frees_its_worker_in_seconds(patient: World) -> None:
    with patient.client("client-1") as client, patient.client("client-2") as other, other.session((1, 6)) as kept:
        kept.run(torch.rand(1, 6))
        (alive,) = _workers(patient)
        lost, crash = _open(client)
        lost.run(torch.rand(1, 6))
        _begin_query(lost)
        crash()
        _until(lambda: _workers(patient) == [alive], 30)
        # Control: a client that is there and asks nothing keeps its session.
        assert kept.run(torch.rand(1, 6)).shape == (1, 3)


def test_crashed_clients_lock_nobody_out(patient: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "splitsec")
    with patient.client("client-1", timeout=60) as client, patient.client("client-2", timeout=60) as other:
        opened = [_open(client) for _ in range(8)]
        with pytest.raises(
            RefusedError, match="client-1 has 8 prediction sessions open, its share, and all are in use"
        ):
            _open(client)
        with other.session((1, 6)) as free:
            assert free.run(torch.rand(1, 6)).shape == (1, 3)
        for _, crash in opened:
            crash()
        pool = patient.server._predictions._pool
        assert pool is not None
        _until(lambda: "client-1" not in [one.client for one in list(pool._alive.values()) if not one.spare], 30)
        with client.session((1, 6)) as again:
            assert again.run(torch.rand(1, 6)).shape == (1, 3)
        _until(lambda: not _workers(patient), 30)
    for session, _ in opened:
        ended = rf"session {session.name[:8]} of client-1 closed after 0 queries and \d+\.\d s: "
        why = f"{ended}(client-1 is gone|{MAKES_WAY})"
        _until(lambda why=why: re.search(why, caplog.text) is not None, 30)
    assert re.search(r"session [0-9a-f]{8} of client-2 opened for activations of 1x6", caplog.text)
    closed = r"session [0-9a-f]{8} of client-2 closed after 1 queries and \d+\.\d s: its client closed it"
    assert re.search(closed, caplog.text)


def _run_until_refused(session: ClientSession) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        session.run(torch.rand(1, 6))
        time.sleep(0.2)


def test_a_session_that_rests_makes_way_and_its_client_hears_why(patient: World) -> None:
    with patient.client("client-1", timeout=60) as client, contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(client.session((1, 6))) for _ in range(7)]
        rests, crash = _open(client)
        assert patient.server._predictions._pool is not None
        patient.server._predictions._pool._alive[rests.name].spare = True
        newer = stack.enter_context(client.session((1, 6)))
        for session in (newer, *sessions):
            assert session.run(torch.rand(1, 6)).shape == (1, 3)
        # A query that comes while it is being told is still answered.
        with pytest.raises(RefusedError, match=MAKES_WAY):
            _run_until_refused(rests)
        crash()


def test_a_server_that_stops_waits_neither_for_half_open_sessions_nor_for_queries_that_hang(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"epochs": 0, "stay": True, "timeout": 90, "own_pool": True}
    with world(tmp_path, **settings) as made, made.client("client-1") as half, made.client("client-2") as other:
        wanted = OpenSession((1, 6), fresh_seed(), mark=origin_of(made.split.tail).mark)
        opened, _ = half._connection.server.request(wanted, timeout=60)
        assert isinstance(opened, SessionOpened)
        hangs, crash = _open(other)
        _begin_query(hangs)
        workers = _workers(made)
        assert len(workers) == 2
        made.server.stop()
        made.threads[1].join(30)
        assert not made.threads[1].is_alive()
        assert not [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        # Behind the masked values of the query itself.
        while hangs._peer.next_is_raw():
            hangs._peer._next = None
        with pytest.raises(RefusedError, match=STOPPING):
            hangs._peer.receive()
        crash()
