"""Both parties of a protocol in two threads of one process, over a socket pair, with the dealer between them.

For demonstrations and simulations: the messages are those of two processes, and who sees the process sees everything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import zmq

from splitsec.mpc.context import CLIENT, SERVER, Context
from splitsec.mpc.messages import session_codec
from splitsec.mpc.plan import deal
from splitsec.mpc.prg import fresh_seed
from splitsec.mpc.session import Cost, Planner, Session
from splitsec.transport import Peer

Protocol: TypeAlias = Callable[[Context], Any]


def run_pair(protocol: Protocol, *, timeout: float = 60.0) -> tuple[tuple[Any, Any], Cost]:
    """Run `protocol(context)`, which uses no linear layers of the server, as both parties.

    Returns:
        What it gives the server and the client, and what it cost the client.
    """
    planner = Planner(CLIENT)
    protocol(planner)
    plan, seeds, pair = planner.plan, (fresh_seed(), fresh_seed()), fresh_seed()
    context = zmq.Context()
    ends = [context.socket(zmq.PAIR) for _ in range(2)]
    address = f"inproc://{fresh_seed().hex()}"
    ends[SERVER].bind(address)
    ends[CLIENT].connect(address)
    sessions = [
        Session(
            Peer(ends[rank], peer="the other party", codec=session_codec, timeout=timeout),
            rank=rank,
            dealt_seed=seeds[rank],
            pair_seed=pair,
            plan=plan,
            corrections=partial(_dealt, plan, seeds, rank),
            masked_weights={} if rank == CLIENT else None,
        )
        for rank in (SERVER, CLIENT)
    ]
    results: list[Any] = [None, None]
    errors: list[BaseException] = []

    def party(rank: int) -> None:
        try:
            sessions[rank].begin(sessions[rank].prepare())
            results[rank] = protocol(sessions[rank])
            sessions[rank].end()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=party, args=(rank,), daemon=True) for rank in (SERVER, CLIENT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    context.destroy(linger=0)
    if errors:
        raise errors[0]
    return (results[SERVER], results[CLIENT]), planner.cost


def _dealt(plan: Any, seeds: tuple[bytes, bytes], rank: int, query: int) -> Any:
    return deal(plan, *seeds, query, {}, rank=rank)
