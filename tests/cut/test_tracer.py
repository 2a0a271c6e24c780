"""What torch.fx would lose is recorded in the graph, or stops the trace with the user's line."""

import random
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from support.cut_models import Body, Middle, SetsUp, pair, same
from torch import nn
from torchvision.transforms import v2

from splitsec.cut import SplitModel
from splitsec.errors import CutError


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


class Inherits(Sign):
    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * 2


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


@pytest.mark.parametrize(
    ("draw", "how"),
    [
        (lambda _m, h: h + torch.randn(8), r"at .*test_tracer.py:\d+ .*torch.randn\(8\)"),
        (lambda _m, h: h + torch.distributions.Laplace(0.0, 0.5).sample((8,)), "Laplace"),
        (lambda _m, h: h + torch.empty(8).normal_(), "normal_"),
        (lambda _m, h: h * random.random(), "Python's random"),
        (lambda _m, h: h * float(np.random.rand()), r"Python's numpy\.random"),
    ],
)
def test_random_numbers_that_would_be_constants_are_refused_as_such(draw: Any, how: str) -> None:
    with pytest.raises(CutError, match="draws random numbers in forward.*" + how):
        SplitModel(Middle(draw), "b")


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


def test_layers_that_forward_makes_are_looked_into_unless_they_have_weights() -> None:
    assert same(*pair(lambda: Middle(lambda _model, h: nn.Sequential(nn.Tanh(), nn.Dropout(0.5))(h))))
    with pytest.raises(
        CutError, match=r"makes a layer with weights, LayerNorm, in forward at .*; make the layer in __init__"
    ):
        SplitModel(Middle(lambda _model, h: nn.LayerNorm(8)(h)), "b")
