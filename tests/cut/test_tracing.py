"""Tracing loses nothing that a model does, and leaves the model as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cut_models import Body, Middle, pair, same
from torch import nn

from splitsec.cut import SplitModel, trace
from splitsec.errors import CutError

# A forward is annotated nowhere here: torch.fx calls it with stand-ins.


class Norm(nn.Module):
    """Statistics in buffers that forward updates, in one way or another, in training alone or in both modes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.register_buffer("mean", torch.ones(8))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):  # type: ignore[no-untyped-def]
        if self.way == "training" and not self.training:
            return x - self.mean
        if self.way == "replaced":
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        elif self.way == "index":
            self.mean[:2] = 0.9 * self.mean[:2]
        elif self.way == "data":
            self.mean.data.mul_(0.5)
        elif self.way == "dictionary":
            self._buffers["mean"].mul_(0.5)
        elif self.way == "out":
            torch.mul(self.mean, 0.5, out=self.mean)
        else:
            self.mean.mul_(0.9).add_(0.1 * x.mean(0).detach())
        self.steps += 1
        return x - self.mean


WAYS = ["training", "both", "replaced", "index", "data", "dictionary", "out"]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("way", WAYS)
def test_buffers_that_a_layer_changes_are_changed_in_the_cut_model_and_not_by_cutting(way: str) -> None:
    plain, split = pair(lambda: Body(Norm(way)), check=False)
    assert same(plain, split)
    assert all(torch.equal(value, split.whole_state_dict()[key]) for key, value in state(plain).items())
    fresh = Body(Norm(way))
    before = state(fresh)
    if way == "training":
        SplitModel(fresh, "b")
    else:
        # What changes with every call in eval mode too has no prediction of its own.
        with pytest.raises(CutError, match=r"when it is called again in eval mode \('between\.(mean|steps)' changes"):
            SplitModel(fresh, "b")
    assert all(torch.equal(value, before[key]) for key, value in state(fresh).items())
    # The control: running it does change the buffers.
    plain(torch.randn(3, 4))
    assert not torch.equal(plain.get_buffer("between.mean"), before["between.mean"])


class OwnBuffer(Body):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(8))
        self.number = torch.ones(1)
        self.way = way

    def middle(self, h):  # type: ignore[no-untyped-def]
        if self.way == "replaced":
            self.count = self.count * 2
        elif self.way == "attribute":
            self.number.mul_(2)
        elif self.way == "new attribute":
            self.number = self.number * 2
        else:
            self.count.mul_(2)
        return h * self.count * self.number


@pytest.mark.parametrize("way", ["replaced", "in place", "attribute", "new attribute"])
def test_a_model_whose_own_forward_changes_its_buffers_is_refused_and_unchanged(way: str) -> None:
    model = OwnBuffer(way)
    name = "number" if "attribute" in way else "count"
    with pytest.raises(CutError, match=f"'{name}'.*nn.Module of its own"):
        SplitModel(model, "b")
    assert torch.equal(model.count, torch.ones(8))
    assert torch.equal(model.number, torch.ones(1))
    assert isinstance(model._buffers["count"], torch.Tensor)


def test_buffers_are_read_when_the_model_runs() -> None:
    class Scales(Body):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("std", torch.ones(8))

        def middle(self, h):  # type: ignore[no-untyped-def]
            return h / self.std.sqrt()

    plain, split = pair(Scales)
    for model in (plain, split.front):
        model.get_buffer("std").fill_(4)
    assert same(plain, split)


def test_masks_may_be_sliced_by_length() -> None:
    class Masked(Body):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tril(torch.ones(16, 16)))

        def middle(self, h):  # type: ignore[no-untyped-def]
            return h.masked_fill(self.mask[1, : h.size(1)] == 0, -1.0)

    assert same(*pair(Masked))


def test_what_decides_by_a_buffers_value_still_can() -> None:
    class Decides(Body):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("times", torch.tensor(3))

        def middle(self, h):  # type: ignore[no-untyped-def]
            for _ in range(int(self.times)):
                h = h * 2
            return h

    assert same(*pair(Decides))


class DropPath(nn.Module):
    """As many vision models have it."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1)).bernoulli_(0.5)


@pytest.mark.parametrize("mode", [True, False])
def test_a_layer_that_does_something_else_in_training_is_called_as_it_is(mode: bool) -> None:
    plain, split = pair(lambda: Body(DropPath()))
    assert same(plain.train(mode), split.train(mode))
    assert trace(Body(DropPath())).meta["whole"].keys() == {"between"}


class Asserts(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        assert x.dim() == 2, f"{x.shape} is no batch"
        assert x.shape[1] == 8
        return x * 2


class ByValue(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x if x.sum() > 0 else -x


class ByShape(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        if x.dim() == 3:
            x = x[0]
        return x * 2


def test_assertions_are_left_out_and_layers_that_branch_are_exported_or_called_as_they_are() -> None:
    plain, split = pair(lambda: Body(Asserts()))
    assert same(plain, split)
    assert trace(plain).meta["whole"] == {}
    plain, split = pair(lambda: Body(ByShape()))
    assert same(plain, split)
    assert "exported" in trace(plain).meta
    plain, split = pair(lambda: Body(ByValue()))
    assert same(plain, split)
    assert "control flow" in trace(plain).meta["whole"]["between"]


@pytest.mark.parametrize(
    ("middle", "advice"),
    [
        (lambda _m, h: h if h.sum() > 0 else -h, r"select with torch functions such as torch\.where"),
        (lambda _m, h: sum(h[i] for i in range(h.size(0))), "repeat a fixed number of times"),
    ],
)
def test_what_the_model_itself_decides_by_values_is_refused_with_the_line(middle: Any, advice: str) -> None:
    with pytest.raises(CutError, match=r"test_tracing\.py:\d+ .*" + advice):
        SplitModel(Middle(middle), "b")


@pytest.mark.parametrize("middle", [ByShape.forward, lambda _m, h: torch.ones(3, 8)[: h.size(0)] + h])
def test_what_a_model_decides_by_shapes_is_exported(middle: Any) -> None:
    model, x = Middle(middle).eval(), torch.randn(2, 4)
    split = SplitModel(model, "b").eval()
    assert split.checked
    assert torch.equal(split(x), model(x))


class Optional(Body):
    def forward(self, x, mask=None, *, scale=2.0):  # type: ignore[no-untyped-def]
        return super().forward(x if mask is None else x * mask) * scale


class TwoInputs(Body):
    def forward(self, numbers, codes):  # type: ignore[no-untyped-def]
        return super().forward(numbers + codes)


def test_optional_arguments_keep_their_defaults_and_two_inputs_are_refused() -> None:
    assert same(*pair(Optional))
    with pytest.raises(CutError, match=r"TwoInputs takes 2 inputs \(numbers, codes\).*MODEL\(numbers: 5, codes: 5\)"):
        SplitModel(TwoInputs(), "b")


class Returns(Body):
    def __init__(self, wrap: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.wrap(super().forward(x), x)


@pytest.mark.parametrize("wrap", [lambda out, _x: {"logits": out}, lambda out, _x: (out,), lambda out, _x: [out, None]])
def test_a_dict_or_tuple_of_one_tensor_is_that_tensor(wrap: Any) -> None:
    plain, _ = pair(Body)
    assert same(plain, pair(lambda: Returns(wrap))[1])


def test_several_results_are_refused_with_what_to_do() -> None:
    with pytest.raises(CutError, match=r"returns a dict \(logits, h\); .*such as `MODEL -> logits`"):
        SplitModel(Returns(lambda out, x: {"logits": out, "h": x}), "b")
    with pytest.raises(CutError, match=r"returns a tuple of 2 values; .*such as `MODEL -> 0`"):
        SplitModel(Returns(lambda out, x: (out, x)), "b")
    with pytest.raises(CutError, match="returns nothing that depends on its input"):
        SplitModel(Returns(lambda _out, _x: None), "b")


def test_wrapped_models_are_named() -> None:
    with pytest.raises(CutError, match=r"DataParallel cannot be cut: give the model itself \(`model.module`\)"):
        SplitModel(nn.DataParallel(Body()), "b")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda layer: torch.jit.trace(layer, torch.randn(2, 8))])
def test_compiled_layers_are_named(compiled: Any) -> None:
    model = Body()
    model.c = compiled(nn.Linear(8, 8))
    with pytest.raises(CutError, match="layer 'c' is compiled by torch.jit"):
        SplitModel(model, "b")


def test_a_dict_and_sizes_that_are_not_known_are_refused_with_what_to_do() -> None:
    class Named(Body):
        def forward(self, batch):  # type: ignore[no-untyped-def]
            return super().forward(batch["image"])

    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Named()

        def forward(self, x):  # type: ignore[no-untyped-def]
            return self.model({"image": x})

    with pytest.raises(
        CutError, match=r"Named takes a dict \('batch\['image'\]'\).*`return self.model\(\{'image': x\}\)`"
    ):
        SplitModel(Named(), "b")
    assert SplitModel(Wraps(), "model.b").checked
    lazy = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(CutError, match=r"size is not known before it runs \('0.weight'\): give it its size, or run"):
        SplitModel(lazy, "0")
    lazy(torch.randn(2, 3))
    assert SplitModel(lazy, "0").checked
