"""A cut that is not the model is refused, and one that is passes: each refusal has its control."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from splitsec.cut import SplitModel, check_split
from splitsec.errors import CutError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2)
    )


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def halves(model: nn.Sequential, at: int = 3) -> list[nn.Module]:
    return [Named(model, range(at)), Named(model, range(at, len(model)))]


class Named(nn.Module):
    """Some layers of a model under the names that they have in it."""

    def __init__(self, model: nn.Sequential, places: range) -> None:
        super().__init__()
        for place in places:
            self.add_module(str(place), model[place])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class Wrapped(nn.Module):
    """A segment with something before it."""

    def __init__(self, segment: nn.Module, before: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.before = before
        for name, child in segment.named_children():
            self.add_module(name, child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        for layer in self.children():
            x = layer(x)
        return x


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, factor: float) -> torch.Tensor:  # type: ignore[override]
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.factor, None


def test_the_same_passes_and_leaves_everything_as_it_was() -> None:
    model = net().train()
    model[4].eval()
    state, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert check_split(model, halves(model), X, cut="2")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert [layer.training for layer in model] == [True, True, True, True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (
            lambda x: x * 1.001,
            r"in eval mode its output differs by .*first layer that is given another value is '3', Linear",
        ),
        (lambda x: x.detach(), "in eval mode the gradient with respect to the input is none, which has one"),
        (lambda x: _Straight.apply(x, -1.0), "the gradient with respect to the input has the other sign"),
        (lambda x: _Straight.apply(x, 0.9), "the gradient with respect to the input differs by"),
        (lambda x: x[:2], "the batch must stay|it returns shape"),
        (lambda x: x + torch.nan, "its output differs"),
    ],
)
def test_a_wrong_segment_is_refused_with_what_differs(before: Any, reason: str) -> None:
    model = net()
    front, tail = halves(model)
    with pytest.raises(CutError, match="the model cut at '2' is not the model: .*" + reason):
        check_split(model, [front, Wrapped(tail, before)], X, cut="2")
    assert check_split(model, [front, Wrapped(tail, lambda x: x * 1)], X, cut="2")


def test_what_differs_in_training_alone_is_refused_too() -> None:
    model = net()
    front, tail = halves(model)

    class InEval(nn.Dropout):
        def train(self, mode: bool = True) -> nn.Dropout:
            return super().train(False)

    tail.add_module("4", InEval(0.5))
    with pytest.raises(CutError, match="in training mode its output differs"):
        check_split(model, [front, tail], X, cut="2")


def test_a_lost_update_of_a_buffer_is_refused() -> None:
    model = net()
    front, tail = halves(model)
    front.add_module("1", copy.deepcopy(model[1]))
    for name, parameter in model[1].named_parameters():
        setattr(front.get_submodule("1"), name, parameter)
    with pytest.raises(CutError, match=r"in training mode its buffer '1\.running_mean' becomes another value"):
        check_split(model, [front, tail], X, cut="2")


def test_a_hook_that_a_segment_drops_is_refused() -> None:
    model = net()
    segments = halves(model)
    model.register_forward_hook(lambda _module, _args, out: out + 1)
    with pytest.raises(CutError, match="its output differs"):
        check_split(model, segments, X, cut="2")


def test_a_parameter_that_gets_no_gradient_is_named() -> None:
    model = net()
    front, tail = halves(model)
    loose = copy.deepcopy(model[3])
    tail.add_module("3", loose)
    tail.get_submodule("3").weight.requires_grad_(False)
    with pytest.raises(CutError, match=r"the gradient with respect to '3\.weight' is none, which has one"):
        check_split(model, [front, tail], X, cut="2")


def test_a_test_of_types_is_what_no_trace_sees_and_the_check_does() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            h = self.a(x)
            if isinstance(h, torch.Tensor):
                h = h * 2
            return self.c(torch.relu(self.b(h)))

    with pytest.raises(CutError, match=r"its output differs .*'b', Linear.*isinstance"):
        SplitModel(Typed(), "b")
    assert not SplitModel(Typed(), "b", check=False).checked


class Remembers(nn.Module):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.a, self.b, self.where, self.calls = nn.Linear(4, 4), nn.Linear(4, 2), where, 0

    def forward(self, x):  # type: ignore[no-untyped-def]
        self.calls += 1
        return self.b(self.a(x) * (self.calls if self.where == "read" else 1))


def test_a_model_that_remembers_calls_is_refused_if_that_changes_its_results() -> None:
    with pytest.raises(CutError, match=r"called again in eval mode \(something that forward keeps changes"):
        SplitModel(Remembers("read"), "a")
    assert SplitModel(Remembers("counted"), "a").checked


def test_a_model_that_never_repeats_itself_cannot_be_checked() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.frombuffer(bytearray(__import__("os").urandom(8)), dtype=torch.uint8).sum()

    model = nn.Sequential(nn.Linear(4, 4), Noisy(), nn.Linear(4, 2))
    assert not check_split(model, [model[:1], model[1:]], X, cut="0")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16, torch.float32])
def test_every_precision_passes(kind: torch.dtype) -> None:
    assert SplitModel(net().to(kind), "2").checked


def test_rounding_is_told_from_a_difference_in_double_precision() -> None:
    model = net()
    front, tail = halves(model)

    class Rounds(nn.Module):
        """The same in exact arithmetic, and off by thousandths in single precision."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1e4) - 1e4

    assert check_split(model, [front, Wrapped(tail, Rounds())], X, cut="2")
    with pytest.raises(CutError, match="its output differs"):
        check_split(model, [front, Wrapped(tail, lambda x: x * 1.0005)], X, cut="2")


def test_a_sample_that_the_model_cannot_take_is_named() -> None:
    with pytest.raises(CutError, match=r"Sequential cannot take inputs of shape 5 \(float32\), without the batch"):
        SplitModel(net(), "2", sample=torch.randn(3, 5))
    with pytest.raises(CutError, match="at least one row"):
        SplitModel(net(), "2", sample=torch.randn(0, 4))
    assert SplitModel(net(), "2", sample=torch.randn(1, 4)).checked


def test_a_u_is_checked() -> None:
    model = net()
    assert SplitModel(model, ("1", "5")).checked
    segments = [Named(model, range(2)), Named(model, range(2, 5)), Wrapped(Named(model, range(5, 6)), torch.exp)]
    with pytest.raises(CutError, match="its output differs"):
        check_split(model, segments, X, cut="1,5")


def test_what_is_no_tensor_is_no_cut() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            _, (h, _) = self.rnn(x)
            return self.fc(h[-1])

    assert SplitModel(Hidden(), "getitem_4").cuts == ["getitem_4"]
    # A name of no module's, in the model's own order.
    with pytest.raises(CutError, match=r"no tensor with a row for each sample; the nearest clean cut is 'getitem_4'"):
        SplitModel(Hidden(), "getitem_1")


def test_results_that_a_kept_layer_gives_as_several_are_no_cut() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return (x, x * 2) if x.sum() > 0 else (x * 2, x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.two, self.b = nn.Linear(4, 4), Two(), nn.Linear(4, 2)

        def forward(self, x):  # type: ignore[no-untyped-def]
            first, second = self.two(self.a(x))
            return self.b((first > 0) * second)

    split = SplitModel(Model(), "mul")
    assert split.cuts == ["a", "mul"]
    with pytest.raises(CutError, match="the value at cut 'two' is a tuple of 2 values and no tensor"):
        SplitModel(Model(), "two")


class _Asks(nn.Module):
    """Does something else where no gradients are asked for, as predictions run."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.o(h * 2 if torch.is_grad_enabled() else h)


class _ByMode(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if self.training else x


def test_what_differs_without_gradients_alone_is_refused() -> None:
    with pytest.raises(CutError, match="in eval mode without gradients, as predictions run, its output differs"):
        SplitModel(_Asks(), "a", sample=torch.randn(3, 4))


def test_control_what_the_advice_says_instead_is_taken() -> None:
    model = nn.Sequential(nn.Linear(4, 6), _ByMode(), nn.Linear(6, 2)).eval()
    split, x = SplitModel(model, "0", sample=torch.randn(3, 4)).eval(), torch.randn(5, 4)
    assert split.checked
    with torch.no_grad():
        assert torch.equal(split(x), model(x))


class _NeedsGradients(_Asks):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.o(torch.autograd.grad((h**3).sum(), h, create_graph=True)[0])


def test_a_model_that_cannot_run_without_gradients_is_refused_as_such() -> None:
    with pytest.raises(CutError, match=r"_NeedsGradients cannot run without gradients \(torch.no_grad\(\)\)"):
        SplitModel(_NeedsGradients(), "a", sample=torch.randn(3, 4))
