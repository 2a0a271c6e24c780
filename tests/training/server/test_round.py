"""What belongs to one round at the server."""

from __future__ import annotations

import torch

from splitsec.training.server.round import Round


def test_a_round_is_complete_when_every_active_client_has_uploaded() -> None:
    current = Round(0, active=["a", "b"], idle=["c"])
    assert current.training == ["a", "b"]
    current.uploaded |= {"a"}
    assert current.training == ["b"]
    assert not current.complete
    current.uploaded |= {"b"}
    assert current.complete


def test_a_client_that_is_dropped_takes_its_upload_with_it() -> None:
    current = Round(0, active=["a", "b"], uploaded={"a"}, vectors={"a": torch.zeros(1), "b": torch.ones(1)})
    current.drop(["a"])
    assert (current.active, current.uploaded, list(current.vectors), current.dropped) == (["b"], set(), ["b"], ["a"])
    # The control: the others' uploads stay until they are forgotten.
    current.forget_uploads()
    assert current.vectors == {}
    assert current.active == ["b"]
