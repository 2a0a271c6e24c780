"""What the dealer's plans say of weights and of data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encrypted_tail import compiled
from support.parties_in_threads import world

from splitsec import Part, SplitModel
from splitsec.models.demo import digits_cnn, digits_half
from splitsec.mpc.program import bounds
from splitsec.mpc.program.bounds import WIDTH_STEP
from splitsec.mpc.program.compile import compile_tail
from splitsec.mpc.program.cost import predict_cost
from splitsec.mpc.program.program import Program
from splitsec.mpc.session.plan import plan_digest
from splitsec.parties.model_part_client import HalvesClient
from splitsec.prediction.messages import Half

SCALES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


def _program(scale: float) -> Program:
    torch.manual_seed(0)
    model = digits_cnn()
    model.fc1.weight.data.mul_(scale)
    return compile_tail(SplitModel(model, "pool").tail, (1, 32, 4, 4))[0]


def test_widths_of_comparisons_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    widths, plans = set(), set()
    for scale in SCALES:
        program = _program(scale)
        widths |= {step.bits for step in program.steps if step.op == "relu"}
        plans.add(plan_digest(predict_cost(program, 0).plan))
    assert all((width + 1) % WIDTH_STEP == 0 for width in widths)
    # The control: exact widths follow the weights more closely.
    monkeypatch.setattr(bounds, "WIDTH_STEP", 1)
    exact = set()
    for scale in SCALES:
        exact.add(plan_digest(predict_cost(_program(scale), 0).plan))
    assert len(plans) < len(exact)


def test_norms_give_few_digits_away() -> None:
    """Each bit more costs a digit of small rows (tests/mpc/test_accuracy.py)."""
    widths = set()
    for limit in (32.0, 64.0, 128.0, 256.0):
        program, _ = compiled(SplitModel(torch.nn.LayerNorm(5), "input").tail, (1, 5), limit=limit)
        (step,) = (step for step in program.steps if step.op == "standardise")
        exact = math.ceil(math.log2(program.limit))
        assert exact <= step.bits <= exact + 1
        widths.add(step.bits)
    assert widths == {6, 8}


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_a_part_of_a_model_says_nothing_of_the_images(tmp_path: Path, scale: float) -> None:
    programs: list[Any] = []
    torch.manual_seed(0)
    half = digits_half().eval()
    with world(tmp_path, epochs=0, cut="input", settings={"layout": "model_parts"}) as here:
        for factor in (1.0, scale):
            images = torch.rand(40, 1, 8, 8) * factor
            part = Part(images, torch.zeros(40, dtype=torch.int64), images, torch.zeros(40, dtype=torch.int64))
            with HalvesClient.of(
                half,
                network=here.network("client-1", {"timeout": 10}),
            ) as client:
                request = client._connection.server.request

                def note(body: Any, *rest: Any, request: Any = request, **options: Any) -> Any:
                    if isinstance(body, Half):
                        programs.append([plan_digest(predict_cost(program, 0).plan) for program in body.programs])
                    return request(body, *rest, **options)

                client._connection.server.request = note  # type: ignore[method-assign]
                client.give(part)
    limits = [compile_tail(SplitModel(half, "input").tail, (1, 1, 8, 8), calibration=images)[0].limit]
    # The control: measured on the images themselves, the limit follows them.
    assert limits[0] != compile_tail(SplitModel(half, "input").tail, (1, 1, 8, 8), calibration=images / scale)[0].limit
    assert len(programs) == 2
    assert len(programs[0]) == len(programs[1])
