import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.two_party import run_both, share

from splitsec.mpc.bit_planes import words_for
from splitsec.mpc.context import Context
from splitsec.mpc.protocols.compare import is_wide, levels
from splitsec.mpc.protocols.relu import relu


def _relu(values: torch.Tensor, *, shift: int, high: int, comparison: str = "tables") -> torch.Tensor:
    def protocol(context: Context) -> torch.Tensor:
        return relu(context, share(context, values), shift=shift, high=high)

    (server, client), _ = run_both(protocol, comparison=comparison)
    return server + client


@pytest.mark.parametrize("comparison", ["tables", "dcf"])
@pytest.mark.parametrize("high", [1, 2, 4, 5, 7, 9])
def test_every_value_of_a_small_window_without_truncation(high: int, comparison: str) -> None:
    values = torch.arange(-(2**high) + 1, 2**high - 1).repeat(40)
    assert torch.equal(_relu(values, shift=0, high=high, comparison=comparison), values.clamp(min=0))


@pytest.mark.parametrize("comparison", ["tables", "dcf"])
@pytest.mark.parametrize(("shift", "high"), [(1, 6), (3, 8), (4, 9)])
def test_every_value_of_a_small_window_with_truncation(shift: int, high: int, comparison: str) -> None:
    values = torch.arange(-(2**high) + 2**shift + 1, 2**high - 2**shift).repeat(30)
    error = _relu(values, shift=shift, high=high, comparison=comparison) - (values.clamp(min=0) >> shift)
    # Stochastic rounding: the next unit up, never more, and below zero nothing at all.
    assert set(error.unique().tolist()) <= {0, 1}
    assert not error[values <= -(2**shift)].any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**61) + 2**40, 2**61 - 2**40), min_size=1, max_size=70), st.sampled_from([0, 8, 16, 30]))
def test_the_real_ring(values: list[int], shift: int) -> None:
    got = _relu(torch.tensor(values, dtype=torch.int64), shift=shift, high=61)
    for value, result in zip(values, got.tolist(), strict=True):
        assert result - (max(value, 0) >> shift) in ((0,) if shift == 0 else (0, 1))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1024, 1025, 3000])
def test_sizes_around_whole_words_and_both_circuits(count: int) -> None:
    values = torch.randint(-(2**40), 2**40, (count,))
    assert torch.equal(_relu(values, shift=0, high=41), values.clamp(min=0))


def test_both_kinds_of_circuit_are_in_use() -> None:
    assert is_wide(words_for(1024))
    assert not is_wide(words_for(1025))
    assert len(levels(32, wide=True)) == 1
    assert len(levels(32, wide=False)) == 2


def test_shapes_are_kept() -> None:
    values = torch.randint(-(2**30), 2**30, (3, 5, 2))
    assert torch.equal(_relu(values, shift=0, high=31), values.clamp(min=0))


def test_rounds_and_bytes() -> None:
    """At most 5 rounds and 30 bytes an element, both ways together."""
    count = 100_000
    values = torch.randint(-(2**40), 2**40, (count,))
    for high in (42, 62):
        _, sessions = run_both(lambda context, high=high: relu(context, share(context, values), shift=16, high=high))
        traffic = sessions[0].peer.traffic
        assert traffic.rounds <= 5
        assert (traffic.bytes_sent + traffic.bytes_received) / count <= 30


def test_with_comparison_functions_two_rounds() -> None:
    values = torch.randint(-(2**40), 2**40, (5000,))
    _, sessions = run_both(lambda context: relu(context, share(context, values), shift=16, high=42), comparison="dcf")
    assert {session.peer.traffic.rounds for session in sessions} == {2}
