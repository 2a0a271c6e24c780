"""Regions of a forward without gradients have none in the cut model either."""

import pytest
import torch
from support.cut_models import Middle, SetsUp, pair, same
from torch import nn

from splitsec.cut import SplitModel
from splitsec.cut.gradients import without_gradient
from splitsec.errors import CutError


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
            return SetsUp.apply(h, h)

    plain, split = pair(lambda: Middle(still))
    assert same(plain, split)
    with_gradient, _ = pair(lambda: Middle(lambda _model, h: SetsUp.apply(h, h)))
    assert not same(with_gradient, split)


def test_what_a_region_without_gradients_overwrites_is_refused() -> None:
    def overwrites(_model: nn.Module, h: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            h.clamp_(max=1)
        return h

    with pytest.raises(
        CutError, match=r"overwrites 'relu' under torch.no_grad\(\) at .*test_gradients.py:\d+ \(h.clamp_"
    ):
        SplitModel(Middle(overwrites), "b")


def test_every_tensor_of_several_is_detached_and_what_holds_them_stays_as_it_was() -> None:
    x = torch.arange(4.0).view(2, 2).requires_grad_()
    largest = without_gradient(x.max(1))
    assert type(largest) is type(x.max(1))
    assert not largest.values.requires_grad
    one, (other, number) = without_gradient((x, [x * 2, 3]))
    assert not one.requires_grad
    assert not other.requires_grad
    assert number == 3
