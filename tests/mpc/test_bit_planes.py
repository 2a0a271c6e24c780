import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitsec.mpc.bit_planes import and_rows, bits_of, planes_of, words_for


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=200), st.integers(0, 62))
def test_planes_hold_the_bits(values: list[int], low: int) -> None:
    array = np.array(values, dtype=np.int64)
    planes = planes_of(array, low, 64)
    assert planes.shape == (64 - low, words_for(len(values)))
    for bit in range(low, 64):
        assert bits_of(planes[bit - low], len(values)).tolist() == [(value >> bit) & 1 for value in values]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_lanes_beyond_the_last_element_are_zero(count: int) -> None:
    planes = planes_of(np.full(count, -1, dtype=np.int64), 0, 3)
    assert int(np.unpackbits(planes.view(np.uint8)).sum()) == 3 * count


def test_products_row_by_row() -> None:
    held = np.array([[0b1100], [0b1010], [0], [0]], dtype=np.uint64)
    and_rows(held, np.array([[0, 1], [2, 0]]), 2)
    assert held[:, 0].tolist() == [0b1100, 0b1010, 0b1000, 0b1000]
