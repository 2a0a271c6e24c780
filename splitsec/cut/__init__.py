"""Cutting a model: tracing it, listing its cut points, splitting it, checking the segments."""

from splitsec.cut.build import ConstantError, build_segment
from splitsec.cut.check import check_batch, check_split
from splitsec.cut.origin import Origin, origin_of, set_origin
from splitsec.cut.points import INPUT, CutGraph, CutPoint, vocabulary
from splitsec.cut.results import one_tensor
from splitsec.cut.signature import Input, Sample, Signature, adapt, signature_of
from splitsec.cut.split import Cut, SplitModel, cut_names, is_u
from splitsec.cut.tracing import trace
from splitsec.cut.weights import load_part, load_segment

__all__ = [
    "INPUT",
    "ConstantError",
    "Cut",
    "CutGraph",
    "CutPoint",
    "Input",
    "Origin",
    "Sample",
    "Signature",
    "SplitModel",
    "adapt",
    "build_segment",
    "check_batch",
    "check_split",
    "cut_names",
    "is_u",
    "load_part",
    "load_segment",
    "one_tensor",
    "origin_of",
    "set_origin",
    "signature_of",
    "trace",
    "vocabulary",
]
