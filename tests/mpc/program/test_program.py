"""Programs: what they say of their result, and that they hold no weights."""

from __future__ import annotations

import msgspec
import torch
from support.encrypted_tail import compiled
from torch import nn

from splitsec.cut import trace
from splitsec.mpc.program.program import Program


def _program(reveal: str = "logits") -> Program:
    torch.manual_seed(0)
    return compiled(trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))), (5, 4), reveal=reveal)[0]


def test_a_label_is_one_number_a_row() -> None:
    assert (_program().reveals_label, _program().output_shape) == (False, (5, 2))
    assert (_program("label").reveals_label, _program("label").output_shape) == (True, (5,))


def test_a_program_is_the_same_whatever_the_weights_are() -> None:
    """Nothing of a weight travels but its layer's size: the control is another network's program."""
    first = msgspec.msgpack.encode(_program())
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    second = compiled(trace(other), (5, 4))[0]
    assert [step.op for step in second.steps] == [step.op for step in msgspec.msgpack.decode(first, type=Program).steps]
    assert len(first) < 1000
    assert compiled(trace(nn.Linear(4, 2)), (5, 4))[0].steps != second.steps


def test_a_program_without_steps_gives_its_input_back() -> None:
    empty = Program((2, 3), (), 1.0, "")
    assert (empty.output_shape, empty.reveals_label) == ((2, 3), False)
