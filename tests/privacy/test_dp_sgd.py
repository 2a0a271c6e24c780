"""Per-sample gradients on both sides of a cut, clipped together, are those of the uncut model."""

import copy
import warnings
from contextlib import nullcontext

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from splitsec import SplitModel
from splitsec.data.loaders import PoissonLoader
from splitsec.errors import ConfigError
from splitsec.models.demo import digits_cnn
from splitsec.privacy import dp_sgd as record
from splitsec.privacy.dp_sgd import PrivateStep, check_apart, check_private, with_group_norm
from splitsec.settings.privacy import GradientNoise
from splitsec.training.front import FrontPrivacy, FrontTrainer
from splitsec.training.tail import TailTrainer


def _batch(rows: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 1, 8, 8, generator=generator), torch.randint(0, 10, (rows,), generator=generator)


def _of_opacus(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, clip: float) -> dict[str, torch.Tensor]:
    """The sum of clipped gradients as Opacus makes it, by name."""
    whole = GradSampleModule(copy.deepcopy(model))
    optimizer = DPOptimizer(
        torch.optim.SGD(whole.parameters(), lr=0.1), noise_multiplier=0.0, max_grad_norm=clip, expected_batch_size=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        F.cross_entropy(whole(images), labels).backward()
    optimizer.clip_and_accumulate()
    return {name.removeprefix("_module."): parameter.summed_grad for name, parameter in whole.named_parameters()}


@pytest.mark.parametrize("cut", ["pool", "relu1", "fc1"])
def test_the_sum_over_the_cut_is_that_of_the_uncut_model(cut: str) -> None:
    torch.manual_seed(0)
    model, (images, labels), clip = digits_cnn(), _batch(), 0.7
    expected = _of_opacus(model, images, labels, clip)
    split = SplitModel(copy.deepcopy(model), cut)
    rules = GradientNoise(clip, 0.0)
    front = FrontTrainer([split.front], learning_rate=1e-3, cut=cut, privacy=FrontPrivacy(gradients=rules))
    tail = TailTrainer(split.tail, learning_rate=1e-3)
    tail.protect(rules, jointly=True)
    tail.expected = {"a": 6.0, "b": 3.0}
    # Two clients' rows in one step at the tail.
    sent = front.forward(images)
    results = tail.step({"a": (sent[:6], labels[:6]), "b": (sent[6:], labels[6:])})
    gradient = torch.cat([results["a"].gradient, results["b"].gradient])
    front.backward(gradient, torch.cat([tail.norms["a"], tail.norms["b"]]))
    found = front.take_sum()
    caught: dict[str, torch.Tensor] = {}
    names = [name for name, _ in split.tail.named_parameters()]
    stepper = tail._private._optimizer  # type: ignore[union-attr]
    stepper.add_noise = lambda: (
        caught.update(  # type: ignore[method-assign]
            {name: parameter.summed_grad.clone() for name, parameter in zip(names, stepper.params, strict=True)}
        )
        or [setattr(parameter, "grad", parameter.summed_grad.view_as(parameter)) for parameter in stepper.params]
    )
    tail.end_round({"a": front.norms[:6], "b": front.norms[6:]})
    for name, tensor in expected.items():
        mine = found[name] if name in found else caught[name]
        assert torch.allclose(mine.float().view_as(tensor), tensor, atol=1e-6), name


def test_control_each_side_clipped_by_itself_is_another_sum() -> None:
    torch.manual_seed(0)
    model, (images, labels) = digits_cnn(), _batch()
    expected = _of_opacus(model, images, labels, 0.7)
    split = SplitModel(copy.deepcopy(model), "pool")
    front = FrontTrainer(
        [split.front], learning_rate=1e-3, cut="pool", privacy=FrontPrivacy(gradients=GradientNoise(0.7, 0.0))
    )
    sent = front.forward(images).requires_grad_()
    F.cross_entropy(split.tail(sent), labels, reduction="sum").backward()
    assert sent.grad is not None
    front.backward(sent.grad, torch.zeros(len(images)))
    assert not torch.allclose(front.take_sum()["conv1.weight"].float(), expected["conv1.weight"], atol=1e-6)


def test_rows_of_who_is_gone_do_not_count() -> None:
    torch.manual_seed(0)
    images, labels = _batch()
    split = SplitModel(digits_cnn(), "pool")
    weights = []
    for gone in (False, True):
        tail = TailTrainer(copy.deepcopy(split.tail), learning_rate=1e-3)
        tail.protect(GradientNoise(0.7, 0.0), jointly=True)
        tail.expected = {"a": 6.0, "b": 3.0}
        with torch.no_grad():
            sent = split.front(images)
        batches = {"a": (sent[:6], labels[:6])} | ({"b": (sent[6:], labels[6:])} if gone else {})
        tail.step(batches)
        tail.end_round({"a": torch.zeros(6)})
        weights.append(tail.tail.fc1.weight.detach())
    assert torch.allclose(weights[0], weights[1], atol=1e-7)


def test_batches_without_rows_are_steps_of_noise_alone() -> None:
    split = SplitModel(digits_cnn(), "pool")
    rules = GradientNoise(1.0, 0.0)
    front = FrontTrainer([split.front], learning_rate=1e-3, cut="pool", privacy=FrontPrivacy(gradients=rules))
    tail = TailTrainer(split.tail, learning_rate=1e-3)
    tail.protect(rules, jointly=True)
    tail.expected = {"a": 4.0}
    before = {name: parameter.clone() for name, parameter in split.tail.named_parameters()}
    sent = front.forward(torch.zeros(0, 1, 8, 8))
    assert sent.shape == (0, 32, 4, 4)
    result = tail.step({"a": (sent, torch.zeros(0, dtype=torch.int64))})["a"]
    assert (result.loss, result.correct) == (0.0, 0)
    front.backward(result.gradient, tail.norms["a"])
    assert all(not one.any() for one in front.take_sum().values())
    tail.end_round({"a": front.norms})
    assert all(torch.equal(parameter, before[name]) for name, parameter in split.tail.named_parameters())


def test_a_gradient_that_never_came_is_forgotten() -> None:
    split = SplitModel(digits_cnn(), "pool")
    front = FrontTrainer(
        [split.front], learning_rate=1e-3, cut="pool", privacy=FrontPrivacy(gradients=GradientNoise(1.0, 0.0))
    )
    images, _ = _batch()
    gradient = torch.randn(9, 32, 4, 4)
    sums = []
    for lost in (False, True):
        if lost:
            front.forward(images[:4])
            front.begin_round()
        front.forward(images)
        front.backward(gradient, torch.zeros(9))
        sums.append(front.take_sum()["conv1.weight"])
    assert torch.equal(*sums)


def test_a_step_by_itself_moves_by_noise_of_the_promised_size() -> None:
    layer = nn.Linear(200, 100)
    start = layer.weight.detach().clone()
    step = PrivateStep([layer], torch.optim.SGD(layer.parameters(), lr=1.0), GradientNoise(1.0, 0.5))
    step.zero()
    layer(torch.zeros(3, 200)).sum().backward()
    step.step(10.0, rows=3)
    moved = layer.weight.detach() - start
    # The weights' own gradient is zero for an input of zeros: what moves them is noise of 0.5 / 10.
    assert float(moved.std()) == pytest.approx(0.05, rel=0.05)


def test_batch_norm_is_refused_with_what_to_put_in_its_place() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    with pytest.raises(ConfigError, match=r"batch norm '1'.*with_group_norm"):
        check_private(model)
    with pytest.raises(ConfigError, match="batch norm"):
        check_private(SplitModel(resnet18(num_classes=10), "layer1").front)
    replaced = with_group_norm(resnet18(num_classes=10))
    check_private(SplitModel(replaced, "layer1").front)

    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.batch_norm(x, None, None, training=True)

    with pytest.raises(ConfigError, match=r"batch norm.*group_norm"):
        check_private(SplitModel(nn.Sequential(nn.Linear(4, 4), Functional(), nn.Linear(4, 2)), "1").front)


def test_rows_that_mix_are_found() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x - x.mean(0))

    class Remembering(Mixing):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("most", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.most.copy_(torch.maximum(self.most, x.max()))
            return self.layer(x)

    batch = torch.randn(3, 6)
    with pytest.raises(ConfigError, match="of another row too"):
        check_apart(Mixing(), batch)
    remembering = Remembering()
    with pytest.raises(ConfigError, match="'most' remembers batches"):
        check_apart(remembering, batch)
    assert float(remembering.most) == 0
    check_apart(nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.LayerNorm(6)), batch)
    check_apart(SplitModel(digits_cnn(), "pool").tail, torch.randn(1, 32, 4, 4))


def test_a_batch_dimension_that_is_folded_is_found() -> None:
    class Folding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.reshape(-1, 3)).reshape(len(x), -1, 3).sum(1)

    for squares in (None, torch.ones(5)):
        model = Folding()
        step = PrivateStep([model], torch.optim.SGD(model.parameters(), lr=1.0), GradientNoise(1.0, 0.0))
        step.zero()
        model(torch.randn(5, 6)).sum().backward()
        with pytest.raises(ConfigError, match="10 rows for a batch of 5"):
            step.step(5.0, rows=5) if squares is None else step.norms(5)


class _Linear(nn.Module):
    """Two layers, of which the first is used in one way or another."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)


class _CalledTwice(_Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(torch.tanh(self.first(x)))))


class _Tied(_Linear):
    def __init__(self) -> None:
        super().__init__()
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class _ByItself(_Linear):
    """A parameter of no layer, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((6,), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x * self.scale)) * self.scale)


class _Functional(_Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(F.linear(x, self.first.weight, self.first.bias)))


class _FunctionalToo(_Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(F.linear(self.first(x), self.first.weight, self.first.bias)))


class _Penalised(_Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x))) * self.first.weight.mean()


class _Alias(_Linear):
    """A layer's weight under a name of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x) @ self.weight))


class _Deeper(_Linear):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _ByItself()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(torch.tanh(self.first(x)))


def _norms(segment: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    optimizer = torch.optim.SGD([parameter for parameter in segment.parameters() if parameter.requires_grad], lr=1.0)
    step = PrivateStep([segment], optimizer, GradientNoise(0.5, 0.0))
    step.probe(segment, x)
    step.zero()
    F.cross_entropy(segment.train()(x), labels, reduction="sum").backward()
    return step.norms(len(x))


def _true_norms(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    found = []
    for row, label in zip(x.split(1), labels.split(1), strict=True):
        model.zero_grad()
        F.cross_entropy(model(row), label).backward()
        found.append(
            torch.stack(
                [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
            ).norm()
        )
    return torch.stack(found)


@pytest.mark.parametrize("kind", [_CalledTwice, _Tied, _ByItself])
def test_norms_of_weights_that_are_used_twice_are_whole(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x, labels = kind(), torch.randn(5, 6), torch.randint(0, 3, (5,))
    found = _norms(SplitModel(copy.deepcopy(model), "input").tail, x, labels)
    assert torch.allclose(found, _true_norms(model, x, labels), rtol=1e-4)


@pytest.mark.parametrize("kind", [_Functional, _FunctionalToo, _Penalised, _Alias, _Deeper])
def test_weights_whose_part_in_a_record_cannot_be_told_are_refused(kind: type[nn.Module]) -> None:
    segment = SplitModel(kind(), "input").tail
    with pytest.raises(
        ConfigError, match=r"the weight '[a-z.]+' is used outside of its layer.*: call the layer itself"
    ):
        check_private(segment)
    # One that does not learn may be used as one likes.
    for parameter in segment.parameters():
        parameter.requires_grad_(False)
    check_private(segment)


@pytest.mark.parametrize("kind", [_FunctionalToo, _Penalised])
def test_a_wrong_gradient_is_found_whatever_the_graph_says(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x, labels = kind(), torch.randn(5, 6), torch.randint(0, 3, (5,))
    model.get_submodule("second").requires_grad_(False)
    with pytest.raises(ConfigError, match=r"record by 'first\.[a-z]+' cannot be told"):
        _norms(copy.deepcopy(model), x, labels)
    # The control: unchecked, a norm is too small for the clip to hold.
    monkeypatch.setattr(record, "check_gradients", lambda *_: None)
    assert (_norms(copy.deepcopy(model), x, labels) < 0.9 * _true_norms(model, x, labels)).any()


def test_a_head_is_looked_at_as_a_front_is() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - 0.5 * x.roll(1, 0)

    rules = FrontPrivacy(gradients=GradientNoise(1.0, 0.0))
    for middle, expected in ((Mixing(), pytest.raises(ConfigError, match="another row")), (nn.Tanh(), nullcontext())):
        head = nn.Sequential(nn.Linear(5, 4), middle, nn.Linear(4, 3))
        trainer = FrontTrainer([nn.Linear(6, 5), head], learning_rate=1e-3, cut="a, b", privacy=rules)
        sent = trainer.forward(torch.randn(4, 6))
        with expected:
            gradient = trainer.turn(sent, torch.tensor([0, 1, 2, 0]))
            trainer.backward(gradient, torch.zeros(4))
            assert len(trainer.take_sum()) == 6


def test_a_gradient_that_is_no_number_does_not_count() -> None:
    model = nn.Linear(2, 2)
    step = PrivateStep([model], torch.optim.SGD(model.parameters(), lr=1.0), GradientNoise(1.0, 0.0))
    step.zero()
    (model(torch.ones(3, 2)).sum(1) * torch.tensor([1.0, float("inf"), 1.0])).sum().backward()
    assert torch.isfinite(step.norms(3)).all()
    assert all(torch.isfinite(one).all() for one in step.take_sum())


def test_layers_that_work_in_place_are_made_not_to() -> None:
    class Functional(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(x, inplace=True)

    whole = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), Functional(), nn.Linear(4, 2))
    model = SplitModel(whole, "input").tail
    step = PrivateStep([model], torch.optim.SGD(model.parameters(), lr=1.0), GradientNoise(1.0, 0.0))
    step.zero()
    model(torch.randn(5, 4)).sum().backward()
    assert step.norms(5).shape == (5,)
    step.close()
    assert not any(hasattr(parameter, "grad_sample") for parameter in model.parameters())


def test_poisson_batches_take_each_row_at_its_rate() -> None:
    rows = torch.arange(2000, dtype=torch.float32)[:, None]
    loader = PoissonLoader(rows, None, rate=0.1, per_epoch=10, seed=bytes(range(16)))
    counts = torch.zeros(2000)
    sizes = []
    for index in range(400):
        drawn = loader.rows(index)
        assert torch.equal(drawn, loader.rows(index))
        counts[drawn] += 1
        sizes.append(len(drawn))
    assert float(counts.mean()) == pytest.approx(40, abs=0.5)
    # Binomial, and not a permutation's: the variance of a row's count and of a batch's size.
    assert float(counts.var()) == pytest.approx(36, rel=0.15)
    assert float(torch.tensor(sizes).double().var()) == pytest.approx(180, rel=0.3)
    other = PoissonLoader(rows, None, rate=0.1, per_epoch=10, seed=bytes(16))
    assert not torch.equal(other.rows(0), loader.rows(0))
