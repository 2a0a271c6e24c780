"""How long parties wait."""

from __future__ import annotations

import pytest

from splitsec.errors import ConfigError
from splitsec.settings.setting import check_bounds
from splitsec.settings.timeouts import FOREVER, Timeouts


def test_nobody_waits_for_no_time() -> None:
    check_bounds(Timeouts())
    for name in ("timeout", "join_timeout", "round_timeout"):
        with pytest.raises(ConfigError, match=name):
            check_bounds(Timeouts(**{name: 0.0}))


def test_a_simulation_waits_for_ever() -> None:
    assert FOREVER.timeout == FOREVER.join_timeout == float("inf")
    assert FOREVER.round_timeout is None
