"""Secure split learning for PyTorch: split training, secret-shared averaging, encrypted prediction."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from splitsec.errors import SplitsecError

if TYPE_CHECKING:
    from splitsec.cut import SplitModel
    from splitsec.parties import Client, Dealer, Predictions, Server
    from splitsec.training.data import Part
    from splitsec.training.schedule import Schedule
    from splitsec.training.segment_files import load_trained

__version__ = "0.1.0"
__all__ = [
    "Client",
    "Dealer",
    "Part",
    "Predictions",
    "Schedule",
    "Server",
    "SplitModel",
    "SplitsecError",
    "load_trained",
]

# Imported when first used, so that `splitsec --help` need not wait for torch.
_PLACES = {
    "Client": "splitsec.parties",
    "Dealer": "splitsec.parties",
    "Part": "splitsec.training.data",
    "Predictions": "splitsec.parties",
    "Schedule": "splitsec.training.schedule",
    "Server": "splitsec.parties",
    "SplitModel": "splitsec.cut",
    "load_trained": "splitsec.training.segment_files",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'splitsec' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
