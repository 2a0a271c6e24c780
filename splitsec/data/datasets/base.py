"""What a dataset is, and the registry of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from splitsec.data.columns import Columns
from splitsec.data.rows import Part
from splitsec.errors import ConfigError
from splitsec.registry import Registry

# From the directory of `--data-dir` (None where the user names none) and a seed: rows of which the demo deals each
# client some, or the columns of each client.
Load: TypeAlias = Callable[[Path | None, int], Part | list[Columns]]


@dataclass(frozen=True)
class DemoSettings:
    """How the demo trains on a dataset in one layout, where the user does not say otherwise.

    Attributes:
        model: where the model is made, as `package.module:name`.
        batch_size: rows a step of each client.
        cut: where the model is cut, two names in a U; empty in a layout without a cut.
        private_batch_size: with a privacy budget by record, rows a step of all clients together on average.
        private_learning_rate: with such a budget.
    """

    model: str
    batch_size: int
    cut: str = ""
    private_batch_size: int = 256
    private_learning_rate: float = 2e-3


@dataclass(frozen=True)
class Dataset:
    """A dataset that commands know by name; a plugin may register one (docs/how-to/add-a-dataset.md).

    Attributes:
        load: reads it; the same seed gives the same rows. Raises `ConfigError` for files that are not there.
        demos: how the demo trains on it in each layout that it is for.
        needs_directory: whether it is read from the directory of `--data-dir`.
    """

    load: Load
    demos: Mapping[str, DemoSettings]
    needs_directory: bool = False


DATASETS: Registry[Dataset] = Registry("dataset", package="splitsec.data.datasets")


def load_dataset(name: str, data_dir: Path | None, seed: int) -> Part:
    """Load a dataset of rows, all of it as one part.

    Args:
        name: what it is registered as.
        data_dir: the directory of its files, if it has some.
        seed: decides which rows are held out.

    Raises:
        ConfigError: no dataset of rows has this name, or its files are not there.
    """
    data = DATASETS.get(name).load(data_dir, seed)
    if not isinstance(data, Part):
        raise ConfigError(f"the dataset '{name}' holds columns, and this takes rows; choose another")
    return data


def load_columns(name: str, data_dir: Path | None, seed: int) -> list[Columns]:
    """Load a dataset of columns, those of each client; the first client has the labels.

    Args:
        name: what it is registered as.
        data_dir: the directory of its files, if it has some.
        seed: decides which rows a client lacks, and their order.

    Raises:
        ConfigError: no dataset of columns has this name, or its files are not there.
    """
    data = DATASETS.get(name).load(data_dir, seed)
    if isinstance(data, Part):
        raise ConfigError(f"the dataset '{name}' holds rows, and this takes columns; choose another")
    return data


def demo_settings(name: str, layout: str) -> DemoSettings:
    """Return how the demo trains on a dataset in a layout.

    Raises:
        ConfigError: there is no such dataset for this layout; lists those that there are.
    """
    if name in DATASETS and layout in DATASETS.get(name).demos:
        return DATASETS.get(name).demos[layout]
    choices = ", ".join(other for other in DATASETS.names() if layout in DATASETS.get(other).demos)
    raise ConfigError(f"a {layout} run has no dataset '{name}'; choose one of: {choices}")
