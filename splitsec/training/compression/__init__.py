"""Compressions of what crosses the cut while training. One file a compression, with both of its coders."""

from splitsec.training.compression.base import COMPRESSIONS, Coder, Compression, coders

__all__ = ["COMPRESSIONS", "Coder", "Compression", "coders"]
