"""Secure split learning for PyTorch: split training, secret-shared averaging, encrypted prediction."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from splitsec.errors import SplitsecError

if TYPE_CHECKING:
    from splitsec.cut import SplitModel
    from splitsec.cut.segment_files import load_trained
    from splitsec.data.rows import Part
    from splitsec.parties import Client, Dealer, Network, Predictions, Runtime, Server, Serving, Storage
    from splitsec.settings.answers import AnswerRules
    from splitsec.settings.privacy import Privacy
    from splitsec.settings.query import Query
    from splitsec.settings.run import RunSettings
    from splitsec.settings.timeouts import Timeouts

from splitsec.version import __version__

__all__ = [
    "AnswerRules",
    "Client",
    "Dealer",
    "Network",
    "Part",
    "Predictions",
    "Privacy",
    "Query",
    "RunSettings",
    "Runtime",
    "Server",
    "Serving",
    "SplitModel",
    "SplitsecError",
    "Storage",
    "Timeouts",
    "__version__",
    "load_trained",
]

# Imported when first used, so that `splitsec --help` need not wait for torch.
_PLACES = {
    "AnswerRules": "splitsec.settings.answers",
    "Client": "splitsec.parties",
    "Dealer": "splitsec.parties",
    "Network": "splitsec.parties",
    "Part": "splitsec.data.rows",
    "Predictions": "splitsec.parties",
    "Privacy": "splitsec.settings.privacy",
    "Query": "splitsec.settings.query",
    "RunSettings": "splitsec.settings.run",
    "Runtime": "splitsec.parties",
    "Server": "splitsec.parties",
    "Serving": "splitsec.parties",
    "SplitModel": "splitsec.cut",
    "Storage": "splitsec.parties",
    "Timeouts": "splitsec.settings.timeouts",
    "load_trained": "splitsec.cut.segment_files",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'splitsec' has no attribute '{name}'")
    return getattr(importlib.import_module(_PLACES[name]), name)
