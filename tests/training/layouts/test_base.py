"""Layouts by name, and what is common to them."""

from __future__ import annotations

import pytest

from splitsec import RunSettings
from splitsec.errors import ConfigError
from splitsec.training.layouts import LAYOUTS, layout_of
from splitsec.training.layouts.base import times

NAMES = ("a", "b")


def test_a_run_has_the_layout_that_its_cut_and_settings_say() -> None:
    assert layout_of(RunSettings(clients=NAMES), "1") is LAYOUTS.get("horizontal")
    assert layout_of(RunSettings(clients=NAMES), "1,4") is LAYOUTS.get("u")
    assert layout_of(RunSettings(clients=NAMES, join="sum"), "join") is LAYOUTS.get("vertical")


def test_a_layout_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no layout 'star'"):
        layout_of(RunSettings(clients=NAMES, layout="star"), "1")


def test_shapes_are_written_as_people_do() -> None:
    assert times((3, 8, 8)) == "3x8x8"
