"""What a client finds wrong with its own data, before anybody else is disturbed."""

import random
from typing import Any

import pytest
import torch
from torch import nn

from splitsec import SplitModel
from splitsec.data.row_checks import (
    activation_shape,
    check_classes,
    check_labels_of,
    check_tokens,
    largest_activation,
)
from splitsec.data.rows import Part
from splitsec.errors import ConfigError


def _with(**changed: Any) -> Part:
    fields: dict[str, Any] = {
        "train_images": torch.rand(6, 1, 8, 8),
        "train_labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "test_images": torch.rand(2, 1, 8, 8),
        "test_labels": torch.tensor([0, 1]),
    }
    return Part(**{**fields, **changed})


def _spoiled(value: float, row: int) -> torch.Tensor:
    images = torch.rand(6, 1, 8, 8)
    images[row, 0, 3, 4] = value
    return images


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_images": _spoiled(float("nan"), 4)}, r"train_images hold nan in row 4 \(counted from 0\)"),
        ({"test_images": torch.full((2, 1, 8, 8), float("-inf"))}, r"test_images hold -inf in row 0 and 1 more row"),
        ({"train_images": torch.zeros(6, 1, 8, 8).byte()}, r"are uint8, such as pixels .* images.float\(\) / 255"),
        ({"train_images": torch.zeros(6, 1, 8, 8).double()}, r"are float64 and must be float32 .*images.float\(\)"),
        ({"train_images": torch.zeros(6, 8).int()}, r"are int32 .* images.long\(\)"),
        ({"train_images": torch.zeros(6, 8).half()}, r"are float16 .* images.float\(\)"),
        ({"train_images": torch.zeros(6)}, r"must have a row for each image"),
        ({"train_labels": LABELS.int()}, r"train_labels are int32 and must be int64: labels.long\(\)"),
        ({"train_labels": LABELS.float()}, r"train_labels are float32 and must be int64: labels.long\(\)"),
        ({"train_labels": LABELS + 0.25}, r"hold 0.25 in row 0 and 5 more rows .* a regression cannot be trained"),
        ({"train_labels": LABELS - 1}, r"hold -1 in row 0 and 1 more row .* classes count from 0"),
        ({"train_labels": LABELS[:, None]}, r"one class a row: labels.squeeze\(1\)"),
        ({"train_labels": torch.eye(6)}, r"labels.argmax\(1\)"),
        ({"train_labels": LABELS[:5]}, r"5 for 6 rows of inputs; there must be one label a row"),
        ({"train_labels": torch.tensor(3)}, r"one number for 6 rows"),
        ({"test_images": torch.rand(2, 3, 8, 8)}, r"train_images are 1x8x8 .* test_images 3x8x8"),
        ({"train_images": torch.rand(0, 1, 8, 8), "train_labels": LABELS[:0]}, "no training images"),
    ],
)
def test_data_that_cannot_be_learned_from_is_named_by_row(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _with(**changed).check()


def test_control_good_data_passes_and_no_test_rows_are_no_fault() -> None:
    _with().check()
    _with(test_images=torch.empty(0), test_labels=torch.empty(0, dtype=torch.int64)).check()
    _with(train_images=torch.zeros(6, 5).long(), test_images=torch.zeros(2, 5).long()).check()
    assert _with().doubts() == []
    assert "all 6 training labels are 2" in _with(train_labels=torch.full((6,), 2)).doubts()[0]


class _Net(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc1(self.flatten(self.drop(self.bn(self.conv1(x)))))


def _front(cut: str = "fc1") -> nn.Module:
    return SplitModel(_Whole(), cut).front


class _Whole(_Net):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.relu(super().forward(x)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 8, 8), "train_images are 3x8x8 each, .*: layer 'conv1' takes 1 channel and gets 3"),
        ((1, 10, 10), "train_images are 1x10x10 each, .*: layer 'fc1' takes 256 features and gets 400"),
        ((64,), "layer 'conv1' takes channels, height and width of each, and gets 64"),
        ((8, 8, 1), "layer 'conv1' takes 1 channel and gets 8"),
    ],
)
def test_the_layer_that_cannot_take_the_inputs_is_named(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        activation_shape(_front(), torch.rand(3, *shape), cut="fc1", what="train_images")


def test_looking_leaves_the_front_and_the_generator_as_they_were() -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    front = _front()
    front.get_submodule("bn").eval()
    before = {name: value.clone() for name, value in front.state_dict().items()}
    modes = {name: module.training for name, module in front.named_modules()}
    state = torch.get_rng_state()
    assert activation_shape(front, torch.rand(9, 1, 8, 8), cut="fc1", what="x") == (5,)
    torch.set_rng_state(state)
    activation_shape(front, torch.zeros(9, 1, 8, 8), cut="fc1", what="x")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in front.state_dict().items())
    assert {name: module.training for name, module in front.named_modules()} == modes
    assert not any(module._forward_pre_hooks for module in front.modules())


def test_labels_beyond_the_models_classes() -> None:
    with pytest.raises(ConfigError, match="train_labels hold 10 in row 1 .* the model has 10 classes, from 0 to 9"):
        check_classes(torch.tensor([9, 10]), 10, "train_labels")
    check_classes(torch.tensor([0, 9]), 10, "train_labels")


def test_tokens_and_real_numbers_are_told_apart() -> None:
    text = SplitModel(nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(12, 2)), "0").front
    tokens = torch.tensor([[0, 1, 2, 3], [6, 6, 6, 7]])
    with pytest.raises(ConfigError, match=r"hold 7 in row 1 .* embedding has 7 rows: give numbers from 0 to 6"):
        check_tokens(tokens, text, "train_images")
    check_tokens(tokens.clamp(max=6), text, "train_images")
    assert activation_shape(text, tokens.clamp(max=6), cut="0", what="train_images") == (4, 3)
    with pytest.raises(ConfigError, match="float32, but the model looks them up"):
        activation_shape(text, torch.rand(2, 4), cut="0", what="train_images")
    with pytest.raises(ConfigError, match="int64, but the model computes with them"):
        activation_shape(_front(), torch.zeros(2, 1, 8, 8).long(), cut="fc1", what="train_images")


def test_the_largest_activation_of_unscaled_inputs() -> None:
    front = SplitModel(_Whole(), "bn").front
    small = largest_activation(front, torch.rand(4, 1, 8, 8), cut="bn", what="x")
    assert small < 256 < largest_activation(front, 1e6 * torch.rand(4, 1, 8, 8), cut="bn", what="x")


def test_a_regression_is_told_in_a_column_too() -> None:
    """The shape is mended in a moment, and the values never."""
    with pytest.raises(ConfigError, match="a regression cannot be trained"):
        check_labels_of(torch.tensor([[0.5], [1.0]]), torch.zeros(2, 3), "labels")
    with pytest.raises(ConfigError, match=r"labels.squeeze\(1\)"):
        check_labels_of(torch.tensor([[0], [1]]), torch.zeros(2, 3), "labels")
