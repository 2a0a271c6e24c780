"""A protocol of another package, through an entry point: the page on it runs, hides its inputs, and is dealt."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plugins import installed_from
from support.two_party import Unmasked, run_both, share

from splitsec.errors import MessageError
from splitsec.mpc.context import Context
from splitsec.mpc.correlation import CORRELATIONS, WirePlan
from splitsec.mpc.session.messages import JoinSession
from splitsec.parties.messages import dealer_codec


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's package, as if it were installed; gives the page's other code."""
    with installed_from("add-a-protocol.md", tmp_path, monkeypatch, CORRELATIONS) as code:
        assert "CubeMask" in CORRELATIONS
        yield code


def _cubes(x: torch.Tensor, **options: Any) -> tuple[list[Any], list[Any]]:
    cube = importlib.import_module("cube_protocol").cube

    def protocol(context: Context) -> torch.Tensor:
        result: torch.Tensor = cube(context, share(context, x))
        return result

    return run_both(protocol, **options)


def test_the_page_runs_as_it_stands(installed: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(installed, "<page>", "exec"), {"__name__": "__main__"})
    assert "[-343, 0, 27, 1000000000] in 1 round" in capsys.readouterr().out


def test_cubes_of_random_values(installed: str) -> None:
    torch.manual_seed(0)
    x = torch.randint(-1000, 1000, (40,))
    (server, client), _ = _cubes(x)
    assert torch.equal(server + client, x**3)


def test_what_is_exchanged_is_uniform(installed: str) -> None:
    x = torch.full((2000,), 5)
    _, sessions = _cubes(x)
    assert sessions[0].received[0].unique().numel() == 2000
    # The control: without masks the server receives the client's shares, whose sum with its own is the secret.
    _, unmasked = _cubes(x, kind=Unmasked)
    assert (unmasked[0].opened[0] == 5).all()


def test_the_dealer_reads_a_plan_with_it_and_refuses_it_without_the_package(installed: str) -> None:
    kind = importlib.import_module("cube_protocol").CubeMask
    body = JoinSession("0" * 32, 0, "client-1", WirePlan([kind((4,))]))
    frames = [bytes(frame) for frame in dealer_codec.encode(body)]
    assert dealer_codec.decode(frames)[0] == body
    CORRELATIONS._entries.pop("CubeMask")
    with pytest.raises(MessageError, match="malformed.*CubeMask"):
        dealer_codec.decode(frames)
    CORRELATIONS.register("CubeMask")(kind)
