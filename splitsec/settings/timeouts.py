"""How long a party waits for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from splitsec.settings.setting import Bounds, setting


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How long any party waits."""

    timeout: Annotated[
        float,
        setting(
            "Wait for an answer; the server drops a client that is silent for so long from its round.",
            Bounds(above=0),
            unit="seconds",
        ),
    ] = 60.0
    join_timeout: Annotated[float, setting("Wait for the other parties to come.", Bounds(above=0), unit="seconds")] = (
        120.0
    )


@dataclass(frozen=True, kw_only=True)
class Timeouts(Waiting):
    """How long a server waits."""

    round_timeout: (
        Annotated[
            float,
            setting(
                "After it a round goes on without those for whom others wait, and once more as long for the others; no "
                "limit if it is left out.",
                Bounds(above=0),
                unit="seconds",
            ),
        ]
        | None
    ) = None


FOREVER = Timeouts(timeout=float("inf"), join_timeout=float("inf"))
