"""Networks of the benchmarks, by the names that papers and other frameworks' figures use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from splitsec.errors import ConfigError
from splitsec.models.load import absolute_source, load_model, load_weights


class NetworkB(nn.Module):
    """The network of MiniONN (J. Liu et al., CCS 2017, figure 12) as CrypTen's benchmarks train it: 16, 16, 100, 10."""

    def __init__(self, channels: tuple[int, int] = (16, 16), hidden: int = 100, flat: int = 256) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels[0], 5)
        self.conv2 = nn.Conv2d(channels[0], channels[1], 5)
        self.fc1 = nn.Linear(flat, hidden)
        self.fc2 = nn.Linear(hidden, 10)
        self.batchnorm1 = nn.BatchNorm2d(channels[0])
        self.batchnorm2 = nn.BatchNorm2d(channels[1])
        self.batchnorm3 = nn.BatchNorm1d(hidden)

    def forward(self, x):  # type: ignore[no-untyped-def]  # torch.fx traces this with proxies
        """Return logits (N, 10) of images (N, 1, 28, 28)."""
        x = functional.avg_pool2d(functional.relu(self.batchnorm1(self.conv1(x))), 2)
        x = functional.avg_pool2d(functional.relu(self.batchnorm2(self.conv2(x))), 2)
        x = functional.relu(self.batchnorm3(self.fc1(torch.flatten(x, 1))))
        return self.fc2(x)


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, *, option_a: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        plain = stride == 1 and inside == outside
        if option_a:
            self.shortcut: nn.Module = nn.Sequential() if plain else _OptionA(outside)
        else:
            shortcut = [nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)]
            self.shortcut = nn.Identity() if plain else nn.Sequential(*shortcut)

    def forward(self, x):  # type: ignore[no-untyped-def]
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


def m1() -> nn.Module:
    """Make the perceptron 784-128-128-10, "Network A"."""
    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def m2() -> nn.Module:
    """Make network B with max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def m4() -> nn.Module:
    """Make ResNet-18 for 32x32 images (He et al. 2016, with a 3x3 stem and no pooling before the blocks)."""
    stages = [_Block(64, 64, 1), _Block(64, 64, 1)]
    for inside, outside in ((64, 128), (128, 256), (256, 512)):
        stages += [_Block(inside, outside, 2), _Block(outside, outside, 1)]
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


class _OptionA(nn.Module):
    """A shortcut without weights (He et al. 2016, section 4.2): every second pixel, and zeros for new channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x):  # type: ignore[no-untyped-def]
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.channels // 4, self.channels // 4))


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images (He et al. 2016, section 4.2, option A shortcuts)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        block = partial(_Block, option_a=True)
        self.layer1 = nn.Sequential(*[block(16, 16, 1) for _ in range(3)])
        self.layer2 = nn.Sequential(block(16, 32, 2), *[block(32, 32, 1) for _ in range(2)])
        self.layer3 = nn.Sequential(block(32, 64, 2), *[block(64, 64, 1) for _ in range(2)])
        self.linear = nn.Linear(64, 10)

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Return logits (N, 10) of images (N, 3, 32, 32)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


def resnet20() -> nn.Module:
    """Make ResNet-20."""
    return ResNet20()


def lenet() -> nn.Module:
    """Make LeNet-5 with average pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def network_b() -> nn.Module:
    """Make network B."""
    return NetworkB()


def network_c() -> nn.Module:
    """Make network C: 20, 50, 500, 10."""
    return NetworkB((20, 50), 500, 800)


def relu() -> nn.Module:
    """Make a network that is ReLU alone."""
    return nn.Sequential(nn.ReLU())


@dataclass(frozen=True)
class BenchModel:
    """A network of the benchmarks.

    Attributes:
        source: where it is made, as `load_model` takes it.
        input_shape: of one input, without the batch dimension.
        deep: whether it needs calibrated bounds.
    """

    name: str
    source: str
    input_shape: tuple[int, ...]
    deep: bool = False

    def make(self, weights: Path | None = None) -> nn.Module:
        """Make the network in eval mode, with a fixed seed's weights or those of a safetensors file."""
        torch.manual_seed(0)
        model = load_model(self.source)
        if weights is not None:
            load_weights(model, weights)
        return model.eval()


_HERE = "splitsec.models.literature"
MODELS: dict[str, BenchModel] = {
    model.name: model
    for model in (
        BenchModel("m1", f"{_HERE}:m1", (784,)),
        BenchModel("network-a", f"{_HERE}:m1", (784,)),
        BenchModel("m2", f"{_HERE}:m2", (1, 28, 28)),
        BenchModel("m4", f"{_HERE}:m4", (3, 32, 32), deep=True),
        BenchModel("resnet20", f"{_HERE}:resnet20", (3, 32, 32), deep=True),
        BenchModel("lenet", f"{_HERE}:lenet", (1, 28, 28)),
        BenchModel("network-b", f"{_HERE}:network_b", (1, 28, 28)),
        BenchModel("network-c", f"{_HERE}:network_c", (1, 28, 28)),
        BenchModel("relu", f"{_HERE}:relu", (100_000,)),
    )
}


def find_model(name: str, input_shape: tuple[int, ...] | None) -> BenchModel:
    """Return a network of the benchmarks by its name, or a user's own by `file.py:name` and the shape of its input.

    Raises:
        ConfigError: an unknown name, or a user's own model without a shape.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise ConfigError(f"unknown model '{name}'; choose one of {', '.join(MODELS)}, or write file.py:name")
    if input_shape is None:
        raise ConfigError(f"say the shape of one input of '{name}': --input 3,32,32")
    return BenchModel(name, absolute_source(name), input_shape)
