"""Tracing a model, listing its cut points, splitting it."""

from splitsec.cut.graph import INPUT, CutPoint, cut_points, find_cut, trace
from splitsec.cut.split import SplitModel, load_segment

__all__ = ["INPUT", "CutPoint", "SplitModel", "cut_points", "find_cut", "load_segment", "trace"]
