"""Private training beside Opacus: the same noise, rate and steps, so the same epsilon."""

from __future__ import annotations

import pytest

from benchmarks.private_training import measure_private_training


@pytest.mark.slow
def test_the_epsilon_is_that_of_opacus() -> None:
    record = measure_private_training("digits", 3.0, clients=2, delta=1e-4, epochs=1, seeds=1)
    assert record.epsilon_split == pytest.approx(record.epsilon_opacus, rel=1e-3)
    assert record.epsilon_split <= 3.0
