import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitsec.cut import SplitModel
from splitsec.errors import MessageError, RangeError
from splitsec.training.front import FrontTrainer
from splitsec.training.step import segment_digest
from splitsec.training.tail import TailTrainer


def _split() -> SplitModel:
    torch.manual_seed(0)
    return SplitModel(nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3)), "0")


def test_one_split_step_is_one_plain_step() -> None:
    split, images, labels = _split(), torch.randn(8, 4), torch.randint(0, 3, (8,))
    whole = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    whole.load_state_dict(split.whole_state_dict())
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    front, tail = FrontTrainer([split.front], learning_rate=0.01, cut="0"), TailTrainer(split.tail, learning_rate=0.01)
    for _ in range(3):
        result = tail.step({"a": (front.forward(images), labels)})["a"]
        front.backward(result.gradient)
        loss = F.cross_entropy(whole(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), abs=1e-6)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(split.whole_state_dict()[key], value)


def test_each_client_gets_the_gradient_of_its_own_mean_loss() -> None:
    split = _split()
    one, other = torch.randn(5, 6), torch.randn(3, 6)
    labels = torch.randint(0, 3, (8,))
    leaf = other.clone().requires_grad_()
    F.cross_entropy(split.tail(leaf.clone()), labels[5:]).backward()
    results = TailTrainer(split.tail, learning_rate=0.01).step({"a": (one, labels[:5]), "b": (other, labels[5:])})
    torch.testing.assert_close(results["b"].gradient, leaf.grad)


def test_bad_batches_are_refused_and_change_nothing() -> None:
    split = _split()
    trainer = TailTrainer(split.tail.train(), learning_rate=0.01)
    before = segment_digest(split.tail)
    with pytest.raises(MessageError, match="cannot take an activation of shape 2x5"):
        trainer.check(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(MessageError, match="labels from 0 to 7, but the model has 3 classes"):
        trainer.check(torch.zeros(2, 6), torch.tensor([0, 7]))
    assert segment_digest(split.tail) == before
    assert split.tail.training


def test_an_activation_that_is_not_finite_is_named() -> None:
    trainer = FrontTrainer([_split().front], learning_rate=0.01, cut="0")
    with pytest.raises(RangeError, match="the activation at cut '0' holds nan"):
        trainer.forward(torch.full((2, 4), float("nan")))
    with pytest.raises(MessageError, match="fits no activation"):
        trainer.backward(torch.zeros(9, 9))


def test_digests_tell_fronts_apart() -> None:
    one, other = _split().front, _split().front
    assert segment_digest(one) == segment_digest(other)
    with torch.no_grad():
        next(iter(other.parameters())).view(-1)[0] += 1
    assert segment_digest(one) != segment_digest(other)


@pytest.mark.parametrize("clients", [1, 2])
def test_one_step_of_a_u_is_one_plain_step(clients: int) -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    split = SplitModel(copy.deepcopy(whole), ("1", "4"))
    assert split.head is not None
    images, labels = torch.randn(8, 4), torch.randint(0, 3, (8,))
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.01)
    front = FrontTrainer([split.front, split.head], learning_rate=0.01, cut=split.cut)
    tail = TailTrainer(split.tail, learning_rate=0.01)
    if clients == 2:
        # What another client's rows add to the tail's step must not change this client's own gradient.
        leaf = split.front(images).detach()
        alone = FrontTrainer([split.front, split.head], learning_rate=0.0, cut=split.cut)
        outputs = tail.forward({"a": leaf, "b": torch.randn(3, 6)})
        gradients = {"a": alone.turn(outputs["a"], labels), "b": torch.randn(3, 5)}
        expected = leaf.clone().requires_grad_()
        F.cross_entropy(split.head(split.tail(expected)), labels).backward()
        torch.testing.assert_close(tail.backward(gradients)["a"], expected.grad)
        return
    for _ in range(3):
        front.begin_round()
        outputs = tail.forward({"a": front.forward(images)})
        front.backward(tail.backward({"a": front.turn(outputs["a"], labels)})["a"])
        loss = F.cross_entropy(whole(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert front.book.loss == pytest.approx(loss.item(), abs=1e-6)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(split.whole_state_dict()[key], value)


def test_a_head_names_labels_that_it_cannot_give() -> None:
    split = SplitModel(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), ("0", "2"))
    front = FrontTrainer([split.front, split.head], learning_rate=0.01, cut=split.cut)
    with pytest.raises(MessageError, match="labels from 7 to 7, but the model has 3 classes"):
        front.turn(torch.randn(1, 6), torch.tensor([7]))
    with pytest.raises(MessageError, match="the head cannot take the tail's output"):
        front.turn(torch.randn(1, 5), torch.tensor([0]))


def _convolutional() -> nn.Module:
    torch.manual_seed(0)
    # No bias before batch norm: its gradient is rounding alone, which Adam makes large.
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)
    )


def test_several_batches_in_flight_take_gradients_at_the_weights_that_made_them() -> None:
    """Delayed by one step: the second gradient is that of the weights before the first step, applied after it."""
    front = _convolutional()
    reference = copy.deepcopy(front)
    trainer = FrontTrainer([front], learning_rate=0.1, cut="4", in_flight=2)
    batches = [torch.randn(3, 1, 4, 4) for _ in range(4)]
    optimizer = torch.optim.Adam(reference.parameters(), lr=0.1)
    # By hand: the gradient of batch t at the weights after t - 2 steps.
    waiting = []
    for index, batch in enumerate(batches):
        stale = copy.deepcopy(reference)
        output = stale(batch)
        output.backward(torch.ones_like(output))
        reference.load_state_dict({**reference.state_dict(), **_buffers(stale)})
        waiting.append([parameter.grad for parameter in stale.parameters()])
        if index >= 1:
            _apply(reference, optimizer, waiting.pop(0))
    _apply(reference, optimizer, waiting.pop(0))
    for index, batch in enumerate(batches):
        shape = trainer.forward(batch).shape
        if index >= 1:
            trainer.backward(torch.ones(shape))
    trainer.backward(torch.ones(3, 3))
    assert trainer.due is None
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(front.state_dict()[key], value)


def _buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_buffers())


def _apply(module: nn.Module, optimizer: torch.optim.Optimizer, gradients: list[torch.Tensor | None]) -> None:
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


def test_fedprox_adds_its_term() -> None:
    front = nn.Linear(2, 2)
    begun = copy.deepcopy(front)
    trainer = FrontTrainer([front], learning_rate=0.1, cut="x", proximal=10.0)
    trainer.begin_round()
    with torch.no_grad():
        front.weight.add_(1.0)
    shape = trainer.forward(torch.zeros(1, 2)).shape
    trainer.backward(torch.zeros(shape))
    # The loss has no gradient with respect to the weights here, so only the pull towards the round's beginning is left.
    torch.testing.assert_close(front.weight.grad, 10.0 * torch.ones(2, 2))
    assert (front.weight < begun.weight + 1.0).all()


def test_a_tail_that_detaches_what_it_is_given_sends_zeros_back() -> None:
    class Detaches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach() * 2

    split = SplitModel(nn.Sequential(nn.Linear(4, 4), Detaches(), nn.Linear(4, 2)), "0")
    server = TailTrainer(split.tail, learning_rate=0.1)
    result = server.step({"a": (torch.randn(3, 4), torch.tensor([0, 1, 0]))})["a"]
    assert torch.equal(result.gradient, torch.zeros(3, 4))
