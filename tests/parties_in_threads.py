"""A dealer, a server and clients in threads of the test, over real sockets with fresh keys."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitsec import Client, Dealer, Part, Schedule, Server, SplitModel
from splitsec.cut import origin_of, set_origin
from splitsec.parties.pool import WorkerPool
from splitsec.training.loop import segment_digest
from splitsec.training.messages import PROTOCOL, Hello
from splitsec.transport import KeyPair, load_key_pair, load_public_keys, make_keys

CUT = "1"
# Seconds to wait for what must come, on a machine that does much else. A wait that is to end in vain has its own.
PATIENCE = 30.0
_pools: list[WorkerPool] = []


def shared_pool() -> WorkerPool:
    """The pool that servers of all tests share, unless a test wants its own."""
    if not _pools:
        _pools.append(WorkerPool())
    return _pools[0]


def close_pool() -> None:
    """End the shared pool, if there is one."""
    while _pools:
        _pools.pop().close()


_seeded = threading.Lock()


def model() -> nn.Module:
    # torch's generator is the whole process's, and the parties here share a process.
    with _seeded:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def hello(front: nn.Module | None = None, **changed: Any) -> Hello:
    """What a client says first, with some of it changed."""
    facts: dict[str, Any] = {
        "protocol": PROTOCOL,
        "version": "9",
        "cut": CUT,
        "segments": (("0.weight", (6, 4)), ("0.bias", (6,))),
        "begins": "x" if front is None else segment_digest(front),
        "parameters": 30,
        "values": 30,
        "samples": 12,
        **changed,
    }
    return Hello(**facts)


def part(seed: int = 0, rows: int = 12) -> Part:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 4, generator=generator)
    labels = (images.abs().argmax(1) % 3).long()
    return Part(images, labels, images, labels)


@dataclass
class World:
    keys: dict[str, KeyPair]
    peers: dict[str, bytes]
    dealer: Dealer
    server: Server
    split: SplitModel
    # What every client begins with. torch.fx traces in one thread only, so clients copy it instead of making their own.
    front: nn.Module
    server_error: list[BaseException] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def fresh_front(self, make: Callable[[], nn.Module]) -> nn.Module:
        """The front of a model with the values that the server's began with."""
        with _seeded:
            front: nn.Module = SplitModel(make(), CUT).front
        return front

    def serve(self) -> None:
        """Run the server that is there now, and note how it ends."""
        try:
            self.server.serve()
        except BaseException as error:
            self.server_error.append(error)

    def restart_dealer(self) -> None:
        """End the dealer, and start another at its address."""
        address = self.dealer.address
        self.dealer.stop()
        self.threads[0].join(PATIENCE)
        self.dealer = Dealer(keys=self.keys["dealer"], peers=self.peers, address=address)
        self.threads[0] = threading.Thread(target=self.dealer.serve)
        self.threads[0].start()

    def restart_server(self, tail: nn.Module) -> None:
        """End the server, and start another at its address with a tail that knows nothing of the run."""
        address = self.server.address
        self.server.stop()
        self.threads[1].join(PATIENCE)
        self.server = Server(
            tail,  # type: ignore[arg-type]
            keys=self.keys["server"],
            peers=self.peers,
            address=address,
            dealer=self.dealer.address,
            pool=shared_pool(),
            **self.options,
        )
        self.threads[1] = threading.Thread(target=self.serve)
        self.threads[1].start()

    def client(
        self, name: str, front: nn.Module | None = None, *, kind: type[Client] = Client, **options: Any
    ) -> Client:
        settings: dict[str, Any] = {
            "cut": CUT,
            "keys": self.keys[name],
            "peers": self.peers,
            "server": self.server.address,
            "dealer": self.dealer.address,
            "timeout": PATIENCE,
            "join_timeout": PATIENCE,
            **options,
        }
        return kind(copy.deepcopy(self.front) if front is None else front, **settings)

    def together(self, *actions: Callable[[], Any]) -> list[Any]:
        """Run the actions in threads; a result or the exception of each."""
        results: list[Any] = [None] * len(actions)

        def run(index: int) -> None:
            try:
                results[index] = actions[index]()
            except BaseException as error:
                results[index] = error

        threads = [threading.Thread(target=run, args=(index,)) for index in range(len(actions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(4 * PATIENCE)
        return results


@contextmanager
def world(
    directory: Path,
    *,
    epochs: int = 2,
    timeout: float = PATIENCE,
    own_pool: bool = False,
    clients: int = 2,
    schedule: dict[str, Any] | None = None,
    dealer_options: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[World]:
    members = [f"client-{number}" for number in range(1, clients + 1)]
    names = ["server", "dealer", *members, "stranger"]
    make_keys(directory, names)
    keys = {name: load_key_pair(directory, name) for name in names}
    peers = {name: key for name, key in load_public_keys(directory).items() if name != "stranger"}
    cut = options.get("cut", CUT)
    whole = options.pop("tail", None)
    split = SplitModel(options.pop("model", model)() if whole is None else whole, cut if whole is None else "input")
    front = SplitModel(model(), cut if whole is None else "1").front
    # Tests that give the server another tail want it to answer the same front.
    set_origin(front, replace(origin_of(split.tail), digest=""))
    dealer = Dealer(keys=keys["dealer"], peers=peers, address="tcp://127.0.0.1:*", **(dealer_options or {}))
    planned = Schedule(clients=tuple(members), epochs=epochs, batch_size=8, **(schedule or {}))
    settings: dict[str, Any] = {"join_timeout": timeout, "cut": CUT, **options}
    server = Server(
        None if planned.halves else split.tail,
        schedule=planned,
        keys=keys["server"],
        peers=peers,
        address="tcp://127.0.0.1:*",
        dealer=dealer.address,
        timeout=timeout,
        pool=None if own_pool else shared_pool(),
        **settings,
    )
    made = World(keys, peers, dealer, server, split, front)

    made.threads = [threading.Thread(target=made.dealer.serve), threading.Thread(target=made.serve)]
    made.options = {"schedule": planned, "timeout": timeout, **settings}
    for thread in made.threads:
        thread.start()
    try:
        yield made
    finally:
        made.server.stop()
        made.dealer.stop()
        for thread in made.threads:
            thread.join(PATIENCE)
