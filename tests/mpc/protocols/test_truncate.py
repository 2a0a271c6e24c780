import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.two_party import run_both, share

from splitsec.mpc.context import Context
from splitsec.mpc.protocols.truncate import truncate
from splitsec.mpc.ring import HEADROOM_BITS


def _truncated(values: torch.Tensor, bits: int) -> torch.Tensor:
    def protocol(context: Context) -> torch.Tensor:
        return truncate(context, share(context, values), bits)

    (server, client), _ = run_both(protocol)
    return server + client


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=1, max_size=30), st.integers(1, 61))
def test_off_by_at_most_one_unit_whatever_the_value(values: list[int], bits: int) -> None:
    got = _truncated(torch.tensor(values, dtype=torch.int64), bits)
    for value, result in zip(values, got.tolist(), strict=True):
        assert result - (value >> bits) in (0, 1)


def test_edges_of_the_range() -> None:
    edge = 2**HEADROOM_BITS
    values = torch.tensor([edge - 1, -edge + 1, 0, 1, -1, 2**16, -(2**16)] * 2000, dtype=torch.int64)
    error = _truncated(values, 16) - (values >> 16)
    assert set(error.unique().tolist()) <= {0, 1}


def test_rounding_is_unbiased() -> None:
    values = torch.full((200_000,), 3 * 2**16 + 2**14, dtype=torch.int64)  # 3.25 units
    mean = _truncated(values, 16).double().mean().item()
    assert abs(mean - 3.25) < 0.01


def test_one_round_and_eight_bytes_an_element() -> None:
    values = torch.zeros(1000, dtype=torch.int64)
    _, sessions = run_both(lambda context: truncate(context, share(context, values), 16))
    for session in sessions:
        assert session.peer.traffic.rounds == 1
        assert 8000 <= session.peer.traffic.bytes_sent < 8100
