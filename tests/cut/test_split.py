import pytest
import torch
import torchvision
from torch import nn

from splitsec.cut import SplitModel, load_segment
from splitsec.errors import CutError
from splitsec.models import digits_cnn


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):  # type: ignore[no-untyped-def]
        x = torch.relu(self.fc1(x))
        y = self.fc2(x) + x
        return self.fc3(torch.flatten(y, 1))


@pytest.mark.parametrize("name", SplitModel(digits_cnn(), "pool").cuts)
def test_every_cut_of_the_demo_model_gives_the_same_output_to_the_bit(name: str) -> None:
    model = digits_cnn()
    split, x = SplitModel(model, name), torch.randn(3, 1, 8, 8)
    assert torch.equal(split(x), model(x))
    assert split.whole_state_dict().keys() == model.state_dict().keys()


def test_functional_and_residual_models() -> None:
    model = Functional()
    assert SplitModel(model, "relu").cuts == ["fc1", "relu", "add", "flatten"]
    for name in ("fc1", "relu", "add", "flatten"):
        x = torch.randn(2, 4)
        assert torch.equal(SplitModel(model, name)(x), model(x))


def test_a_cut_inside_a_skip_names_what_crosses_and_the_nearest_clean_cut() -> None:
    with pytest.raises(CutError, match=r"more than one value \(relu, fc2\); the nearest clean cut is 'relu' or 'add'"):
        SplitModel(Functional(), "fc2")


def test_a_wrong_name_lists_the_valid_ones() -> None:
    with pytest.raises(CutError, match="no cut 'nope'; the valid cuts are: conv1, relu1"):
        SplitModel(digits_cnn(), "nope")
    with pytest.raises(CutError, match="nothing for the server"):
        SplitModel(digits_cnn(), "fc2")


def test_a_container_stands_for_its_last_call() -> None:
    model = torchvision.models.resnet18(num_classes=10).eval()
    split, x = SplitModel(model, "layer2.1"), torch.randn(1, 3, 32, 32)
    assert torch.equal(split(x), model(x))
    assert not any(key.startswith("layer3") for key in split.front.state_dict())
    assert not any(key.startswith("layer2") for key in split.tail.state_dict())


def test_parameters_are_shared_with_the_model() -> None:
    model = digits_cnn()
    split = SplitModel(model, "pool")
    assert split.front.get_parameter("conv1.weight") is model.conv1.weight


def test_models_that_cannot_be_traced_or_shared() -> None:
    class Branch(nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x if x.sum() > 0 else -x

    with pytest.raises(CutError, match="Branch cannot be traced"):
        SplitModel(Branch(), "x")
    shared = nn.Linear(4, 4)
    with pytest.raises(CutError, match="both sides of the cut"):
        SplitModel(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(4, 2)), "1")


def test_weights_that_do_not_fit_are_named() -> None:
    split = SplitModel(digits_cnn(), "pool")
    with pytest.raises(CutError, match="missing conv1.bias"):
        load_segment(
            split.front, {key: value for key, value in split.front.state_dict().items() if key != "conv1.bias"}
        )
    with pytest.raises(CutError, match="unknown extra"):
        load_segment(split.front, {**split.front.state_dict(), "extra": torch.zeros(1)})
    with pytest.raises(CutError, match="of another shape conv1.bias"):
        load_segment(split.front, {**split.front.state_dict(), "conv1.bias": torch.zeros(1)})


class DropsByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.fc(nn.functional.dropout(self.fc(x), 0.5, training=self.training))


def test_a_forward_that_asks_for_its_mode_is_refused_and_modes_are_kept() -> None:
    model = DropsByHand().eval()
    with pytest.raises(CutError, match=r"uses self\.training\); use modules such as nn\.Dropout"):
        SplitModel(model, "fc")
    assert not any(module.training for module in model.modules())


def test_the_cut_at_the_input_leaves_everything_to_the_tail() -> None:
    model = digits_cnn()
    split, x = SplitModel(model, "input"), torch.randn(2, 1, 8, 8)
    assert list(split.front.state_dict()) == []
    assert split.tail.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(split(x), model(x))
