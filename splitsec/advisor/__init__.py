"""Advice on where to cut: what every clean cut of a model sends, holds, costs and leaks."""

from splitsec.advisor.cut_costs import CutCost, list_cuts
from splitsec.advisor.leakage import Leak
from splitsec.advisor.machine_speed import Link, Speed

__all__ = ["CutCost", "Leak", "Link", "Speed", "list_cuts"]
