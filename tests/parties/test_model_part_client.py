"""A model of which every client trains a part, over real sockets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import PATIENCE, World, world
from torch import nn

from splitsec import Part, Query
from splitsec.cut.tracing import trace
from splitsec.errors import ConfigError, MessageError, PartyTimeoutError, RefusedError
from splitsec.events import RoundDone
from splitsec.mpc.prg import fresh_seed
from splitsec.parties.model_part_client import HalvesClient, Whole
from splitsec.prediction.messages import Half, OpenSession


def _part(seed: int) -> Part:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(40, 1, 6, 6, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0.5).long()
    return Part(images, labels, images, labels)


def _half(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(),
        nn.Linear(6, 2),
    )  # fmt: skip
    # While one thread traces, no module may run in another: the clients here get theirs traced.
    return trace(layers)


def _world(directory: Path, **options: Any) -> Any:
    return world(directory, epochs=0, cut="input", settings={"layout": "model_parts"}, **options)


def _client(here: World, name: str, half: nn.Module) -> HalvesClient:
    return HalvesClient.of(half, network=here.network(name))


def _take_part(here: World, number: int, half: nn.Module, events: list[Any]) -> Callable[[], Any]:
    def run() -> Any:
        with _client(here, f"client-{number}", half) as client:
            client._report = events.append
            client.learn(_part(number), epochs=3, seed=number)
            client.give(_part(number))
            one = client.predict(_part(number).test_images[:3])
            many = client.predict(_part(number).test_images, Query(batch_size=32))
            with pytest.raises(RefusedError, match="made for inputs of 1x1x6x6 or 32x1x6x6, not 5x1x6x6"):
                client.predict(_part(number).test_images, Query(batch_size=5))
            with pytest.raises(RefusedError, match="answers with logits"):
                client.predict(_part(number).test_images, Query(reveal="label"))
            client.leave()
        return one, many

    return run


def test_parts_are_trained_apart_and_predict_together(tmp_path: Path) -> None:
    halves = [_half(1), _half(2)]
    events: list[Any] = []
    with _world(tmp_path) as here:
        results = here.together(*(_take_part(here, number, half, events) for number, half in enumerate(halves, 1)))
        here.threads[1].join(PATIENCE)
        assert not here.threads[1].is_alive()
    whole = Whole(halves).eval()
    for number, found in enumerate(results, 1):
        assert not isinstance(found, BaseException), found
        one, many = found
        with torch.no_grad():
            plain = whole(_part(number).test_images)
        torch.testing.assert_close(many.logits, plain, atol=2e-3, rtol=0)
        torch.testing.assert_close(one.logits, plain[:3], atol=2e-3, rtol=0)
    losses = [event.loss for event in events if isinstance(event, RoundDone)]
    assert len(losses) == 6


def test_no_party_holds_a_part_of_another(tmp_path: Path) -> None:
    """Everything that the server holds of the parts, and what it sends to clients, is searched for their weights. The
    control: with the masks taken off the weights are found."""
    halves = [_half(1), _half(2)]
    with _world(tmp_path, stay=True) as here:

        def gives(number: int) -> Callable[[], None]:
            def run() -> None:
                with _client(here, f"client-{number}", halves[number - 1].eval()) as client:
                    client.give(_part(number))

            return run

        assert here.together(gives(1), gives(2)) == [None, None]
        given = here.server._predictions._halves
        assert given is not None
        held = {name: (half.token, tensors) for name, (half, tensors) in given._parts.items()}
        seeds = {name: here.dealer._owners.seed(token) for name, (token, _) in held.items()}
        programs = {name: half.programs[0] for name, (half, _) in given._parts.items()}
    from splitsec.mpc.protocols.shared_linear import mask_of, shared_weights

    for number, half in enumerate(halves, 1):
        name = f"client-{number}"
        weight = half.get_parameter("7.weight").detach()
        _, tensors = held[name]
        last = tensors[-2]
        scale = 2.0 ** (16 + programs[name].steps[-1].digits)
        assert (last.double() / scale - weight).abs().max() > 1e3
        mask = mask_of(seeds[name], shared_weights(programs[name])[-1]).weight
        assert ((last + mask).double() / scale - weight).abs().max() < 1e-4


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    with _world(tmp_path, stay=True) as here:
        with _client(here, "client-1", _half(1)) as one, _client(here, "client-2", nn.Flatten()) as two:
            with pytest.raises(MessageError, match="needs a program"):
                one._connection.server.request(Half("0" * 32, ()))
            one.give(_part(1))
            with pytest.raises(MessageError, match="output shape"):
                two.give(_part(2))
            with pytest.raises(ConfigError, match="1 or more"):
                two.learn(_part(2), epochs=0)
        with here.client("stranger") as client, pytest.raises(Exception, match="refused our key"):
            client._connection.server.request(Half("0" * 32, ()))
    wants = pytest.raises(RefusedError, match="wants no parts")
    with world(tmp_path / "b", stay=True) as here, here.client("client-1") as client, wants:
        client._connection.server.request(Half("0" * 32, ()))


def test_a_part_that_never_comes_is_named(tmp_path: Path) -> None:
    with _world(tmp_path, timeout=3.0) as here:
        with _client(here, "client-1", _half(1)) as client:
            client.give(_part(1))
            client._connection.server.send(OpenSession((1, 1, 6, 6), fresh_seed()))
            with pytest.raises(PartyTimeoutError, match="client-2 gave no part of the model within 3 s"):
                client._connection.answer(10)
        here.threads[1].join(10)
