"""Checks of a client's columns with its front, before it joins a run."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import torch
from torch import nn

from splitsec.data import row_checks
from splitsec.data.columns import Columns
from splitsec.errors import ConfigError, first_line

log = logging.getLogger(__name__)
_AT_ONCE = 4096


def fitted(columns: Columns, front: nn.Module) -> tuple[Columns, int]:
    """Return the columns as this front takes them, and how many features it makes of a person.

    Codes for an embedding are marked to stay whole numbers; nothing else changes. A copy of the front is tried on all
    rows, so that the front stays as it is.

    Args:
        front: takes (N, columns) and returns (N, features).

    Raises:
        ConfigError: there are no columns, the front cannot take them, or codes for an embedding would be standardised.
    """
    trial = copy.deepcopy(front).eval()
    tables = {
        name: layer.num_embeddings
        for name, layer in trial.named_modules()
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
    }
    scaling = columns.scaling
    if tables and scaling.given is None:
        width = len(columns.names)
        if _takes(trial, torch.zeros(2, width, dtype=torch.int64)) and not _takes(trial, torch.zeros(2, width)):
            if scaling.standardise:
                log.warning("the front looks its columns up in an embedding: they stay the whole numbers that they are")
            columns = replace(columns, scaling=replace(scaling, whole=True))
        elif scaling.standardise and not scaling.codes:
            raise ConfigError(
                f"the front has an embedding ('{next(iter(tables))}'), whose codes must not be standardised: name the "
                f"columns that hold codes, such as codes = ['{columns.names[-1]}'], or set standardise = false"
            )
    for name in columns.constant:
        log.warning("column '%s' has the same value in all rows, so nothing can be learned from it", name)
    ready, features = columns.standardised(len(columns.ids)), 0
    for start in range(0, len(ready.ids), _AT_ONCE):
        features = _features(trial, ready, start, tables)
    return columns, features


def check_classes(labels: torch.Tensor, tail: nn.Module) -> None:
    """Raise `ConfigError` where a label is none of the classes of a tail, or the tail has no output for each class.

    Where the tail does not show how wide its input is, nothing is checked: the server does that in the first step.
    """
    classes = _outputs(tail)
    if classes == 1:
        raise ConfigError(
            "the model's tail returns one number a person, but training is for classes: give it an output for each "
            "class, two for yes or no"
        )
    if classes:
        row_checks.check_classes(labels, classes, "labels")


def _outputs(tail: nn.Module) -> int:
    """Return how many numbers a tail returns for a person; 0 where that cannot be told."""
    for layer in tail.modules():
        width = None
        if isinstance(layer, nn.Linear):
            width = layer.in_features
        elif isinstance(layer, nn.BatchNorm1d):
            width = layer.num_features
        elif isinstance(layer, nn.LayerNorm):
            width = layer.normalized_shape[-1]
        if width is None:
            continue
        try:
            with torch.no_grad():
                output = copy.deepcopy(tail).eval()(torch.zeros(1, width))
        except (RuntimeError, ValueError, IndexError, TypeError):
            return 0
        return output.shape[1] if isinstance(output, torch.Tensor) and output.dim() == 2 else 0
    return 0


def _takes(front: nn.Module, values: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            front(values)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False
    return True


def _features(front: nn.Module, columns: Columns, start: int, tables: dict[str, int]) -> int:
    """Return how many features the front makes of the rows from `start` on; raises `ConfigError` where it cannot."""
    values = columns.values[start : start + _AT_ONCE]
    if not columns.names and not _takes(front, values):
        raise ConfigError(
            "the data has labels and no columns: then the front of this client is nn.Identity() and the tail takes the "
            "features of the others alone; or give it a column"
        )
    described = (
        f"{len(columns.names)} columns ({', '.join(columns.names[:8])}{', ...' if len(columns.names) > 8 else ''})"
    )
    try:
        with torch.no_grad():
            features = front(values)
    except IndexError as error:
        if not tables:
            raise ConfigError(f"the front cannot take the {described}: {first_line(error)}") from None
        codes = columns.names if columns.scaling.whole else columns.scaling.codes or columns.names
        largest = ", ".join(
            f"{int(columns.values[:, columns.names.index(name)].max())} in '{name}'" for name in codes[:8]
        )
        rows = ", ".join(f"'{name}' has {count} rows" for name, count in tables.items())
        raise ConfigError(
            f"a code is beyond the front's embedding: {rows or 'none'}, counted from 0, and the largest codes are "
            f"{largest}; number the codes anew, or give the embedding more rows"
        ) from None
    except (RuntimeError, ValueError, TypeError) as error:
        linear = next((layer for layer in front.modules() if isinstance(layer, nn.Linear)), None)
        wants = f" (its first linear layer takes {linear.in_features})" if linear is not None else ""
        raise ConfigError(f"the front cannot take the {described}{wants}: {first_line(error)}") from None
    if not isinstance(features, torch.Tensor) or features.dim() != 2 or len(features) != len(values):
        shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        raise ConfigError(
            f"the front makes {shape} of {len(values)} rows: activations that are joined have shape (rows, features)"
        )
    if not bool(torch.isfinite(features).all()):
        row = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise ConfigError(f"the front's activation of row {start + row + 1} is not finite; are its weights?")
    return features.shape[1]
