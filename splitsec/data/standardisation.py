"""Columns brought to one scale, by the mean and spread of the rows that a front is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from splitsec.errors import ConfigError

# Most names that a message lists.
_NAMED = 8


@dataclass(frozen=True)
class Standardisation:
    """How a client's columns are changed before its front takes them: (value - mean) / spread, column by column.

    Attributes:
        names: of the columns, in the order in which the front takes them.
        mean, spread: float64 (columns,); 0 and 1 for a column that stays as it is.
        whole: the front takes int64, since all columns are codes that it looks up.
    """

    names: tuple[str, ...]
    mean: torch.Tensor = field(repr=False)
    spread: torch.Tensor = field(repr=False)
    whole: bool = False

    @classmethod
    def of(cls, values: torch.Tensor, names: Sequence[str], *, unchanged: Sequence[str] = ()) -> Standardisation:
        """Measure the rows of `values` (N, columns); the columns named in `unchanged` stay as they are.

        This is computed in 64 bits, since squares of large numbers leave the range of 32. A column that is the same in
        all rows becomes 0.
        """
        if not len(values):
            raise ConfigError("there are no rows to measure the columns' mean and spread by")
        wide = values.double()
        mean, spread = wide.mean(0), spread_of(wide)
        stays = torch.tensor([name in unchanged for name in names], dtype=torch.bool)
        same = torch.tensor([bool((column == column[0]).all()) for column in wide.T], dtype=torch.bool)
        mean = torch.where(same, wide[0], mean)
        return cls(tuple(names), torch.where(stays, 0.0, mean), torch.where(stays | same, 1.0, spread))

    @classmethod
    def none(cls, names: Sequence[str], *, whole: bool = False) -> Standardisation:
        """Leave all columns as they are."""
        count = len(names)
        return cls(tuple(names), torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64), whole)

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Return columns as the front takes them, float32 (N, columns), or int64 if they are `whole`."""
        if self.whole:
            return values.long()
        return ((values.double() - self.mean) / self.spread).float()

    def places(self, names: Sequence[str]) -> list[int]:
        """Return the places of the front's columns among `names`; raises `ConfigError` if those are others."""
        missing = [name for name in self.names if name not in names]
        more = [name for name in names if name not in self.names]
        if missing or more:
            lacks = f"lacks {_listed(missing)}" if missing else ""
            extra = f"has {_listed(more)} beside" if more else ""
            raise ConfigError(
                f"the front was trained with the columns {_listed(self.names)}; this data "
                f"{' and '.join(part for part in (lacks, extra) if part)}"
            )
        return [list(names).index(name) for name in self.names]

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes, exact to the bit.

        It is in the metadata of the front's file, whose tensors are the front's parameters alone.
        """
        return {
            "names": list(self.names),
            "mean": self.mean.tolist(),
            "spread": self.spread.tolist(),
            "whole": self.whole,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Standardisation:
        """Make a standardisation from what `as_json` returned; raises `ConfigError` for something else."""
        try:
            names = tuple(str(name) for name in facts["names"])
            mean, spread = (torch.tensor(facts[key], dtype=torch.float64) for key in ("mean", "spread"))
            fits = mean.shape == spread.shape == (len(names),) and bool(torch.isfinite(mean).all())
            if not fits or not bool((torch.isfinite(spread) & (spread > 0)).all()):
                raise ValueError
            return cls(names, mean, spread, bool(facts["whole"]))
        except (KeyError, TypeError, ValueError):
            raise ConfigError("the mean and spread of the front's columns cannot be read") from None


def spread_of(values: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation of each column of `values` (N, columns), float64 (columns,)."""
    wide = values.double()
    return (wide - wide.mean(0)).square().mean(0).sqrt()


@dataclass(frozen=True)
class Scaling:
    """How columns are made ready for a front.

    Attributes:
        standardise: give each column mean 0 and spread 1 over the rows for training.
        codes: names of columns that stay as they are, since the front looks them up in an embedding.
        given: the standardisation of a front that is trained already; the other settings then count for nothing.
        whole: the front takes whole numbers alone.
    """

    standardise: bool = True
    codes: tuple[str, ...] = ()
    given: Standardisation | None = None
    whole: bool = False

    @property
    def described(self) -> str:
        """Return the scaling as a text that is equal for equal scalings."""
        as_json = None if self.given is None else self.given.as_json()
        return f"standardise {self.standardise} codes {sorted(self.codes)} given {as_json}"

    def measured(self, values: torch.Tensor, names: Sequence[str]) -> Standardisation:
        """Return the standardisation to use, where `values` (N, columns) are the rows for training."""
        if self.given is not None:
            return self.given
        unknown = [name for name in self.codes if name not in names]
        if unknown:
            raise ConfigError(f"codes: there is no column {_listed(unknown)}; there are {_listed(names)}")
        if self.whole or not self.standardise:
            return Standardisation.none(names, whole=self.whole)
        return Standardisation.of(values, names, unchanged=self.codes)


def _listed(names: Sequence[str]) -> str:
    """List names for a message, of many the first few."""
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
