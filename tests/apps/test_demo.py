"""The demo's table of who saw what, and its progress."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from splitsec.apps.demo import DemoOptions, _Watch, _who_saw_what
from splitsec.events import Joined, Predicted, RoundDone
from splitsec.local.run import LocalRun
from splitsec.party_names import SERVER


def _shown(thing: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("layout", ["horizontal", "u", "vertical", "model_parts"])
def test_every_layout_says_who_saw_what(layout: str) -> None:
    text = _shown(_who_saw_what(LocalRun(layout=layout)))
    for party in ("clients", "server", "dealer"):
        assert party in text
    assert "uniform whatever the input" in text


def test_rounds_and_predictions_are_counted() -> None:
    run = LocalRun(clients=2, epochs=3)
    with _Watch(run, Console(file=io.StringIO())) as watch:
        watch.show(Joined(SERVER, "client-1"))
        for number in (1, 2):
            watch.show(
                RoundDone(
                    SERVER,
                    round=number,
                    rounds=3,
                    loss=1.0,
                    accuracy=0.5,
                    bytes_sent=100 * number,
                    bytes_received=50,
                    samples=20,
                    dropped=("client-2",),
                )
            )
        watch.show(Predicted("client-1", 5, 10))
    assert (watch.samples, watch.dropped, watch.bytes_training) == (40, 2, 250)


def test_the_demo_takes_the_settings_of_a_run_and_its_own() -> None:
    options = DemoOptions(epochs=2, simulate=True, drop=0.1)
    assert (options.epochs, options.simulate, options.drop) == (2, True, 0.1)
