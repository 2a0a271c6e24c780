"""Programs of CrypTen's tensors between two parties."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitsec.errors import InsecureProviderError, RandomnessError
from splitsec.mpc.context import CLIENT, SERVER
from splitsec.mpc.crypten_session import run_crypten
from splitsec.mpc.ring import encode

W, X = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[2.0, 1.0], [-1.0, 0.25], [0.0, 4.0]])


def linear(crypten: Any, rank: int, own: torch.Tensor) -> Any:
    weight = crypten.cryptensor(own if rank == SERVER else torch.zeros(2, 2), src=SERVER)
    x = crypten.cryptensor(own if rank == CLIENT else torch.zeros(3, 2), src=CLIENT)
    return x.matmul(weight).relu().get_plain_text(dst=CLIENT)


def test_only_the_client_gets_what_is_opened_to_it() -> None:
    outcome = run_crypten(linear, server=W, client=X)
    torch.testing.assert_close(outcome.client[0], (X @ W).relu(), atol=1e-3, rtol=0)
    assert outcome.server[0] is None
    assert outcome.cost.rounds > 0


def test_what_the_server_sees_holds_nothing_of_the_input() -> None:
    print("values: uniform masks of the system's generator")
    seen = torch.cat([run_crypten(linear, server=W, client=X).seen[0] for _ in range(20)])
    inputs = set(encode(X).flatten().tolist()) - {0}
    assert not inputs & set(seen.tolist())
    # Uniform ring elements reach far beyond what an input of fixed point does.
    assert (seen.double().abs() > 2.0**40).double().mean() > 0.5


def test_control_an_input_that_is_opened_is_seen() -> None:
    def opened(crypten: Any, rank: int, own: torch.Tensor) -> Any:
        return crypten.cryptensor(own if rank == CLIENT else torch.zeros(3, 2), src=CLIENT).get_plain_text()

    outcome = run_crypten(opened, client=X)
    torch.testing.assert_close(outcome.server[0], X)
    assert set(encode(X).flatten().tolist()) <= set(outcome.seen[0].tolist())


def test_a_linear_support_vector_machine_learns_as_in_crypten_s_example() -> None:
    """The calls of CrypTen's `mpc_linear_svm`: sign of a margin, subgradient by hand, weights that nobody has."""
    torch.manual_seed(0)
    features = torch.randn(30, 4)
    labels = (features @ torch.tensor([1.0, -1.0, 2.0, 0.5])).sign()

    def train(crypten: Any, rank: int, own: torch.Tensor) -> Any:
        x = crypten.cryptensor(own if rank == CLIENT else torch.zeros(30, 4), src=CLIENT)
        y = crypten.cryptensor(own if rank == SERVER else torch.zeros(30), src=SERVER)
        w = crypten.cryptensor(torch.zeros(1, 4), src=SERVER)
        for _ in range(12):
            label_x = x * y.unsqueeze(1)
            missed = ((1 - label_x.matmul(w.t())) > 0).squeeze(1)
            gradient = (missed.unsqueeze(1) * label_x).mean(0)
            w = w * 0.99 + gradient * 0.5
        return w.get_plain_text()

    outcome = run_crypten(train, server=labels, client=features)
    assert torch.equal(outcome.server[0], outcome.client[0])
    assert ((features @ outcome.client[0][0]).sign() == labels).double().mean() >= 0.9


def test_modules_and_autograd_train_on_shares() -> None:
    def train(crypten: Any, rank: int, own: torch.Tensor) -> Any:
        x = crypten.cryptensor(own if rank == CLIENT else torch.zeros(3, 2), src=CLIENT)
        layer = crypten.nn.Linear(2, 2)
        layer.set_parameter("weight", own if rank == SERVER else torch.zeros(2, 2))
        layer.set_parameter("bias", torch.zeros(2))
        model = layer.encrypt(src=SERVER).train()
        optimizer = crypten.optim.SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = crypten.nn.MSELoss()(model(x), x)
            loss.backward()
            optimizer.step()
            losses.append(loss.get_plain_text().item())
        return losses

    first, *_, last = run_crypten(train, server=W, client=X).client[0]
    assert 0 < last < first


def test_a_program_that_depends_on_values_is_refused() -> None:
    def depends(crypten: Any, rank: int, own: torch.Tensor) -> Any:
        x = crypten.cryptensor(own if rank == CLIENT else torch.zeros(3, 2), src=CLIENT)
        return x.relu() if x.sum().get_plain_text() > 0 else x

    with pytest.raises(RandomnessError):
        run_crypten(depends, client=X, timeout=5)


def test_crypten_s_own_generators_stay_refused() -> None:
    with pytest.raises(InsecureProviderError):
        run_crypten(lambda crypten, _rank, _own: crypten.init())
