"""Every refusal says what takes the layer's place, and where the next cut lies; layers of a user's own run by what they
do in eval mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.encrypted_tail import run_tail
from torch import nn
from torchvision.transforms import v2

from splitsec.cut import SplitModel, trace
from splitsec.errors import UnsupportedLayerError
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.lowering import supported_layers
from splitsec.mpc.program.lowering.advice import ADVICE

IMAGE, ROW = (1, 4, 8, 8), (2, 8)


class Of(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.function(x)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Bilinear(8, 8, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.both(x, x)


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "equal": (Of(lambda x: torch.where(torch.isclose(x, x * 2), x, 0.0)), ROW, "compare with >, >=, < or <="),
    "similarity": (Of(lambda x: x * F.cosine_similarity(x, x * 2)[:, None]), ROW, "the product of F.normalize"),
    "floor division": (Of(lambda x: x // 2), ROW, "leave quantisation out"),
    "alpha": (Of(lambda x: torch.add(x, x, alpha=3)), ROW, r"write a \+ alpha \* b"),
    "exponent": (Of(lambda x: 2**x), ROW, "raises to a value that is no plain number"),
    "softsign": (nn.Softsign(), ROW, "use nn.Tanh or nn.Hardtanh"),
    "local response": (nn.LocalResponseNorm(5), IMAGE, "use nn.BatchNorm2d"),
    "pair": (Pair(), ROW, "use nn.Linear of torch.cat of both"),
    "autograd": (Of(Own.apply), ROW, r"\(Own\) has no encrypted form: it is an autograd.Function of your own"),
    "transform": (
        v2.Normalize([0.5] * 4, [0.5] * 4),
        IMAGE,
        r"\(Normalize\) .*it prepares inputs; keep it in the front",
    ),
    "windows": (nn.AdaptiveMaxPool2d(3), IMAGE, "8x8 to 3x3, of several sizes; use sizes that divide"),
    "batch": (Of(lambda x: x - x.amax(0)), ROW, "compares the samples of a batch"),
    "sort": (Of(lambda x: x.sort(1)[0]), ROW, r"use nn\.MaxPool1d"),
    "logarithm of a sum": (Of(lambda x: x.logsumexp(1)), ROW, "subtract torch.log_softmax"),
    "recurrent": (nn.GRU(8, 8), (2, 3, 8), "a step at a time; keep it in the front"),
    "table": (nn.Embedding(9, 4), (2, 3), "looking up a row would show the server which one"),
    "old weight norm": (nn.utils.weight_norm(nn.Linear(8, 8)), ROW, r"torch.nn.utils.remove_weight_norm\(layer\)"),
    "old spectral norm": (
        nn.utils.spectral_norm(nn.Linear(8, 8)),
        ROW,
        r"torch.nn.utils.remove_spectral_norm\(layer\)",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_takes_the_place(name: str) -> None:
    layer, shape, reason = REFUSED[name]
    with pytest.raises(UnsupportedLayerError, match=reason):
        compile_tail(trace(nn.Sequential(nn.Identity(), layer)), shape)


def test_no_list_of_layers_is_a_refusal() -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        compile_tail(trace(nn.Sequential(nn.Linear(8, 8), Of(torch.lgamma), nn.Linear(8, 2))), ROW)
    assert str(caught.value) == ("layer 'lgamma' (lgamma) has no encrypted form; the nearest cut behind it is '1'")
    with pytest.raises(
        UnsupportedLayerError, match=r"no encrypted form; write it with layers that have one: docs/reference/models"
    ):
        compile_tail(trace(nn.Sequential(nn.Linear(8, 8), Of(torch.lgamma))), ROW)


def test_the_nearest_cut_behind_is_a_cut_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Softsign(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(UnsupportedLayerError, match="nn.Hardtanh; the nearest cut behind it is '1'"):
        compile_tail(SplitModel(model, "0").tail, ROW)
    compile_tail(SplitModel(model, "1").tail, ROW)


def test_advice_names_nothing_that_has_a_form() -> None:
    assert not set(ADVICE) & set(supported_layers())


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrised_layers_run_with_the_weight_that_they_compute(wrap: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(wrap(nn.Conv2d(4, 3, 3)), nn.ReLU(), nn.Flatten(), wrap(nn.Linear(108, 3))).eval()
    x = torch.randn(IMAGE)
    with torch.no_grad():
        torch.testing.assert_close(run_tail(layer, x)[0], layer(x), atol=2e-3, rtol=1e-4)


class DropPath(nn.Module):
    """Something else in training; scales in eval mode, so that leaving it out would show."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        if not self.training:
            return torch.relu(x) * 2
        return x * x.new_empty((x.shape[0], 1)).bernoulli_(0.5)


class Residual(nn.Module):
    """A layer whose output another node reads too, before a batch norm inside a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.inner = nn.Linear(8, 8), Inner()

    def forward(self, x):  # type: ignore[no-untyped-def]
        y = self.fc(x)
        return self.inner(y) + y


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.norm(x) if not self.training else self.norm(x * torch.randn_like(x))


@pytest.mark.parametrize("make", [DropPath, Residual])
def test_a_users_own_layer_runs_as_it_does_in_eval_mode(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), make(), nn.Linear(8, 2)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    x = torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(run_tail(model, x)[0], model(x), atol=2e-3, rtol=1e-4)


class Typed(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        if self.training:
            return x * 3
        return x * 2 if isinstance(x, torch.Tensor) else x


class Decides(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x if x.sum() > 0 else -x


def test_a_users_own_layer_that_cannot_be_traced_is_refused_with_the_line() -> None:
    for layer, reason in (
        (Typed(), r"layer '1' \(Typed\) has no encrypted form: it does something that a graph does not see"),
        (Decides(), r"layer '1' \(Decides\) has no encrypted form: .*control flow, at .*test_advice\.py"),
    ):
        with pytest.raises(UnsupportedLayerError, match=reason):
            compile_tail(trace(nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 2))), ROW)
