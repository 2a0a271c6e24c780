"""Tracing loses nothing that a model does, and leaves the model as it was."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms import v2

from splitsec.cut import SplitModel, trace
from splitsec.errors import CutError

# A forward is annotated nowhere here: torch.fx calls it with stand-ins.


class Body(nn.Module):
    """Linear, something, linear, linear; cut after the second linear layer."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.between = nn.Identity() if between is None else between

    def middle(self, h):  # type: ignore[no-untyped-def]
        return self.between(h)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.c(torch.relu(self.b(self.middle(torch.relu(self.a(x))))))


def pair(make: Callable[[], nn.Module], cut: Any = "b", *, check: bool = True) -> tuple[nn.Module, SplitModel]:
    """The same model twice, one of them cut."""
    torch.manual_seed(0)
    plain = make()
    torch.manual_seed(0)
    return plain, SplitModel(make(), cut, check=check)


def results(model: nn.Module, x: torch.Tensor, first: nn.Parameter) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A model's output, and the gradient of its first layer."""
    out = model(x)
    loss = (out * torch.arange(1.0, 1 + out.numel()).view_as(out)).sum()
    return out, torch.autograd.grad(loss, first, allow_unused=True)[0]


def same(plain: nn.Module, split: SplitModel, first: str = "a.weight") -> bool:
    """Whether both give the same output and gradient, with the same random numbers."""
    x, values = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), []
    held = dict(split.front.named_parameters()).get(first)
    for model, parameter in ((plain, plain.get_parameter(first)), (split, held)):
        torch.manual_seed(2)
        assert parameter is not None
        values.append(results(model, x, parameter))
    (out, gradient), (other, theirs) = values
    return torch.equal(out, other) and (
        gradient is theirs or (gradient is not None and theirs is not None and torch.equal(gradient, theirs))
    )


class Sign(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return torch.sign(x - 0.1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return -gradient


class Middle(Body):
    def __init__(self, middle: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.by_hand = middle

    def middle(self, h):  # type: ignore[no-untyped-def]
        return self.by_hand(self, h)


class Inherits(Sign):
    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 2


class SetsUp(torch.autograd.Function):
    """The newer way to write one, of two values."""

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x * 1 + y * 0

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return gradient * ctx.saved_tensors[0], None


# As torch's own documentation calls them.
sign, sets_up = Sign.apply, SetsUp.apply


@pytest.mark.parametrize("apply", [Sign.apply, Reverse.apply, Inherits.apply, sign, lambda h: sets_up(h, h)])
def test_the_backward_of_an_autograd_function_is_kept(apply: Any) -> None:
    own = {function: dict(vars(function)) for function in (Sign, Reverse, Inherits, SetsUp)}
    plain, split = pair(lambda: Middle(lambda _model, h: apply(h)))
    assert all(dict(vars(function)) == before for function, before in own.items())
    assert same(plain, split)
    # The control: what its forward alone comes to has another gradient.
    without, _ = pair(lambda: Middle(lambda _model, h: h))
    assert not same(without, split)


def _no_grad(_model: nn.Module, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return h * 2


def test_regions_without_gradients_stay_so() -> None:
    plain, split = pair(lambda: Middle(_no_grad))
    assert same(plain, split)
    with_gradient, _ = pair(lambda: Middle(lambda _model, h: h * 2))
    assert not same(with_gradient, split)


def test_a_region_without_gradients_ends_where_forward_ends_it() -> None:
    def partly(model: nn.Module, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            still, batch = torch.tanh(h), h.size(0)
            with torch.enable_grad():
                also = h * 3
        return (still + also + h).view(batch, -1)

    plain, split = pair(lambda: Middle(partly))
    assert same(plain, split)
    with torch.no_grad():
        _, inside = pair(lambda: Middle(partly))
    assert same(plain, inside)


def test_an_autograd_function_in_a_region_without_gradients_has_none() -> None:
    def still(_model: nn.Module, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return sets_up(h, h)

    plain, split = pair(lambda: Middle(still))
    assert same(plain, split)
    with_gradient, _ = pair(lambda: Middle(lambda _model, h: sets_up(h, h)))
    assert not same(with_gradient, split)


def test_what_a_region_without_gradients_overwrites_is_refused() -> None:
    def overwrites(_model: nn.Module, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h.clamp_(max=1)
        return h

    with pytest.raises(
        CutError, match=r"overwrites 'relu' under torch.no_grad\(\) at .*test_tracing.py:\d+ \(h.clamp_"
    ):
        SplitModel(Middle(overwrites), "b")


def test_autocast_is_refused_with_its_line() -> None:
    def cast(_model: nn.Module, h: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return h @ h.T

    with pytest.raises(CutError, match=r"runs under torch.autocast, at .*\(return h @ h.T\); leave autocast out"):
        SplitModel(Middle(cast), "b")


def scaled(model: nn.Module) -> nn.Module:
    model.register_forward_pre_hook(lambda _module, args: (args[0] * 10,))
    model.register_forward_hook(lambda _module, _args, out: out + 1)
    model.register_forward_hook(lambda _module, _args, kwargs, out: out * (2 + len(kwargs)), with_kwargs=True)
    return model


def test_hooks_of_the_whole_model_run() -> None:
    plain, split = pair(lambda: scaled(Body()))
    assert same(plain, split)
    bare, _ = pair(Body)
    assert not same(bare, split)


def test_a_forward_of_the_instance_and_a_call_of_the_class_count() -> None:
    class Called(Body):
        def __call__(self, x):  # type: ignore[no-untyped-def]
            return super().__call__(x * 2) + 1

    def patched() -> nn.Module:
        model = Body()
        model.forward = lambda x: model.c(torch.tanh(model.b(model.a(x))))  # type: ignore[method-assign]
        return model

    assert same(*pair(Called))
    assert same(*pair(patched))


def test_backward_hooks_are_refused_or_kept_with_their_module() -> None:
    def twice(_module: nn.Module, inputs: Any, _outputs: Any) -> Any:
        return (inputs[0] * 2,)

    def on(path: str) -> nn.Module:
        model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 8), nn.Linear(8, 2))
        model.get_submodule(path).register_full_backward_hook(twice)
        return model

    with pytest.raises(
        CutError, match=r"it has a backward hook, '.*twice', which no segment would run; remove the hook"
    ):
        SplitModel(on(""), "1")
    plain, split = pair(lambda: nn.Sequential(nn.Linear(4, 4), *on("0")), "2")
    assert same(plain, split, "0.weight")
    assert "1.0" not in split.cuts
    assert not same(
        nn.Sequential(*pair(lambda: nn.Sequential(nn.Linear(4, 4), *on("1")[:1], *on("1")[1:]), "2")[0]),
        split,
        "0.weight",
    )


@pytest.mark.parametrize(
    "transform",
    [
        v2.Normalize([0.5] * 3, [0.2] * 3),
        v2.Compose([v2.Resize(6), v2.Normalize([0.5] * 3, [0.2] * 3)]),
        torchvision.transforms.Normalize([0.5] * 3, [0.2] * 3),
    ],
)
def test_transforms_inside_a_model_act(transform: nn.Module) -> None:
    model = nn.Sequential(transform, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    split, x = SplitModel(model, "1"), torch.rand(2, 3, 8, 8)
    assert torch.equal(split(x), model(x))
    assert not torch.equal(model[1:](x).mean(), model(x).mean())


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


def test_the_generators_of_random_numbers_stay_as_they_were() -> None:
    class Draws(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x + torch.randn(8) + random.random() + float(np.random.rand())

    model, refused = Body(Draws()), Middle(lambda _model, h: h * random.random())
    before = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    with pytest.raises(CutError):
        SplitModel(refused, "b")
    SplitModel(model, "b")
    assert random.getstate() == before[0]
    assert np.random.get_state()[2] == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(
    ("draw", "how"),
    [
        (lambda _m, h: h + torch.randn(8), r"at .*test_tracing.py:\d+ .*torch.randn\(8\)"),
        (lambda _m, h: h + torch.distributions.Laplace(0.0, 0.5).sample((8,)), "Laplace"),
        (lambda _m, h: h + torch.empty(8).normal_(), "normal_"),
        (lambda _m, h: h * random.random(), "Python's random"),
        (lambda _m, h: h * float(np.random.rand()), r"Python's numpy\.random"),
    ],
)
def test_random_numbers_that_would_be_constants_are_refused_as_such(draw: Any, how: str) -> None:
    with pytest.raises(CutError, match="draws random numbers in forward.*" + how):
        SplitModel(Middle(draw), "b")


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


class ByShape(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        if x.dim() == 3:
            x = x[0]
        return x * 2


def test_assertions_are_left_out_and_layers_that_branch_are_called_as_they_are() -> None:
    plain, split = pair(lambda: Body(Asserts()))
    assert same(plain, split)
    assert trace(plain).meta["whole"] == {}
    plain, split = pair(lambda: Body(ByShape()))
    assert same(plain, split)
    assert "control flow" in trace(plain).meta["whole"]["between"]


@pytest.mark.parametrize(
    ("middle", "advice"),
    [
        (ByShape.forward, r"\(if x.dim\(\) == 3:\); it decides by the input's shape or type.*an nn.Module of its own"),
        (lambda _m, h: h if h.sum() > 0 else -h, r"select with torch functions such as torch\.where"),
        (lambda _m, h: torch.ones(3, 8)[: h.size(0)] + h, "slice by fixed lengths, or slice a buffer"),
        (lambda _m, h: sum(h[i] for i in range(h.size(0))), "repeat a fixed number of times"),
    ],
)
def test_what_the_model_itself_decides_by_values_is_refused_with_the_line(middle: Any, advice: str) -> None:
    with pytest.raises(CutError, match=r"test_tracing\.py:\d+ .*" + advice):
        SplitModel(Middle(middle), "b")


class Optional(Body):
    def forward(self, x, mask=None, *, scale=2.0):  # type: ignore[no-untyped-def]
        return super().forward(x if mask is None else x * mask) * scale


class TwoInputs(Body):
    def forward(self, numbers, codes):  # type: ignore[no-untyped-def]
        return super().forward(numbers + codes)


def test_optional_arguments_keep_their_defaults_and_two_inputs_are_refused() -> None:
    assert same(*pair(Optional))
    with pytest.raises(CutError, match=r"TwoInputs takes 2 inputs \(numbers, codes\).*join them along a dimension"):
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
    with pytest.raises(CutError, match=r"returns a dict \(logits, h\); .*`return self.model\(x\)\['logits'\]`"):
        SplitModel(Returns(lambda out, x: {"logits": out, "h": x}), "b")
    with pytest.raises(CutError, match=r"returns a tuple of 2 values; .*`return self.model\(x\)\[0\]`"):
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


def test_hooks_registered_before_can_still_be_removed() -> None:
    model = Body()
    handle = model.b.register_forward_hook(lambda _module, _args, out: out * 2)
    SplitModel(model, "b")
    handle.remove()
    assert not model.b._forward_hooks


def test_lists_and_tables_of_a_model_stay_as_they_were() -> None:
    class Collects(Body):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []
            self.table: dict[str, Any] = {}

        def middle(self, h):  # type: ignore[no-untyped-def]
            self.seen.append(h)
            self.table["h"] = h
            return h

    model = Collects()
    SplitModel(model, "b")
    assert model.seen == []
    assert model.table == {}


def test_modules_run_in_other_threads_meanwhile() -> None:
    model, x, ended, errors = (
        nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))),
        torch.ones(2, 4),
        threading.Event(),
        [],
    )
    expected = model(x)

    def run() -> None:
        try:
            while not ended.is_set():
                assert torch.equal(model(x), expected)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(20):
        SplitModel(Body(), "b")
    ended.set()
    thread.join()
    assert errors == []


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


def test_layers_that_forward_makes_are_looked_into_unless_they_have_weights() -> None:
    assert same(*pair(lambda: Middle(lambda _model, h: nn.Sequential(nn.Tanh(), nn.Dropout(0.5))(h))))
    with pytest.raises(
        CutError, match=r"makes a layer with weights, LayerNorm, in forward at .*; make the layer in __init__"
    ):
        SplitModel(Middle(lambda _model, h: nn.LayerNorm(8)(h)), "b")
