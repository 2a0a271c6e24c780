"""The small networks of the demo, and loading a user's own model by name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from torch import nn

from splitsec.errors import ConfigError


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers; its cuts are the names of its layers.

    Args:
        side: height and width of the one-channel input, a multiple of 2 (of 4 from 16 on).
        classes: number of outputs.
    """

    def __init__(self, *, side: int, classes: int = 10) -> None:
        super().__init__()
        large = side >= 16
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2) if large else nn.Identity()
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(32 * (side // (4 if large else 2)) ** 2, 64)
        self.relu3 = nn.ReLU()
        self.fc2 = nn.Linear(64, classes)

    def forward(self, x):  # type: ignore[no-untyped-def]  # torch.fx traces this with proxies
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(self.flatten(x))))


def digits_cnn() -> nn.Module:
    """For scikit-learn's digits: input (N, 1, 8, 8)."""
    return SmallCNN(side=8)


def mnist_cnn() -> nn.Module:
    """For MNIST: input (N, 1, 28, 28)."""
    return SmallCNN(side=28)


def load_model(source: str) -> nn.Module:
    """Make the model that `package.module:name` or `path/file.py:name` names; `name` is a module or makes one.

    Raises:
        ConfigError: the module, the file or the name is not there, or it does not make an `nn.Module`.
    """
    place, _, name = source.partition(":")
    if not place or not name:
        raise ConfigError(f"'{source}' does not name a model; write package.module:name or file.py:name")
    try:
        if place.endswith(".py"):
            path = Path(place)
            spec = importlib.util.spec_from_file_location(f"splitsec_user_{path.stem}", path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ConfigError(f"there is no file {place}")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ImportError as error:
        raise ConfigError(f"cannot import '{place}': {error}") from error
    made: nn.Module | Callable[[], nn.Module] | None = getattr(module, name, None)
    if made is None:
        raise ConfigError(f"'{place}' has no '{name}'")
    model = made if isinstance(made, nn.Module) else made()
    if not isinstance(model, nn.Module):
        raise ConfigError(f"'{source}' makes a {type(model).__name__}, not a torch.nn.Module")
    return model
