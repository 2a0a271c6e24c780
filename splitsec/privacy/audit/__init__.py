"""Attacks on a cut, and what they achieve beside a guess: what somebody curious learns.

Every attack gets what the server of a split run gets, and no more; where it needs inputs of its own to train on, they
come from rows that the clients do not hold. An attack is a file here, or a module of another package, that registers an
`Attack` in `ATTACKS`.
"""

from splitsec.privacy.audit.base import ATTACKS, Attack, Finding, Progress, Rows, Steps, Target, compare_images
from splitsec.privacy.audit.page import Row, Strip

__all__ = ["ATTACKS", "Attack", "Finding", "Progress", "Row", "Rows", "Steps", "Strip", "Target", "compare_images"]
