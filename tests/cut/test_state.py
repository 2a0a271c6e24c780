"""Cutting leaves the model and the generators of random numbers as they were."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from support.cut_models import Body, Middle
from torch import nn

from splitsec.cut import SplitModel
from splitsec.cut.state import Generators, as_it_was, state_tensors
from splitsec.errors import CutError


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


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(1))
        self.last, self.log, self.layer = torch.zeros(1), [1], nn.Dropout()


def _spoil(model: Keeps) -> None:
    model.steps.add_(1)
    model.last.add_(1)
    model.log.append(2)
    model.layer.eval()
    model.layer.register_forward_hook(lambda *_: None)
    model.new = 3
    random.random()
    np.random.rand()
    torch.rand(1)


@pytest.mark.parametrize("values", [True, False])
def test_everything_is_put_back_also_after_an_error(values: bool) -> None:
    model, generators = Keeps(), Generators()
    with pytest.raises(ValueError, match="broke"):
        _fail_in(model, values=values)
    assert model.log == [1]
    assert model.layer.training
    assert not model.layer._forward_hooks
    assert not hasattr(model, "new")
    assert generators.foreign_drew() == ""
    assert torch.equal(torch.get_rng_state(), generators._torch)
    # Values of tensors are put back where that was asked for.
    assert (model.steps.item(), model.last.item()) == ((0, 0) if values else (1, 1))


def _fail_in(model: Keeps, *, values: bool) -> None:
    with as_it_was(model, values=values):
        _spoil(model)
        raise ValueError("broke")


def test_the_generator_that_drew_is_named() -> None:
    for draw, name in ((random.random, "random"), (np.random.rand, "numpy.random"), (lambda: torch.rand(1), "")):
        generators = Generators()
        draw()
        assert generators.foreign_drew() == name
        generators.restore()
        assert generators.foreign_drew() == ""


def test_tensors_that_are_state_are_buffers_and_attributes_and_no_parameters() -> None:
    model = nn.Sequential(Keeps(), nn.BatchNorm1d(2))
    names = [name for name, _ in state_tensors(model)]
    assert sorted(names) == ["0.last", "0.steps", "1.num_batches_tracked", "1.running_mean", "1.running_var"]
