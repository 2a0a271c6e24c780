"""The network of a run in one process: order, answers of the dealer, and what a client that starts again loses."""

from __future__ import annotations

import copy

import pytest
from support.parties_in_threads import CUT, model, part

from splitsec import RunSettings, SplitModel
from splitsec.settings.timeouts import FOREVER
from splitsec.training.aggregation.dealer import MaskBook
from splitsec.training.client.run import ClientRun, Participation
from splitsec.training.in_process import InProcessNetwork
from splitsec.training.messages import Hello
from splitsec.training.server.run import ServerRun
from splitsec.training.server.state import make_parts

NAMES = ("a", "b", "c")


@pytest.fixture
def split() -> SplitModel:
    return SplitModel(model(), CUT)


@pytest.fixture
def network(split: SplitModel) -> InProcessNetwork:
    settings = RunSettings(clients=NAMES, epochs=2, batch_size=8)
    server = ServerRun(make_parts(split.tail, cut=CUT, settings=settings, timeouts=FOREVER, checkpoints=None, seed=1))
    return InProcessNetwork(server, MaskBook(2))


def _client(split: SplitModel, name: str) -> ClientRun:
    front = copy.deepcopy(split.front)
    return ClientRun([front], part(NAMES.index(name)), Participation(name, CUT, 3), checkpoints=None)


def _settle(network: InProcessNetwork) -> None:
    while not network.idle:
        while (letter := network.take_for_client()) is not None:
            network.give_to_client(letter)
        if (letter := network.take_for_server()) is not None:
            network.give_to_server(letter)


def test_a_run_whose_messages_are_delivered_ends(network: InProcessNetwork, split: SplitModel) -> None:
    for name in NAMES:
        network.start(name, _client(split, name))
    _settle(network)
    assert network.server.finished
    assert all(client.done for client in network.clients.values())
    # The control: the masks of both rounds were opened by the dealer, so its answers came.
    assert sorted(network.book.opened) == [0, 1]


def test_messages_wait_in_order_by_client_or_for_any(network: InProcessNetwork, split: SplitModel) -> None:
    for name in NAMES:
        network.start(name, _client(split, name))
    later = network.take_for_server("b")
    assert later is not None
    assert later.client == "b"
    first = network.take_for_server()
    assert first is not None
    assert (first.client, type(first.body)) == ("a", Hello)
    assert network.take_for_server("b") is None
    assert not network.idle


def test_what_is_on_its_way_to_a_client_that_starts_again_is_lost(network: InProcessNetwork, split: SplitModel) -> None:
    for name in NAMES:
        network.start(name, _client(split, name))
    while (letter := network.take_for_server()) is not None:
        network.give_to_server(letter)
    # The control: the welcome of the other client waits on.
    network.start("a", _client(split, "a"))
    assert network.take_for_client("a") is None
    letter = network.take_for_client("b")
    assert letter is not None
    network.give_to_client(letter)
    _settle(network)
    assert all(client.done for client in network.clients.values())
