"""Loading a user's own model by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import traceback
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from splitsec.cut import Signature, adapt
from splitsec.errors import ConfigError, CutError, class_and_line, first_line
from splitsec.tensors import SAVE_WEIGHTS, read_tensors


def load_model(source: str) -> nn.Module:
    """Make the model that a source names.

    Args:
        source: `package.module:name` or `path/file.py:name`, where `name` is an `nn.Module` or makes one; or the name
            of a torchvision model, whose weights are then random. A signature may follow, which makes a model of
            several inputs or results one of one tensor: `file.py:name(numbers: 5, codes: 3 int64) -> logits`.

    Raises:
        ConfigError: the module, the file or the name is not there; it does not make an `nn.Module`; or its own code
            fails, at the line that the message names.
        CutError: the signature cannot be read, or is not the model's.
    """
    source, signature = Signature.split(source)
    return adapt(_named(source), signature)


def _named(source: str) -> nn.Module:
    place, _, name = source.partition(":")
    if not name and not place.endswith(".py"):
        return _torchvision_model(source.removesuffix(":"))
    module = _load_module(place)
    maker = getattr(module, name, None) if name else None
    if maker is None:
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        near = difflib.get_close_matches(name, own, 1)
        meant = f"did you mean {place}:{near[0]}? " if near else ""
        lacks = f"'{place}' has no '{name}'" if name else f"'{source}' does not say which model of the file"
        raise ConfigError(f"{lacks}; {meant}write {place}:NAME; it has: {', '.join(own[:8]) or 'no classes'}")
    model = maker if isinstance(maker, nn.Module) else _call(maker, source, place)
    if isinstance(model, type) or not isinstance(model, nn.Module):
        raise ConfigError(f"'{source}' makes a {type(model).__name__}, not a torch.nn.Module")
    return model


def _call(make: object, source: str, place: str) -> object:
    """Call a user's class or function; raises `ConfigError` where it cannot be called, or fails."""
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
            # The meta device has no values: whoever builds there builds the whole model instead.
            raise
        raise ConfigError(f"'{source}' fails{_where(error, place)}: {_describe(error)}") from error


def _needs_values(error: BaseException) -> bool:
    return isinstance(error, (RuntimeError, NotImplementedError)) and torch.get_default_device().type == "meta"


def _describe(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "it ends the program; put what is not the model under: if __name__ == '__main__':"
    return class_and_line(error)


def _where(error: BaseException, place: str) -> str:
    """Name the last line of the user's own file that an error came through; empty if it came through none."""
    frames = traceback.extract_tb(error.__traceback__)
    # A command takes a relative path, and a frame has an absolute one.
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
        raise ConfigError(f"cannot import '{place}', which fails{_where(error, place)}: {_describe(error)}") from error
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
    """Return a source of the same model that another process can use, whatever its directory.

    Args:
        source: as `load_model` takes it.
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
    own = model.state_dict()
    problems = {
        # Counters of batches are not in every file, and do nothing in prediction.
        "missing": sorted(key for key in set(own) - set(state) if not key.endswith("num_batches_tracked")),
        "unknown": sorted(set(state) - set(own)),
        "of another shape": [
            f"{key} ({tuple(state[key].shape)}, not {tuple(own[key].shape)})"
            for key in own
            if key in state and own[key].shape != state[key].shape
        ],
    }
    if any(problems.values()):
        lines = [f"{what} {', '.join(keys[:3])}{', ...' * (len(keys) > 3)}" for what, keys in problems.items() if keys]
        raise ConfigError(f"the weights in {path} do not fit {type(model).__name__}: {'; '.join(lines)}")
    model.load_state_dict({**own, **state})
