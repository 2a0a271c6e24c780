"""Shapes that are noted at the values of a traced model."""

from __future__ import annotations

import torch
from torch import nn

from splitsec.cut import trace
from splitsec.mpc.program.shapes import ShapeNotes


def test_every_value_has_its_shape_and_dtype() -> None:
    tail = trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).eval())
    with torch.no_grad():
        ShapeNotes(tail).run(torch.zeros(5, 1, 4, 4))
    shapes = [node.meta["shape"] for node in tail.graph.nodes if node.op == "call_module"]
    assert shapes == [(5, 2, 2, 2), (5, 8), (5, 3)]
    assert all(node.meta["dtype"] == torch.float32 for node in tail.graph.nodes if node.op == "call_module")
