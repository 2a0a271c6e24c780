"""A tail whose weights guarantee no ranges trains and predicts in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.parties_in_threads import part, world
from torch import nn

from splitsec import Query
from splitsec.errors import MessageError, RangeError
from splitsec.parties.client_predictions import ClientPredictions
from splitsec.prediction.messages import Calibration
from splitsec.training.messages import Done


def deep() -> nn.Module:
    """So many layers that the product of their norms leaves the range, which activations never do."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, 6), nn.ReLU()]
    for _ in range(30):
        layers += [nn.Linear(6, 6), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(6, 3))
    for layer in net[2:]:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=1.3)
    return net


def test_ranges_are_measured_on_noise_and_checked(tmp_path: Path) -> None:
    with world(tmp_path, epochs=1, stay=True, model=deep) as here:
        clients = [here.client(f"client-{number}", here.fresh_front(deep)) for number in (1, 2)]
        results = here.together(*(lambda client=client: client.train(part(), seed=0) for client in clients))
        assert not [result for result in results if isinstance(result, BaseException)], results
        x = part().test_images[:4]
        here.split.eval()
        with torch.no_grad():
            plain = here.split.tail(clients[0].front.eval()(x))
        # The shape of an input is known from its training.
        with clients[0].session((4, 6)) as session:
            assert session.program.checks
            assert not session.program.guaranteed
        found = clients[0].predict(x, Query(batch_size=4))
        assert found.logits is not None
        assert (found.logits - plain).abs().max() < 0.01 * plain.abs().max()
        # Values far beyond what was measured are noticed, whatever the client asked for.
        with pytest.raises(RangeError):
            clients[1].predict(x * 3000, Query(batch_size=4))
        for client in clients:
            client.close()


def test_noise_says_nothing_of_the_data_and_is_the_same_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[torch.Tensor] = []
    make = ClientPredictions._noise_activation

    def note(self: ClientPredictions, wanted: Any) -> torch.Tensor:
        sent.append(make(self, wanted))
        return sent[-1]

    monkeypatch.setattr(ClientPredictions, "_noise_activation", note)
    with world(tmp_path, epochs=0, stay=True, model=deep) as here:
        front = here.fresh_front(deep)
        for name, scale in (("client-1", 1.0), ("client-2", 0.01)):
            with here.client(name, front) as client:
                client.predict(part().test_images[:2] * scale)
                # Another client's is not needed, so ask as if it were.
                client._predictions._noise_activation(client._predictions._request((1, 6), Query()))
    assert all(torch.equal(sent[0], other) for other in sent)


def test_a_calibration_that_is_none_is_refused(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True, model=deep) as here, here.client("client-1") as client:
        for activations in (torch.zeros(0, 6), torch.zeros(65, 6), torch.zeros(2, 6, dtype=torch.int64)):
            with pytest.raises(MessageError):
                client._connection.server.request(Calibration(), {"activations": activations})
        with pytest.raises(RangeError, match="calibration holds nan"):
            client._connection.server.request(Calibration(), {"activations": torch.full((2, 6), float("nan"))})
        with pytest.raises(RangeError, match="calibration holds"):
            client._connection.server.request(Calibration(), {"activations": torch.full((2, 6), 300.0)})
        # The control.
        assert isinstance(client._connection.server.request(Calibration(), {"activations": torch.rand(2, 6)})[0], Done)


def test_a_calibration_decides_about_its_own_client_alone(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True, model=deep) as here:
        x = part().test_images[:4]
        front = here.fresh_front(deep)
        with here.client("client-1", front) as absurd, here.client("client-2", front) as honest:
            assert isinstance(
                absurd._connection.server.request(Calibration(), {"activations": torch.full((2, 6), 1e-30)})[0], Done
            )
            here.split.eval()
            with torch.no_grad():
                plain = here.split.tail(honest.front.eval()(x))
            found = honest.predict(x, Query(batch_size=4))
            assert found.logits is not None
            assert (found.logits - plain).abs().max() < 0.01 * plain.abs().max()
            # The control: it does for the one who sent it, who measures no second time.
            assert isinstance(
                absurd._connection.server.request(Calibration(), {"activations": torch.rand(2, 6)})[0], Done
            )
            with pytest.raises(RangeError):
                absurd.predict(x, Query(batch_size=4))


def test_clients_with_equal_fronts_share_a_program(tmp_path: Path) -> None:
    with world(tmp_path, epochs=0, stay=True, model=deep) as here:
        front = here.fresh_front(deep)
        for name in ("client-1", "client-2"):
            with here.client(name, front) as client:
                client.predict(part().test_images[:2])
        assert here.server._predictions._service is not None
        assert len(here.server._predictions._service._programs._compiled) == 1
