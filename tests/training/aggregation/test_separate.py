"""Separate: nothing is uploaded and nothing is taken."""

from __future__ import annotations

import pytest
import torch

from splitsec import RunSettings
from splitsec.errors import MessageError
from splitsec.training.aggregation.base import rule_of


def test_nothing_is_uploaded_and_an_upload_is_refused() -> None:
    settings = RunSettings(clients=("a", "b"), aggregation="none")
    rule = rule_of(settings)
    server = rule.server(settings)
    assert not server.masked
    assert not server.seeded
    assert not rule.client.combines
    assert server.add_upload("a", [], length=3, round_number=0, rounds=1) is None
    with pytest.raises(MessageError, match="1 masked vectors, and none is due"):
        server.add_upload("a", [torch.zeros(3, dtype=torch.int64)], length=3, round_number=0, rounds=1)
