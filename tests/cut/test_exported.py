"""Models that torch.fx refuses are exported, and their segments are the model."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from splitsec.cut import SplitModel
from splitsec.cut.exported import export_graph
from splitsec.cut.tracing import trace, trace_exported
from splitsec.errors import CutError
from splitsec.mpc.program.compile import compile_tail

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))


class ByLength(nn.Module):
    """A model that computes by the length of its input, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)
        self.register_buffer("places", torch.randn(16, 8))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        batch, length, size = x.shape
        if length > 16:
            raise ValueError("too long")
        h = self.first(x) + self.places[:length]
        h = self.norm(h.view(batch * length, size)).view(batch, length, size).relu()
        return {"logits": self.second(self.drop(h).mean(1)), "cache": None}


@pytest.mark.parametrize("cut", ["first", "drop"])
def test_a_model_that_torch_fx_refuses_is_cut_and_checked(cut: str) -> None:
    torch.manual_seed(0)
    model = ByLength()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = SplitModel(model, cut, sample=X)
    assert split.checked
    names = [*split.front.state_dict(), *split.tail.state_dict()]
    assert sorted(names) == sorted(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for rows in (1, 4):
        x = torch.randn(rows, 5, 8)
        assert torch.equal(split.eval()(x), model.eval()(x)["logits"])


def test_a_counter_is_on_the_side_of_its_norm() -> None:
    split = SplitModel(ByLength(), "first", sample=X).train()
    split(X)
    counters = [module.state_dict().get("norm.num_batches_tracked") for module in (split.front, split.tail)]
    assert counters == [None, torch.tensor(1)]
    split.eval()(X)
    assert split.tail.state_dict()["norm.num_batches_tracked"] == 1


def test_an_exported_tail_is_compiled_with_the_paths_of_its_layers() -> None:
    split = SplitModel(ByLength(), "first", sample=X).eval()
    program, _ = compile_tail(split.tail, (2, 5, 8))
    assert "second" in [step.name for step in program.steps]


def test_what_cannot_be_exported_says_where_and_what_to_do() -> None:
    class ByValue(ByLength):
        def forward(self, x: torch.Tensor) -> Any:
            if x.sum() > 0:
                x = -x
            return super().forward(x)

    with pytest.raises(CutError, match="ByValue decides by a value, at .*test_exported.py.*torch.where"):
        export_graph(ByValue(), X)

    class OneSize(ByLength):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x.reshape(3, 5, 8))

    with pytest.raises(CutError, match="one size of batch.*take the size from the input"):
        export_graph(OneSize(), X)


def test_several_results_are_refused_with_their_names() -> None:
    class Two(ByLength):
        def forward(self, x: torch.Tensor) -> Any:
            return {**super().forward(x), "features": x}

    with pytest.raises(CutError, match=r"a dict \(logits, cache, features\)"):
        export_graph(Two(), X)


def test_hooks_on_gradients_are_refused_and_regions_without_gradients_kept() -> None:
    hooked = ByLength()
    hooked.first.register_full_backward_hook(lambda *_: None)
    with pytest.raises(CutError, match="backward hook.*remove the hook"):
        trace_exported(hooked, X)

    class Frozen(ByLength):
        def forward(self, x: torch.Tensor) -> Any:
            with torch.no_grad():
                x = self.first(x)
            return super().forward(x)

    def gradient(model: nn.Module, call: nn.Module) -> torch.Tensor:
        model.zero_grad()
        result = call(X)
        (result if isinstance(result, torch.Tensor) else result["logits"]).square().sum().backward()
        return model.get_parameter("first.weight").grad.clone()

    frozen = Frozen().eval()
    traced = trace(frozen, X).eval()
    kept = gradient(frozen, traced)
    assert torch.allclose(kept, gradient(frozen, frozen))
    # Without the region another gradient comes back through its values.
    free = ByLength().eval()
    free.load_state_dict(frozen.state_dict())
    twice = free.forward
    free.forward = lambda x: twice(free.first(x))  # type: ignore[method-assign]
    assert not torch.allclose(kept, gradient(free, free))


def test_numbers_that_python_draws_are_refused_and_its_generator_is_put_back() -> None:
    class Drawing(ByLength):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x * random.random())

    before = random.getstate()
    with pytest.raises(CutError, match="draws random numbers in forward.*Python's random.*draw them with torch"):
        trace_exported(Drawing(), X)
    assert random.getstate() == before
