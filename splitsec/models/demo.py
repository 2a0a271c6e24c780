"""The small networks of the demo."""

from __future__ import annotations

from torch import nn

from splitsec.cut.joined import VerticalModel


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers; its cuts are the names of its layers.

    Args:
        side: height and width of the one-channel input, a multiple of 2 (of 4 from 16 on).
        classes: number of outputs.
        width: channels of the first convolution; the second has twice as many, the first linear layer four times.
    """

    def __init__(self, *, side: int, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        large = side >= 16
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2) if large else nn.Identity()
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(2 * width * (side // (4 if large else 2)) ** 2, 4 * width)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(4 * width, classes)

    def forward(self, x):  # type: ignore[no-untyped-def]  # torch.fx traces this with proxies
        """Return logits (N, classes) of images (N, 1, side, side)."""
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(self.flatten(x))))


def digits_cnn() -> nn.Module:
    """Make the network for scikit-learn's digits, (N, 1, 8, 8)."""
    return SmallCNN(side=8)


def mnist_cnn() -> nn.Module:
    """Make the network for MNIST, (N, 1, 28, 28)."""
    return SmallCNN(side=28)


def digits_half() -> nn.Module:
    """Make half of `digits_cnn`: half of the channels and units of every layer."""
    return SmallCNN(side=8, width=8)


def mnist_half() -> nn.Module:
    """Make half of `mnist_cnn`."""
    return SmallCNN(side=28, width=8)


def breast_columns() -> VerticalModel:
    """Make the network for breast cancer in two hospitals: 10 columns at one, 20 at the other; two classes."""
    return _columns(10, 20, 16)


def credit_columns() -> VerticalModel:
    """Make the network for credit cards of a bank's and its partner's customers: 13 columns and 10; two classes."""
    return _columns(13, 10, 32)


def _columns(first: int, second: int, width: int) -> VerticalModel:
    fronts = {
        "client-1": nn.Sequential(nn.Linear(first, width), nn.ReLU()),
        "client-2": nn.Sequential(nn.Linear(second, width), nn.ReLU()),
    }
    return VerticalModel(fronts, nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 2)))
