"""Rows with labels: a step is taken when all activations are there, and each client gets its own gradient."""

from __future__ import annotations

import pytest
import torch
from support.server_parts import NAMES, ServerParts

from splitsec.errors import MessageError
from splitsec.training.messages import Batch

ACTIVATION = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def _add(run: ServerParts, name: str, labels: torch.Tensor) -> None:
    run.parts.steps.add(name, Batch(0, 0, (6,)), {"activation": [ACTIVATION], "labels": labels})


def test_a_step_waits_for_everybody() -> None:
    run = ServerParts()
    for name in NAMES[:2]:
        _add(run, name, torch.tensor([0, 1]))
    assert list(run.parts.steps.step_when_complete(NAMES)) == []
    _add(run, "c", torch.tensor([2, 1]))
    answers = list(run.parts.steps.step_when_complete(NAMES))
    assert [(answer.to, tuple(answer.tensors["gradient"][0].shape)) for answer in answers] == [
        (name, (2, 6)) for name in NAMES
    ]
    assert run.parts.steps.samples == 6


def test_labels_that_the_tail_has_no_class_for_are_refused() -> None:
    run = ServerParts()
    with pytest.raises(MessageError):
        _add(run, "a", torch.tensor([0, 9]))
    # The control: with a class for each they are taken.
    _add(run, "a", torch.tensor([0, 2]))
    assert run.parts.steps.has("a")
