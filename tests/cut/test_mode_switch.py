"""A call whose arguments depend on the mode follows the mode in the cut model."""

import torch
from torch import fx, nn

from splitsec.cut import SplitModel
from splitsec.cut.mode_switch import ByMode


class DropsByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 64), nn.Linear(64, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = nn.functional.dropout(self.fc1(x), 0.5, training=self.training)
        return self.fc2(nn.functional.batch_norm(x, torch.zeros(64), torch.ones(64), training=self.training))


def test_a_forward_that_passes_its_mode_on_is_followed() -> None:
    model = DropsByHand().eval()
    split, x = SplitModel(model, "fc1"), torch.randn(3, 4)
    assert not any(module.training for module in split.modules())
    assert torch.equal(split(x), model(x))
    split.train()
    torch.manual_seed(5)
    dropped = split(x)
    torch.manual_seed(5)
    assert torch.equal(dropped, model.train()(x))
    assert not torch.equal(dropped, split.eval()(x))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return nn.functional.dropout(self.fc(x), 0.5, training=self.training)


def test_frozen_blocks_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Frozen(), nn.Linear(4, 2)).train()
    model[1].eval()
    split, x = SplitModel(model, "0"), torch.randn(3, 4)
    assert torch.equal(split(x), model(x))
    merged = split.merge()
    assert merged.training
    assert not merged[1].training
    assert torch.equal(merged(x), model(x))


def test_values_go_to_their_places_in_nested_arguments_of_each_mode() -> None:
    first, second = (fx.Graph().placeholder(name) for name in ("first", "second"))
    layer = ByMode(
        "addcmul", ((first, second, first), {"value": 2}), ((second, first, first), {"value": 1}), [first, second]
    )
    x, y = torch.tensor([2.0]), torch.tensor([3.0])
    assert layer.train()(x, y).item() == 2 + 2 * 3 * 2
    assert layer.eval()(x, y).item() == 3 + 2 * 2
    assert layer.in_eval((x, y)) == ((y, x, x), {"value": 1})
    cat = ByMode(torch.cat, (([first, second],), {}), (([second, first],), {"dim": 0}), [first, second])
    assert cat.train()(x, y).tolist() == [2, 3]
    assert cat.eval()(x, y).tolist() == [3, 2]
