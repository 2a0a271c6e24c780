"""What a client says first: its data and segments are inspected, and described without any value."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from splitsec.cut.origin import origin_of
from splitsec.data.column_checks import fitted
from splitsec.data.columns import Columns
from splitsec.data.row_checks import activation_shape, check_tokens, largest_activation
from splitsec.data.rows import Part
from splitsec.mpc.program.compile import DEFAULT_LIMIT
from splitsec.training.client.checkpoint import ClientCheckpoints
from splitsec.training.flat_state import Combinable
from splitsec.training.messages import ColumnsPart, Hello
from splitsec.version import PROTOCOL, __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Purpose:
    """What a client with columns is in a run for.

    Attributes:
        trains: False for predictions alone, where the server's run has no epochs.
        asks: whether it asks for predictions; None where that is decided later.
    """

    trains: bool = True
    asks: bool | None = None


TRAINS = Purpose()


def inspect(data: Part | Columns, front: nn.Module, *, name: str, cut: str) -> tuple[Part | Columns, tuple[int, ...]]:
    """Return a client's data as its front takes it, and the shape of one row's activation.

    Raises:
        ConfigError: the front cannot learn from the data; says what to change.
    """
    if isinstance(data, Columns):
        columns, features = fitted(data, front)
        return columns, (features,)
    data.check()
    doubts = data.doubts()
    for what in ("train_images", "test_images"):
        check_tokens(getattr(data, what), front, what)
    shape = activation_shape(front, data.train_images, cut=cut, what="train_images")
    largest = largest_activation(front, data.train_images, cut=cut, what="train_images")
    if not largest < DEFAULT_LIMIT:
        doubts.append(
            f"the front makes activations of magnitude {largest:.4g} of these images before it is trained, and "
            f"encrypted predictions take magnitudes below about {DEFAULT_LIMIT:g}: scale the images, such as by "
            "their largest value, unless training is sure to make the activations smaller"
        )
    for doubt in doubts:
        log.warning("%s: %s", name, doubt)
    return data, shape


def hello_of(
    segments: Sequence[nn.Module],
    state: Combinable,
    kept: ClientCheckpoints,
    *,
    cut: str,
    samples: int,
    shape: tuple[int, ...],
    columns: ColumnsPart | None,
) -> Hello:
    """Return what a client says first."""
    return Hello(
        protocol=PROTOCOL,
        version=__version__,
        cut=cut,
        segments=state.description,
        begins=kept.begins,
        parameters=state.parameters,
        values=state.values,
        samples=samples,
        rounds=kept.saved or (0,),
        run=kept.run,
        shape=shape,
        columns=columns,
        marks=kept.marks,
        architecture=origin_of(segments[0]).architecture,
    )


def columns_part(data: Part | Columns, front: nn.Module, purpose: Purpose) -> ColumnsPart | None:
    """Return what a client with columns takes part in; None for a client with rows."""
    if not isinstance(data, Columns):
        return None
    origin = origin_of(front)
    return ColumnsPart(
        labels=data.labels is not None,
        trains=purpose.trains,
        trained=data.scaling.given is not None,
        asks=purpose.asks,
        mark=origin.mark,
        run=origin.run,
        rounds=origin.rounds,
    )
