"""What a server's operator allows clients to ask: answers of which kind, how many, and on which ports."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from splitsec.errors import ConfigError
from splitsec.mpc.ring import PRECISION_BITS
from splitsec.settings.setting import Bounds, check_bounds, setting

Answers: TypeAlias = Literal["any", "label"]
# Fractional bits of an answer unless the operator says otherwise: a logit to a thousandth.
ANSWER_BITS = 10
LAST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """What clients may ask of a server."""

    stay: Annotated[bool, setting("Go on answering predictions when all clients have left.")] = False
    predictions_per_client: (
        Annotated[
            int,
            setting(
                "Rows that each client may have answered, over all its sessions and all starts of the server, since "
                "answers reveal weights; any number if left out.",
                Bounds(least=1),
            ),
        ]
        | None
    ) = None
    counts: (
        Annotated[
            str, setting("Directory of the server's own for that count; the settings file's own if it is left out.")
        ]
        | None
    ) = None
    answers: Annotated[
        Answers, setting("`label` refuses sessions that open more than each row's label, which reveal far less.")
    ] = "any"
    answer_bits: Annotated[
        int,
        setting(
            "Fractional bits of an answer that are opened: each bit less doubles what who computes weights from "
            "answers errs by. Below them is noise of the server's.",
            Bounds(least=0, most=PRECISION_BITS),
        ),
    ] = ANSWER_BITS
    session_ports: (
        Annotated[str, setting("Ports of prediction sessions, such as 40000-40100; any free one if it is left out.")]
        | None
    ) = None

    @property
    def directory(self) -> Path | None:
        """Return where the count of predictions is kept."""
        return None if self.counts is None else Path(self.counts)

    @property
    def ports(self) -> tuple[int, int] | None:
        """Return the first and the last port that sessions may listen on; None for any.

        Raises:
            ConfigError: `session_ports` is not such a pair.
        """
        if self.session_ports is None:
            return None
        first, dash, last = self.session_ports.partition("-")
        with contextlib.suppress(ValueError):
            ports = int(first), int(last if dash else first)
            if 1 <= ports[0] <= ports[1] <= LAST_PORT:
                return ports
        raise ConfigError(
            f'session_ports = "{self.session_ports}": write the first and the last port, such as "40000-40100"'
        )


def check_answer_rules(rules: AnswerRules, *, labels: bool) -> None:
    """Raise `ConfigError` that names the setting at fault.

    Args:
        labels: whether the server's tail ends with labels.
    """
    check_bounds(rules)
    if rules.answers == "label" and not labels:
        raise ConfigError(
            'answers = "label" needs a tail of the server\'s own that ends with the classes: that of a U ends '
            "before them, and a model that clients give in parts answers with logits; leave it out"
        )
    if rules.predictions_per_client is not None and rules.counts is None:
        raise ConfigError("predictions_per_client needs a directory in which the count outlives the server: counts")
    _ = rules.ports
