"""What works in place does so in the cut model too."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from splitsec.cut import SplitModel
from splitsec.cut.in_place import changed_attribute
from splitsec.errors import CutError


class InPlace(nn.Module):
    """What torch does to `y` is done to everybody's `y`, also where the result is not used."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.fc1, self.fc2, self.relu = kind, nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x):  # type: ignore[no-untyped-def]
        y = self.fc1(x)
        if self.kind == "method":
            y.add_(1)
        elif self.kind == "function":
            nn.functional.relu(y, inplace=True)
        elif self.kind == "layer":
            self.relu(y)
        elif self.kind == "operator":
            y += 1
        elif self.kind == "used":
            return self.fc2(self.relu(y) + y)
        elif self.kind == "part":
            y[:, :2].mul_(2)
        elif self.kind == "view":
            v = y[:, :2]
            return self.fc2(nn.functional.relu(y, inplace=True)) + v.sum(1, keepdim=True)
        return self.fc2(y)


@pytest.mark.parametrize("kind", ["method", "function", "layer", "operator", "used"])
def test_what_works_in_place_is_followed(kind: str) -> None:
    torch.manual_seed(0)
    model, x = InPlace(kind).eval(), torch.randn(3, 4)
    with torch.no_grad():
        for name in SplitModel(model, "input").cuts:
            assert torch.equal(SplitModel(model, name)(x), model(x)), name


@pytest.mark.parametrize("kind", ["part", "view"])
def test_what_works_in_place_on_a_part_is_refused(kind: str) -> None:
    with pytest.raises(CutError, match="works in place on .* another view, is read later"):
        SplitModel(InPlace(kind), "fc1")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda model, _x: model.table.add_(1), "table"),
        (lambda model, _x: model.table.view(-1).mul_(2), "table"),
        (lambda model, x: torch.add(x, 1, out=model.table), "table"),
        (lambda model, x: torch.add(model.table, x), ""),
        (lambda _model, x: x.relu_(), ""),
    ],
)
def test_an_overwritten_buffer_is_named_also_through_a_view_or_out(change: Any, name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2, 2))

        def forward(self, x):  # type: ignore[no-untyped-def]
            return change(self, x)

    graph = fx.Tracer(param_shapes_constant=False)
    graph.proxy_buffer_attributes = True
    model = Model()
    names = [changed_attribute(model, node) for node in graph.trace(model).nodes]
    assert [changed for changed in names if changed] == ([name] if name else [])
