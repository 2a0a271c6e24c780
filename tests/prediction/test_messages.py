"""Messages of prediction: seeds are not printed."""

from __future__ import annotations

from splitsec.prediction.messages import OpenSession, OwnerSeed


def test_seeds_are_not_printed() -> None:
    assert "secret" not in repr(OpenSession((1, 2), b"secret")) + repr(OwnerSeed("0" * 32, b"secret"))
    # The control: what else a message says is.
    assert "(1, 2)" in repr(OpenSession((1, 2), b"secret"))
