"""Choosing a cut: what every clean cut of a model sends, holds and costs."""

from splitsec.choosing.leaking import Leak
from splitsec.choosing.listing import CutCost, list_cuts
from splitsec.choosing.speed import Link, Speed

__all__ = ["CutCost", "Leak", "Link", "Speed", "list_cuts"]
