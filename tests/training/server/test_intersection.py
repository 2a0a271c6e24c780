"""Points of ids at the server: passed round once to every client, in order."""

from __future__ import annotations

import pytest
import torch

from splitsec.errors import ConfigError, MessageError
from splitsec.training.client.intersection import Alignment
from splitsec.training.messages import Aligned, Points
from splitsec.training.server.intersection import Aligner

IDS = {"a": ["1", "2", "3"], "b": ["3", "2", "9"]}


def test_points_go_round_until_all_have_multiplied_them() -> None:
    aligner, sides = Aligner(["a", "b"]), {name: Alignment(ids) for name, ids in IDS.items()}
    places: dict[str, torch.Tensor] = {}
    waiting = [(name, Points(name), side.mine()) for name, side in sides.items()]
    while waiting:
        name, body, points = waiting.pop(0)
        for outgoing in aligner.points(name, body, points):
            if isinstance(outgoing.body, Points):
                side = sides[outgoing.to]
                multiplied = side.pass_on(outgoing.tensors["points"], outgoing.body.owner)
                waiting.append((outgoing.to, outgoing.body, multiplied))
            else:
                places[outgoing.to] = outgoing.tensors["places"]
    rows = {name: [IDS[name][row] for row in sides[name].common(places[name])] for name in IDS}
    assert rows["a"] == rows["b"]
    assert sorted(rows["a"]) == ["2", "3"]


def test_points_that_are_not_due_are_refused() -> None:
    aligner = Aligner(["a", "b"])
    with pytest.raises(MessageError, match="points of eve, who is no client"):
        aligner.points("a", Points("eve"), torch.zeros(1, 32, dtype=torch.uint8))
    with pytest.raises(MessageError, match="the points of a were not due from b"):
        aligner.points("b", Points("a"), torch.zeros(1, 32, dtype=torch.uint8))
    assert aligner.missing == ["a", "b"]


def test_different_numbers_of_common_rows_end_the_run() -> None:
    aligner = Aligner(["a", "b"])
    aligner.aligned("a", Aligned(2))
    assert aligner.rows is None
    with pytest.raises(ConfigError, match="different numbers of common rows: a 2, b 3"):
        aligner.aligned("b", Aligned(3))
    aligner = Aligner(["a", "b"])
    aligner.aligned("a", Aligned(2))
    aligner.aligned("b", Aligned(2))
    assert aligner.rows == 2
