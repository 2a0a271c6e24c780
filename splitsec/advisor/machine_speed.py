"""How fast this machine is at what encrypted prediction spends its time on, measured in a few seconds.

Rounds, bytes and products are exact counts of the compiler; the time that they take here is measured on small samples.
Comparisons are timed at one party, on values that mean nothing, without another party.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
import torch
import zmq

from splitsec.errors import PartyTimeoutError
from splitsec.machine import one_thread
from splitsec.mpc.beaver import Triple
from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.correlation import Correlation, Plan
from splitsec.mpc.prg import Stream, fresh_seed
from splitsec.mpc.program.cost import Prediction
from splitsec.mpc.protocols.linear import LinearMask
from splitsec.mpc.protocols.relu import ReluMask, relu
from splitsec.mpc.session.plan import correction_count, deal, expand
from splitsec.mpc.session.session import Planner

# Each layer's product is timed until this much time is spent; the rest is estimated from those.
BUDGET_SECONDS = 3.0
_SAMPLE = 50_000
_ECHO_MS = 10_000
# Larger than the caches.
_COLD = torch.zeros(1 << 22, dtype=torch.int64)


@dataclass(frozen=True)
class Link:
    """Round trip in milliseconds and megabits a second of the links between the parties, beyond this machine's own."""

    rtt_ms: float = 0.0
    mbit_s: float = math.inf


class _Echo(Planner):
    """A party that receives its own messages: its arithmetic without another party."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self.planning = False

    def exchange(self, mine: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in mine]


def _seconds(action: Callable[[], object], times: int = 5) -> float:
    """Return the median of a few runs with cold caches, as they are after waiting for a message."""
    seconds = []
    for _ in range(times):
        _COLD.add_(1)
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


class Speed:
    """The times that this machine takes with one thread a party; products are timed when first asked for."""

    def __init__(self) -> None:
        with one_thread():
            self._measure()

    def _measure(self) -> None:
        self._spent = 0.0
        self._products: dict[LinearMask, float] = {}
        # Seconds a product of two numbers, by operation, from the largest layer that was timed.
        self._rates: dict[str, tuple[int, float]] = {}
        self.message_seconds = _message_seconds(1)
        large = 1 << 17
        self.byte_seconds = max(0.0, _message_seconds(large) - self.message_seconds) / (8 * large)
        # A straight line through a small and a large comparison: the time of any, and the time of each element.
        few, many = _comparison_seconds(64), _comparison_seconds(_SAMPLE)
        self.item_online, self.item_offline, self.item_dealt = few
        self.element_online, self.element_offline, self.element_dealt = (
            max(0.0, most - least) / _SAMPLE for least, most in zip(few, many, strict=True)
        )
        self.triple_seconds = _triple_seconds()

    def milliseconds(self, predicted: Prediction, link: Link) -> tuple[float, float]:
        """Predict the online and offline milliseconds of one query from the client's costs."""
        plan = predicted.plan
        with one_thread():
            products = sum(self._product(item) for item in plan if isinstance(item, LinearMask))
        triples = sum(_triple_products(item) for item in plan if isinstance(item, Triple)) * self.triple_seconds
        elements = sum(_elements(item) for item in plan)
        per_byte = self.byte_seconds + 8e-6 / link.mbit_s
        # Both directions at once, where both send.
        moved = max(predicted.total.bytes_sent, predicted.total.bytes_received) * per_byte
        waiting = predicted.hops * (self.message_seconds + link.rtt_ms / 2e3)
        steps = len(plan)
        online = waiting + moved + products + 2 * triples + elements * self.element_online + steps * self.item_online
        sent = 8 * sum(correction_count(plan, rank) for rank in (SERVER, CLIENT))
        dealt = products + triples + elements * self.element_dealt + steps * self.item_dealt
        received = sent * per_byte + elements * self.element_offline + steps * self.item_offline
        # The dealer sends in parts while it computes; the client multiplies by the masked weights meanwhile.
        offline = max(dealt, received, products + elements * self.element_offline + steps * self.item_offline)
        # The client asks the server, the server the dealer, and both answer.
        offline += 4 * (self.message_seconds + link.rtt_ms / 2e3)
        return online * 1e3, offline * 1e3

    def _product(self, item: LinearMask) -> float:
        key = msgspec.structs.replace(item, layer=0)
        if key in self._products:
            return self._products[key]
        count = products_of(item)
        size, rate = self._rates.get(item.op, (0, 0.0))
        if self._spent > BUDGET_SECONDS and size:
            return count * rate
        # Of a large layer a part is timed: some of its outputs.
        small, factor = _smaller(key, count)
        stream = Stream(fresh_seed())
        x, weight = stream.ring(small.input), stream.ring(small.weight)
        began = time.perf_counter()
        seconds = _seconds(lambda: small.apply(x, weight), 2) * factor
        self._spent += time.perf_counter() - began
        self._products[key] = seconds
        if count > size:
            self._rates[item.op] = (count, seconds / count)
        return seconds


def products_of(item: LinearMask) -> int:
    """Return how many products of two numbers a layer takes."""
    if item.op == "scale":
        return math.prod(item.input)
    if item.op == "linear":
        return math.prod(item.input) * item.weight[0]
    return math.prod(item.output) * math.prod(item.weight[1:])


def _smaller(item: LinearMask, count: int, most: int = 100_000_000) -> tuple[LinearMask, float]:
    """Return a layer of the same kind with few enough products to time, and how many times longer `item` takes."""
    if count <= most or item.op == "scale" or item.groups > 1:
        return item, 1.0
    outputs = max(1, item.weight[0] * most // count)
    small = msgspec.structs.replace(item, weight=(outputs, *item.weight[1:]))
    return small, item.weight[0] / outputs


def _triple_products(item: Triple) -> int:
    if item.op == "matmul":
        return math.prod(item.left) * item.right[-1]
    return math.prod(item.correction_shapes()[0])


def _elements(item: Correlation) -> float:
    """Return the comparisons of a correlation, in ReLUs of a middling width."""
    comparison = getattr(item, "comparison", None)
    if comparison is not None:
        return float(comparison.count)
    # Truncations and products open values, and compare none.
    return 0.0 if isinstance(item, LinearMask) else sum(math.prod(shape) for shape in item.correction_shapes()) / 8


def _comparison_seconds(count: int) -> tuple[float, float, float]:
    """Return the seconds that a ReLU takes one party online, to expand it, and to deal it."""
    plan: Plan = (ReluMask(count, 16, 41),)
    values = Stream(fresh_seed()).ring((count,)) >> 26
    online = _seconds(lambda: relu(_Echo(SERVER), values, shift=16, high=41))
    seeds = fresh_seed(), fresh_seed()
    corrections = list(deal(plan, *seeds, 0, {}))
    dealt = _seconds(lambda: list(deal(plan, *seeds, 0, {})))
    offline = _seconds(lambda: expand(plan, SERVER, seeds[0], 0, corrections, {}))
    return online, offline, dealt


def _triple_seconds() -> float:
    stream = Stream(fresh_seed())
    left, right = stream.ring((4, 128, 64)), stream.ring((4, 64, 128))
    return _seconds(lambda: torch.matmul(left, right)) / (4 * 128 * 64 * 128)


def _message_seconds(elements: int, count: int = 30) -> float:
    """Return the median seconds that a message of int64 elements takes one way over loopback, CURVE included."""
    context = zmq.Context()
    public, secret = zmq.curve_keypair()
    here, there = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    for socket in (here, there):
        socket.linger = 0
        socket.sndtimeo = socket.rcvtimeo = _ECHO_MS
        socket.curve_publickey, socket.curve_secretkey = public, secret
    here.curve_server = True
    there.curve_serverkey = public
    port = here.bind_to_random_port("tcp://127.0.0.1")
    there.connect(f"tcp://127.0.0.1:{port}")
    frame = bytes(8 * elements)

    def echo() -> None:
        with contextlib.suppress(zmq.Again):
            for _ in range(count):
                there.send(there.recv(copy=False), copy=False)

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    times = []
    try:
        for _ in range(count):
            began = time.perf_counter()
            here.send(frame, copy=False)
            here.recv(copy=False)
            times.append(time.perf_counter() - began)
    except zmq.Again:
        raise PartyTimeoutError(
            f"this machine sent itself no {8 * elements} bytes at 127.0.0.1:{port} within {_ECHO_MS // 1000} s"
        ) from None
    finally:
        thread.join(2 * _ECHO_MS / 1000)
        context.destroy(linger=0)
    return median(times) / 2
