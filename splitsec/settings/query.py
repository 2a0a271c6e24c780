"""What a client asks of encrypted predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from splitsec.mpc.program.program import Reveal
from splitsec.settings.setting import Bounds, check_bounds, setting


@dataclass(frozen=True, kw_only=True)
class Query:
    """How encrypted predictions are asked for."""

    batch_size: Annotated[
        int, setting("Rows of a query; the last one is padded with zeros, and the padding dropped.", Bounds(least=1))
    ] = 1
    ahead: Annotated[
        int,
        setting(
            "Queries whose randomness is made ready while one runs, on processors that the query could use.",
            Bounds(least=0),
        ),
    ] = 1
    reveal: Annotated[Reveal, setting("`label` opens nothing but the label of each row, not even to this client.")] = (
        "logits"
    )
    checked: Annotated[
        bool, setting("Compare every layer's values with their bounds in each query, for five rounds more.")
    ] = False
    comparison: Annotated[
        str,
        setting(
            "Protocol of comparisons: `dcf` takes two rounds less a layer and twenty times the bytes offline, for a "
            "slow link with time to make randomness ready."
        ),
    ] = "tables"
    engine: Annotated[
        Literal["splitsec", "crypten"],
        setting(
            "`crypten` runs layers through CrypTen's functions, over the same transport and dealer: a reference for "
            "results, many times slower."
        ),
    ] = "splitsec"


def check_query(query: Query) -> None:
    """Raise `ConfigError` for a setting out of bounds, or a comparison that is not known."""
    # To import the protocols compiles them, which only predictions need.
    from splitsec.mpc.protocols.comparison import COMPARISONS

    check_bounds(query)
    COMPARISONS.get(query.comparison)
