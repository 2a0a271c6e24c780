import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from parties_in_threads import World, world

from splitsec import Client
from splitsec.errors import MessageError, PartyTimeoutError, RandomnessError, RefusedError, SplitsecError
from splitsec.mpc.messages import Prepare


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with world(tmp_path, epochs=0, stay=True, timeout=1.5, own_pool=True) as made:
        yield made


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _workers(here: World) -> list[int]:
    assert here.server._pool is not None
    return _children(here.server._pool._nursery.pid)


def _right(here: World, name: str, front_input: torch.Tensor) -> None:
    with torch.no_grad():
        plain = here.split.eval()(front_input)
    with here.client(name, timeout=5) as client:
        torch.testing.assert_close(client.predict(front_input).logits, plain, atol=1e-3, rtol=0)


def _until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_session_has_a_process_of_its_own_that_ends_with_it(here: World) -> None:
    with here.client("client-1") as one, here.client("client-2") as other:
        with one.session((1, 6)) as first, other.session((1, 6)) as second:
            for session in (first, second, first):
                assert session.run(torch.rand(1, 6)).shape == (1, 3)
            assert len(set(_workers(here))) == 2
        _until(lambda: not _workers(here))


def test_a_worker_that_is_killed_ends_its_session_alone(here: World) -> None:
    def lose(client: Client) -> None:
        with client.session((1, 6)) as lost:
            lost.run(torch.rand(1, 6))
            os.kill(_workers(here)[-1], signal.SIGKILL)
            lost.run(torch.rand(1, 6))

    one, other = here.client("client-1", timeout=1.5), here.client("client-2", timeout=5)
    with one, other, other.session((1, 6)) as kept:
        kept.run(torch.rand(1, 6))
        began = time.monotonic()
        with pytest.raises(PartyTimeoutError, match="server fell silent"):
            lose(one)
        assert time.monotonic() - began < 6
        assert kept.run(torch.rand(1, 6)).shape == (1, 3)
    _right(here, "client-1", torch.rand(3, 4))


def test_a_client_that_vanishes_in_a_query_leaves_a_usable_pool(here: World) -> None:
    """It stops in the middle of the protocol: the worker notices within the time limit and ends."""
    with here.client("client-1") as client:
        with pytest.raises(ZeroDivisionError), client.session((1, 6)) as session:
            session.run(torch.rand(1, 6), on_step=lambda _step: 1 // 0)
        _right(here, "client-1", torch.rand(2, 4))
        session_ends = client.session((1, 6))
        silent = session_ends.__enter__()
        silent._peer.send_raw(0, [torch.zeros(1, dtype=torch.int64)])
        _until(lambda: not _workers(here), 10)
        silent._supply.close()
        silent._peer.close()
        _right(here, "client-1", torch.rand(2, 4))


def test_the_nursery_itself_may_die(here: World) -> None:
    _right(here, "client-1", torch.rand(2, 4))
    pool = here.server._pool
    assert pool is not None
    pool._nursery.kill()
    pool._nursery.wait()
    _right(here, "client-1", torch.rand(2, 4))


def test_queries_made_ready_ahead_give_the_same_and_never_more_than_allowed(here: World) -> None:
    with here.client("client-1", timeout=5) as client, torch.no_grad():
        with client.session((2, 6), ahead=3) as session:
            for count in range(8):
                x = torch.rand(2, 6)
                torch.testing.assert_close(session.run(x), here.split.tail.eval()(x), atol=1e-3, rtol=0)
                assert session._asked == count + 4
            assert session.prepare() > 0
            assert len(session._session._ready) <= 4
        with client.session((2, 6), ahead=0) as session:
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
                session._supply.wait(0, timeout=5)
                session._prepared = 0
                session._ask = lambda _below: None  # type: ignore[method-assign]
                session.run(torch.rand(2, 6))

        with pytest.raises(RandomnessError, match="query 0 was never asked for"):
            unprepared()


def test_a_server_that_stops_lets_idle_sessions_know(here: World) -> None:
    def idle() -> None:
        with here.client("client-1", timeout=10) as client, client.session((1, 6)) as session:
            session.run(torch.rand(1, 6))
            here.server.stop()
            _until(lambda: not here.threads[1].is_alive())
            session.run(torch.rand(1, 6))

    with pytest.raises(SplitsecError) as caught:
        idle()
    assert isinstance(caught.value, RefusedError)
    assert "the server is stopping" in str(caught.value)
