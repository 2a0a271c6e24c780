"""Credit cards of 30,000 customers of a bank, which has the labels, and its partner."""

from __future__ import annotations

from pathlib import Path

from splitsec.data.columns import Columns
from splitsec.data.datasets.base import DATASETS, Dataset, DemoSettings
from splitsec.errors import ConfigError


def load(data_dir: Path | None, _seed: int) -> list[Columns]:
    """Load the bank's and the partner's columns from `vertical/default_credit_hetero_guest.csv` and `..._host.csv`.

    Raises:
        ConfigError: they are not in the directory.
    """
    if data_dir is None:
        raise ConfigError("the credit-card customers are not part of the package: say where they lie: --data-dir DIR")
    return [Columns.load(data_dir / "vertical" / f"default_credit_hetero_{role}.csv") for role in ("guest", "host")]


DATASETS.register("credit")(
    Dataset(load, {"vertical": DemoSettings("splitsec.models:credit_columns", 64)}, needs_directory=True)
)
