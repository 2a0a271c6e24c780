"""Choosing a cut: what every clean cut of a model sends, holds and costs."""

from splitsec.choosing.listing import CutCost, list_cuts
from splitsec.choosing.speed import Link, Speed

__all__ = ["CutCost", "Link", "Speed", "list_cuts"]
