"""Samples of a model's input, made from the model itself."""

import pytest
import torch
from torch import nn

from splitsec.cut import SplitModel
from splitsec.cut.samples import LARGEST, make_sample


def images(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3))


@pytest.mark.parametrize(
    ("model", "shape", "kind"),
    [
        (nn.Sequential(nn.Linear(7, 3)), (7,), torch.float32),
        (images(2), (2, 8, 8), torch.float32),
        (nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(64, 2)), (16,), torch.int64),
        (
            nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)),
            (3, 16),
            torch.float32,
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 2)), (784,), torch.float32),
        (nn.Sequential(nn.Linear(4, 4).double()), (4,), torch.float64),
    ],
)
def test_samples_are_made_as_the_first_layers_suggest(
    model: nn.Module, shape: tuple[int, ...], kind: torch.dtype
) -> None:
    sample = make_sample(model)
    assert sample is not None
    assert (tuple(sample.shape[1:]), sample.dtype) == (shape, kind)
    assert torch.equal(sample, make_sample(model))  # type: ignore[arg-type]


def test_no_sample_is_made_where_nothing_tells_and_nothing_can_run() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, 17))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x @ self.w).view(-1, 17)

    assert make_sample(Odd()) is None
    assert not SplitModel(Odd(), "relu").checked
    assert SplitModel(Odd(), "relu", sample=torch.randn(2, 3)).checked
    with torch.device("meta"):
        assert make_sample(images(1)) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(5), (5,)),
        (nn.BatchNorm2d(5), (5, 32, 32)),
        (nn.Conv3d(2, 3, 3), (2, 16, 16, 16)),
        (nn.LayerNorm([2, 5]), (2, 5)),
        (nn.Sequential(nn.Unflatten(1, (1, 28)), nn.Flatten(), nn.Linear(28, 2)), (28,)),
        (nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(3 * 36, 2)), (3, 6, 6)),
    ],
)
def test_every_kind_of_first_layer_suggests_a_shape(layer: nn.Module, shape: tuple[int, ...]) -> None:
    sample = make_sample(layer)
    assert sample is not None
    assert tuple(sample.shape[1:]) == shape


def test_a_model_that_is_too_large_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(value.numel() for value in images(1).parameters()) < LARGEST
    monkeypatch.setattr("splitsec.cut.samples.LARGEST", 10)
    assert make_sample(images(1)) is None
