"""What engines are measured on."""

from __future__ import annotations

import torch

from splitsec.apps.workload import Workload, plain_ms
from splitsec.models.literature import find_model


def test_every_engine_has_the_same_images() -> None:
    work = Workload(find_model("m1", None), 3)
    assert torch.equal(work.inputs(), work.inputs())
    assert work.inputs().shape == (3, *work.model.input_shape)


def test_a_time_in_plain_is_a_median_of_milliseconds() -> None:
    calls: list[int] = []
    linear = torch.nn.Linear(4, 2)
    linear.register_forward_hook(lambda *_: calls.append(1))
    assert plain_ms(linear, torch.zeros(1, 4)) > 0
    assert len(calls) > 1
