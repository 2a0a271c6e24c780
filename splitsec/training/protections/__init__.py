"""Protections of the activations that clients send while training. One file a protection."""

from splitsec.training.protections.base import PROTECTIONS, Protection, argument_of, protections_of

__all__ = ["PROTECTIONS", "Protection", "argument_of", "protections_of"]
