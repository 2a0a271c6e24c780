"""Predicted times: exact arithmetic of what was measured, and counts of products."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch
from support.encrypted_tail import compiled

from splitsec.advisor import machine_speed
from splitsec.advisor.machine_speed import Link, Speed, products_of
from splitsec.cut import trace
from splitsec.mpc.program.cost import Prediction, predict_cost
from splitsec.mpc.protocols.linear import LinearMask


@pytest.fixture(scope="module")
def speed() -> Speed:
    return Speed()


@pytest.fixture(scope="module")
def predicted() -> Prediction:
    torch.manual_seed(0)
    tail = trace(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval())
    program, _ = compiled(tail, (1, 8), calibration=torch.randn(1, 8), resolved=False)
    return predict_cost(program, 1)


def _layers(predicted: Prediction) -> list[LinearMask]:
    return [item for item in predicted.plan if isinstance(item, LinearMask)]


def test_a_slower_link_adds_its_round_trips_and_its_bytes(speed: Speed, predicted: Prediction) -> None:
    near, _ = speed.milliseconds(predicted, Link())
    far, _ = speed.milliseconds(predicted, Link(rtt_ms=10.0))
    narrow, _ = speed.milliseconds(predicted, Link(mbit_s=1.0))
    assert far - near == pytest.approx(predicted.hops * 5.0, rel=1e-6)
    sent, received = predicted.total.bytes_sent, predicted.total.bytes_received
    assert narrow - near == pytest.approx(max(sent, received) * 8e-3, rel=1e-6)


def test_products_are_those_of_the_layer(predicted: Prediction) -> None:
    assert sorted(products_of(layer) for layer in _layers(predicted)) == [8 * 3, 8 * 8]


def test_a_layer_is_timed_once_and_a_large_one_in_part(
    speed: Speed, predicted: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = _layers(predicted)[0]
    small, factor = machine_speed._smaller(layer, products_of(layer), most=16)
    assert products_of(small) == 16
    assert factor == products_of(layer) / 16
    first = speed._product(layer)
    monkeypatch.setattr(machine_speed, "_seconds", lambda *_: pytest.fail("timed again"))
    assert speed._product(msgspec.structs.replace(layer, layer=7)) == first
    # Once the budget is spent, others are estimated from the largest that was timed.
    monkeypatch.setattr(speed, "_spent", math.inf)
    other = _layers(predicted)[1]
    monkeypatch.setattr(speed, "_products", {})
    assert speed._product(other) > 0
