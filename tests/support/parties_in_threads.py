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

from splitsec import (
    AnswerRules,
    Client,
    Dealer,
    Network,
    Part,
    RunSettings,
    Runtime,
    Server,
    Serving,
    SplitModel,
    Storage,
    Timeouts,
)
from splitsec.cut import origin_of, set_origin
from splitsec.prediction.server.worker_pool import WorkerPool
from splitsec.training.messages import Hello
from splitsec.training.step import segment_digest
from splitsec.transport import KeyPair, load_key_pair, load_public_keys, make_keys
from splitsec.version import PROTOCOL

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
    """Make the network of these tests: 4 inputs, 3 classes, the same weights each time."""
    # torch's generator is the whole process's, and the parties here share a process.
    with _seeded:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def hello(front: nn.Module | None = None, **changed: Any) -> Hello:
    """Make a client's first message, with some fields changed."""
    fields: dict[str, Any] = {
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
    return Hello(**fields)


def part(seed: int = 0, rows: int = 12) -> Part:
    """Make a client's data: random rows whose labels follow from them, the same for training and testing."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(rows, 4, generator=generator)
    labels = (images.abs().argmax(1) % 3).long()
    return Part(images, labels, images, labels)


@dataclass
class World:
    """A running dealer and server, and what a test needs to add clients to them."""

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
        """Make the front of a model with the values that the server's began with."""
        with _seeded:
            front: nn.Module = SplitModel(make(), CUT).front
        return front

    def serve(self) -> None:
        """Run the present server, and note how it ends."""
        try:
            self.server.serve()
        except BaseException as error:
            self.server_error.append(error)

    def restart_dealer(self) -> None:
        """End the dealer, and start another at its address."""
        address = self.dealer.address
        self.dealer.stop()
        self.threads[0].join(PATIENCE)
        self.dealer = Dealer(Network(keys=self.keys["dealer"], peers=self.peers, address=address))
        self.threads[0] = threading.Thread(target=self.dealer.serve)
        self.threads[0].start()

    def restart_server(self, tail: nn.Module) -> None:
        """End the server, and start another at its address with an untrained tail."""
        address = self.server.address
        self.server.stop()
        self.threads[1].join(PATIENCE)
        self.server = Server(
            tail,  # type: ignore[arg-type]
            **server_options(self.keys, self.peers, address, self.dealer.address, shared_pool(), self.options),
        )
        self.threads[1] = threading.Thread(target=self.serve)
        self.threads[1].start()

    def client(
        self, name: str, front: nn.Module | None = None, *, kind: type[Client] = Client, **options: Any
    ) -> Client:
        """Make a client of this server; its front begins with the values that all begin with, unless one is given."""
        network = self.network(name, options)
        runtime = Runtime(**{key: options.pop(key) for key in ("report", "processors") if key in options})
        own = {"cut": CUT, **options}
        return kind(copy.deepcopy(self.front) if front is None else front, network=network, runtime=runtime, **own)

    def network(self, name: str, options: dict[str, Any] | None = None) -> Network:
        """Return how a client reaches this server; takes what is said of it out of `options`."""
        options = {} if options is None else options
        waits = {key: options.pop(key, PATIENCE) for key in ("timeout", "join_timeout")}
        return Network(
            keys=options.pop("keys", self.keys[name]),
            peers=options.pop("peers", self.peers),
            server=options.pop("server", self.server.address),
            dealer=options.pop("dealer", self.dealer.address),
            timeouts=Timeouts(**waits),
            reach=options.pop("reach", None),
        )

    def together(self, *actions: Callable[[], Any]) -> list[Any]:
        """Run the actions in threads; return the result or the exception of each."""
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


def server_options(
    keys: dict[str, KeyPair],
    peers: dict[str, bytes],
    address: str,
    dealer: str,
    pool: WorkerPool | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Put options, which tests name one by one, into the objects of which a `Server` is made."""
    rest = dict(options)

    def take(*names: str) -> dict[str, Any]:
        return {name: rest.pop(name) for name in names if name in rest}

    timeouts = Timeouts(**take("timeout", "join_timeout", "round_timeout"))
    rules = take("stay", "predictions_per_client", "counts", "answers", "answer_bits", "session_ports")
    if "counts" in rules:
        rules["counts"] = str(rules["counts"])
    return {
        "network": Network(keys=keys["server"], peers=peers, address=address, dealer=dealer, timeouts=timeouts),
        "serving": Serving(rules=AnswerRules(**rules), pool=pool, **take("calibration")),
        "storage": Storage(**take("checkpoints")),
        "runtime": Runtime(**take("seed", "processors", "report")),
        **rest,
    }


@contextmanager
def world(
    directory: Path,
    *,
    epochs: int = 2,
    timeout: float = PATIENCE,
    own_pool: bool = False,
    clients: int = 2,
    settings: dict[str, Any] | None = None,
    dealer_options: dict[str, Any] | None = None,
    **options: Any,
) -> Iterator[World]:
    """Start a dealer and a server in threads of the test, and end both afterwards.

    Args:
        own_pool: whether prediction sessions come from a pool of this server's own, for tests that harm it.
        settings: settings of the run other than `epochs`.
        options: see `server_options`; `model` makes another network, `tail` is a tail without one.
    """
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
    listening = Network(keys=keys["dealer"], peers=peers, address="tcp://127.0.0.1:*")
    dealer = Dealer(listening, **(dealer_options or {}))
    planned = RunSettings(clients=tuple(members), epochs=epochs, batch_size=8, **(settings or {}))
    own: dict[str, Any] = {"settings": planned, "timeout": timeout, "join_timeout": timeout, "cut": CUT, **options}
    pool = None if own_pool else shared_pool()
    server = Server(
        None if planned.in_parts else split.tail,
        **server_options(keys, peers, "tcp://127.0.0.1:*", dealer.address, pool, own),
    )
    running = World(keys, peers, dealer, server, split, front)

    running.threads = [threading.Thread(target=running.dealer.serve), threading.Thread(target=running.serve)]
    running.options = own
    for thread in running.threads:
        thread.start()
    try:
        yield running
    finally:
        running.server.stop()
        running.dealer.stop()
        for thread in running.threads:
            thread.join(PATIENCE)
