"""The small networks of the demo, and loading a user's own model by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import traceback
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from splitsec.errors import ConfigError, CutError, first_line
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
        ConfigError: the module, the file or the name is not there, it does not make an `nn.Module`, or its own code
            fails: names the line.
    """
    place, _, name = source.partition(":")
    if not name and not place.endswith(".py"):
        return _torchvision_model(source.removesuffix(":"))
    module = _load_module(place)
    found = getattr(module, name, None) if name else None
    if found is None:
        own = [key for key, one in vars(module).items() if getattr(one, "__module__", None) == module.__name__]
        near = difflib.get_close_matches(name, own, 1)
        meant = f"did you mean {place}:{near[0]}? " if near else ""
        lacks = f"'{place}' has no '{name}'" if name else f"'{source}' does not say which model of the file"
        raise ConfigError(f"{lacks}; {meant}write {place}:NAME; it has: {', '.join(own[:8]) or 'no classes'}")
    model = found if isinstance(found, nn.Module) else _called(found, source, place)
    if isinstance(model, type) or not isinstance(model, nn.Module):
        raise ConfigError(f"'{source}' makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _called(make: object, source: str, place: str) -> object:
    """What a user's class or function makes; raises `ConfigError` where it cannot be called, or fails."""
    if not callable(make):
        raise ConfigError(f"'{source}' is a {type(make).__name__}, not a torch.nn.Module nor a function that makes one")
    try:
        return make()
    except (CutError, ConfigError):
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, TypeError) and error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise ConfigError(
                f"'{source}' cannot be called without arguments: {first_line(error)}; write a function that calls it "
                "with the arguments of your model, and name that"
            ) from error
        if _needs_values(error):
            # On the meta device, where no values are: whoever builds there builds the whole model instead.
            raise
        raise ConfigError(f"'{source}' fails{_where(error, place)}: {_said(error)}") from error


def _needs_values(error: BaseException) -> bool:
    return isinstance(error, (RuntimeError, NotImplementedError)) and torch.get_default_device().type == "meta"


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the program; put what is not the model under: if __name__ == '__main__':"
    text = first_line(error) if isinstance(error, Exception) else str(error)
    return text if text == type(error).__name__ else f"{type(error).__name__}: {text}"


def _where(error: BaseException, place: str) -> str:
    """The last line of the user's own file that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    # A command is given a relative path, and a frame knows the whole of it.
    file = Path(place).resolve() if place.endswith(".py") else None
    own = [frame for frame in frames if Path(frame.filename).resolve() == file]
    if not own:
        package = place.split(".")[0]
        own = [frame for frame in frames if package in Path(frame.filename).parts]
    if not own:
        return ""
    return f" at line {own[-1].lineno} of {Path(own[-1].filename).name} ({(own[-1].line or '').strip()[:60]})"


def _load_module(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place)
        spec = importlib.util.spec_from_file_location(f"splitsec_user_{path.stem}", path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ConfigError(f"there is no file {place}; in a TOML file a path is relative to that file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        beside = Path(f"{place}.py")
        hint = f"; for the file beside you write {beside}:NAME" if beside.is_file() else ""
        hint = hint or (f"; install it, or correct the import{_where(error, place)}" if place.endswith(".py") else "")
        raise ConfigError(f"cannot import '{place}': {error}{hint}") from error
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(f"cannot import '{place}': {error}{_where(error, place)}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"cannot import '{place}', which fails{_where(error, place)}: {_said(error)}") from error
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


def absolute_source(source: str, base: Path | None = None) -> str:
    """The same model by a path that holds in any directory, for another process.

    Args:
        base: what the path of a file is relative to; None for the current directory.
    """
    place, colon, name = source.partition(":")
    return f"{((base or Path()) / place).resolve()}{colon}{name}" if place.endswith(".py") else source


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
