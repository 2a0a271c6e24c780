"""The small networks of the demo, and loading a user's own model by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from torch import nn

from splitsec.errors import ConfigError
from splitsec.tensors import SAVE_WEIGHTS, read_tensors
from splitsec.training.vertical import VerticalModel


class SmallCNN(nn.Module):
    """Two convolutions and two linear layers; its cuts are the names of its layers.

    Args:
        side: height and width of the one-channel input, a multiple of 2 (of 4 from 16 on).
        classes: number of outputs.
        width: channels of the first convolution; the others have 2 and 4 times as many outputs.
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
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(self.flatten(x))))


def digits_cnn() -> nn.Module:
    """For scikit-learn's digits: input (N, 1, 8, 8)."""
    return SmallCNN(side=8)


def mnist_cnn() -> nn.Module:
    """For MNIST: input (N, 1, 28, 28)."""
    return SmallCNN(side=28)


def digits_half() -> nn.Module:
    """Half of `digits_cnn`: half of the channels and units of every layer."""
    return SmallCNN(side=8, width=8)


def mnist_half() -> nn.Module:
    """Half of `mnist_cnn`."""
    return SmallCNN(side=28, width=8)


def breast_columns() -> VerticalModel:
    """For breast cancer in two hospitals: 10 columns at the first, 20 at the second; two classes."""
    return _columns(10, 20, 16)


def credit_columns() -> VerticalModel:
    """For credit-card customers of a bank and its partner: 13 columns and 10; two classes."""
    return _columns(13, 10, 32)


def _columns(first: int, second: int, width: int) -> VerticalModel:
    fronts = {
        "client-1": nn.Sequential(nn.Linear(first, width), nn.ReLU()),
        "client-2": nn.Sequential(nn.Linear(second, width), nn.ReLU()),
    }
    return VerticalModel(fronts, nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 2)))


def load_model(source: str) -> nn.Module:
    """Make the model that `source` names: `package.module:name` or `path/file.py:name`, where `name` is a module or
    makes one, or the name of a torchvision model, whose weights are then random.

    Raises:
        ConfigError: the module, the file or the name is not there, or it does not make an `nn.Module`.
    """
    place, _, name = source.partition(":")
    if not name:
        return _torchvision_model(source)
    found = getattr(_load_module(place), name, None)
    if found is None:
        module = _load_module(place)
        own = [key for key, one in vars(module).items() if isinstance(one, type) and one.__module__ == module.__name__]
        raise ConfigError(f"'{place}' has no '{name}'; it has: {', '.join(own[:5]) or 'no classes'}")
    try:
        model = found if isinstance(found, nn.Module) else found()
    except TypeError as error:
        raise ConfigError(f"'{source}' cannot be called without arguments: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"'{source}' makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _load_module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        spec = importlib.util.spec_from_file_location(f"splitsec_user_{path.stem}", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigError(f"there is no file {place}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(f"cannot import '{place}': {error}") from error
    return module


def _torchvision_model(name: str) -> nn.Module:
    hint = "write package.module:name, file.py:name or the name of a torchvision model"
    try:
        from torchvision import models
    except ImportError as error:
        raise ConfigError(f"'{name}' does not name a model; {hint}") from error
    known = models.list_models(module=models)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3))
        raise ConfigError(f"'{name}' does not name a model{near and f' (near: {near})'}; {hint}")
    model: nn.Module = models.get_model(name, weights=None)
    return model


def absolute_source(source: str) -> str:
    """The same model by a path that holds in any directory, for another process."""
    place, colon, name = source.partition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else source


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a whole model.

    Raises:
        ConfigError: it cannot be read, or does not fit: names the keys and shapes at fault.
    """
    state = read_tensors(path, "weights", SAVE_WEIGHTS)
    have = model.state_dict()
    problems = {
        "missing": sorted(set(have) - set(state)),
        "unknown": sorted(set(state) - set(have)),
        "of another shape": [
            f"{key} ({tuple(state[key].shape)}, not {tuple(have[key].shape)})"
            for key in have
            if key in state and have[key].shape != state[key].shape
        ],
    }
    # Counters of batches are not in every file, and do nothing in prediction.
    problems["missing"] = [key for key in problems["missing"] if not key.endswith("num_batches_tracked")]
    if any(problems.values()):
        named = [f"{what} {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}" for what, keys in problems.items() if keys]
        raise ConfigError(f"the weights in {path} do not fit {type(model).__name__}: {'; '.join(named)}")
    model.load_state_dict({**have, **state})
