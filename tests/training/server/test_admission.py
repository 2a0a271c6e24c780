"""Greetings of clients that cannot be in a run together are refused with the difference."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from splitsec import RunSettings
from splitsec.errors import RefusedError
from splitsec.training.layouts.base import layout_of
from splitsec.training.messages import Hello
from splitsec.training.server.admission import check_architecture, check_hello
from splitsec.version import PROTOCOL, __version__

HELLO = Hello(PROTOCOL, __version__, "1", (("0.weight", (4, 4)),), "x", 16, 16, 20, shape=(4,))


def _check(hello: Hello) -> None:
    settings = RunSettings(clients=("a", "b"))
    check_hello(
        "b", hello, cut="1", settings=settings, layout=layout_of(settings, "1"), members={"a": HELLO, "b": HELLO}
    )


def test_a_client_that_is_like_the_others_is_let_in() -> None:
    _check(HELLO)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"protocol": PROTOCOL + 1}, f"b speaks protocol {PROTOCOL + 1}"),
        ({"cut": "2"}, "b cuts at '2', the server at '1'"),
        ({"samples": 0}, "b has no samples"),
        ({"samples": 1 << 40}, "samples add up to more"),
        ({"shape": (5,)}, "has shape 5 at b and 4 at a"),
        ({"shape": (0,)}, "an activation of b cannot have shape"),
        ({"segments": (("0.weight", (4, 5)),)}, "0.weight is 4x5 at b, 0.weight is 4x4 at a"),
        ({"segments": ()}, "there is no 0.weight at b"),
        ({"values": 17}, "do not combine the same number of values"),
        ({"begins": "y"}, "b and a begin with different values"),
    ],
)
def test_a_client_that_differs_is_refused_with_the_difference(change: dict[str, Any], why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        _check(msgspec.structs.replace(HELLO, **change))


def test_a_whole_model_that_differs_is_refused_where_both_are_known() -> None:
    check_architecture("b", HELLO, "0" * 32)
    known = msgspec.structs.replace(HELLO, architecture="1" * 32)
    check_architecture("b", known, "")
    check_architecture("b", known, "1" * 32)
    with pytest.raises(RefusedError, match="the model of b differs from the server's"):
        check_architecture("b", known, "0" * 32)
