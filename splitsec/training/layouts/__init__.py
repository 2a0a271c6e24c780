"""Layouts: who holds which rows, columns and labels, and what a training step exchanges. One file a layout."""

from splitsec.training.layouts.base import LAYOUTS, Layout, StepGatherer, layout_of

__all__ = ["LAYOUTS", "Layout", "StepGatherer", "layout_of"]
